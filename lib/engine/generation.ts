// engine/generation.ts - one text in the making, as its caller sees it: chunks to iterate over, and a result.
import { MlaError } from '../errors';
import type { TopToken } from '../model/types';
import { onAbort } from './abort-listeners';
import type { Generation } from './api';
import type { Engine, EngineRequest, Ticket } from './engine';
import type { UsedSettings } from './options';
import { type Chunk, Clock, type FinishReason, type Result } from './result';
import { type PlannedSettings, resolveMaxTokens } from './settings';
import type { KeptPages, SamplingSettings, StepResult, TextStream } from './step-model';
import { StopFinder, type StopSearch } from './stop-strings';

/** With this many unread chunks a generation pauses, and it goes on when half of them have been read. */
export const MAX_UNREAD_CHUNKS = 64;

/** What a generation is made from. */
export interface GenerationInput {
  readonly engine: Engine;
  readonly context: number;
  readonly loadMs: number;
  readonly settings: PlannedSettings;
  /** the prompt's token ids; may take its time, and may fail */
  encode(): Promise<readonly number[]>;
  /** null where the model has no tokenizer */
  readonly text: TextStream | null;
  /** whose text it is, when it goes on a sequence */
  readonly owner?: GenerationOwner | undefined;
}

/** A sequence whose rows a generation begins with, and leaves behind. */
export interface GenerationOwner {
  readonly kept: KeptPages | null;
  /** the generation has succeeded: all its tokens, and the rows that the cache has of them */
  grow(tokens: readonly number[], kept: KeptPages): void;
  /** the generation is over, however it ended; called once */
  release(): void;
}

type State = 'idle' | 'started' | 'finished' | 'failed';

/** A {@link Generation} of an engine in this thread. */
export class LocalGeneration implements Generation {
  private state: State = 'idle';
  private error: unknown;
  private iterating = false;
  private left = false;
  private resultWanted = false;
  /** Hysteresis: true from MAX_UNREAD_CHUNKS unread chunks down to half of that. */
  private behind = false;

  private clock: Clock | null = null;
  private ticket: Ticket | null = null;
  private prompt: readonly number[] = [];
  private cachedTokens = 0;
  private settings: UsedSettings | null = null;

  private readonly unread: Chunk[] = [];
  private readonly readers: { resolve(value: IteratorResult<Chunk, undefined>): void; reject(error: unknown): void }[] =
    [];
  /** Tokens whose text is not a whole character yet, or may be part of a stop string; null: none. */
  private held: Tokens | null = null;
  private readonly made: Tokens = { tokens: [], logprobs: [], top: [] };
  private text = '';

  private readonly outcome: Promise<Result>;
  private resolveOutcome!: (result: Result) => void;
  private rejectOutcome!: (error: unknown) => void;
  private stopListening: () => void = () => {};
  private readonly stops: StopFinder;

  constructor(private readonly input: GenerationInput) {
    this.stops = new StopFinder(input.settings.stop);
    this.outcome = new Promise((resolve, reject) => {
      this.resolveOutcome = resolve;
      this.rejectOutcome = reject;
    });
    this.outcome.catch(() => {}); // whoever reads `result` still gets the rejection
  }

  get result(): Promise<Result> {
    this.resultWanted = true;
    if (this.behind) {
      this.behind = false;
      this.input.engine.wake();
    }
    this.start();
    return this.outcome;
  }

  [Symbol.asyncIterator](): AsyncIterator<Chunk, undefined> {
    if (this.iterating) {
      throw new MlaError(
        'ERR_STATE',
        'This generation is being iterated over already; expected one consumer. Call generate again for another text.',
      );
    }
    this.iterating = true;
    return { next: () => this.next(), return: () => this.leave() };
  }

  private next(): Promise<IteratorResult<Chunk, undefined>> {
    this.start();
    const chunk = this.unread.shift();
    if (chunk !== undefined) {
      if (this.behind && this.unread.length <= MAX_UNREAD_CHUNKS / 2) {
        this.behind = false;
        this.input.engine.wake();
      }
      return Promise.resolve({ done: false, value: chunk });
    }
    if (this.left || this.state === 'finished') return Promise.resolve({ done: true, value: undefined });
    if (this.state === 'failed') return Promise.reject(this.error);
    return new Promise((resolve, reject) => this.readers.push({ resolve, reject }));
  }

  private leave(): Promise<IteratorResult<Chunk, undefined>> {
    this.left = true;
    this.unread.length = 0;
    this.abort(new MlaError('ERR_ABORTED', 'The generation was aborted because its consumer left the loop.'));
    return Promise.resolve({ done: true, value: undefined });
  }

  private start(): void {
    if (this.state !== 'idle') return;
    this.state = 'started';
    this.clock = new Clock();
    void this.run();
  }

  /** Never rejects: what goes wrong becomes the generation's failure. */
  private async run(): Promise<void> {
    const { engine, context, settings, encode } = this.input;
    const { signal } = settings;
    if (signal?.aborted) {
      this.abort(signal.reason);
      return;
    }
    this.stopListening = onAbort(signal, () => this.abort(signal?.reason));
    try {
      const prompt = await encode();
      if (this.state !== 'started') return;
      if (prompt.length === 0) {
        throw new MlaError('ERR_INVALID_ARG', 'prompt: expected at least one token, got none.');
      }
      const maxTokens = resolveMaxTokens(settings.maxTokens, prompt.length, context);
      this.prompt = prompt;
      const { signal: _, cacheSalt: __, ...used } = settings;
      this.settings = { ...used, maxTokens, minTokens: Math.min(used.minTokens, maxTokens) };
      this.ticket = engine.submit(this.request(prompt, this.settings, settings.cacheSalt));
    } catch (error) {
      this.fail(error);
    }
  }

  private request(prompt: readonly number[], used: UsedSettings, salt: string): EngineRequest {
    const { temperature, topK, topP, minP, seed, repetitionPenalty, presencePenalty, frequencyPenalty } = used;
    const sampling: SamplingSettings = {
      temperature,
      topK,
      topP,
      minP,
      seed,
      repetitionPenalty,
      presencePenalty,
      frequencyPenalty,
      promptLength: prompt.length,
      logitBias: used.logitBias,
      top: used.topLogprobs,
      stopIds: used.stopTokens,
      minLength: prompt.length + used.minTokens,
      maxLength: prompt.length + used.maxTokens,
    };
    const { owner } = this.input;
    const isBehind = () => this.behind;
    return {
      prompt,
      sampling,
      priority: used.priority,
      kept: owner?.kept ?? null,
      salt,
      get paused() {
        return isBehind();
      },
      onStart: (cachedTokens) => {
        this.clock?.prefill();
        this.cachedTokens = cachedTokens;
      },
      onToken: (result) => this.accept(result),
      ...(owner && { onKept: (kept: KeptPages) => owner.grow([...prompt, ...this.made.tokens], kept) }),
      onError: (error) => this.fail(error),
    };
  }

  /** @returns whether the text goes on */
  private accept({ token, logprob, top, finished }: StepResult): boolean {
    const { text, settings } = this.input;
    const wanted = settings.topLogprobs > 0 ? top : null;
    if (this.made.tokens.length === 0) this.clock?.first();
    add(this.made, token, logprob, wanted);
    // What ends the text is not part of it.
    let piece = finished === 'stop' ? '' : (text?.push(token) ?? '');
    if (finished !== null) piece += text?.end() ?? '';
    const { text: added, found } = this.search(piece, finished !== null);
    this.text += added;
    const ends = finished !== null || found !== null;
    if (this.held !== null) add(this.held, token, logprob, wanted);
    const tokens = this.held ?? { tokens: [token], logprobs: [logprob], top: wanted === null ? [] : [wanted] };
    const shows = added !== '' || text === null || ends;
    this.held = shows ? null : tokens;
    if (shows) this.emit({ text: added, tokens: tokens.tokens, logprobs: tokens.logprobs, top: tokens.top });
    if (found !== null) this.finish('stop', found);
    else if (finished !== null) this.finish(finished, finished === 'stop' ? token : null);
    return !ends;
  }

  /** Stop strings count from the text of token minTokens on. */
  private search(piece: string, last: boolean): StopSearch {
    if (this.made.tokens.length < (this.settings as UsedSettings).minTokens) return { text: piece, found: null };
    const search = this.stops.push(piece);
    return last && search.found === null ? { text: search.text + this.stops.end(), found: null } : search;
  }

  private emit(chunk: Chunk): void {
    const reader = this.readers.shift();
    if (reader !== undefined) {
      reader.resolve({ done: false, value: chunk });
      return;
    }
    this.unread.push(chunk);
    if (this.unread.length >= MAX_UNREAD_CHUNKS && this.iterating && !this.resultWanted) this.behind = true;
  }

  private finish(finishReason: FinishReason, stoppedBy: number | string | null): void {
    const { prompt, cachedTokens, made } = this;
    const usage = { promptTokens: prompt.length, cachedTokens, completionTokens: made.tokens.length };
    this.state = 'finished';
    this.clock?.last();
    this.release();
    this.resolveOutcome({
      text: this.text,
      ...made,
      finishReason,
      stoppedBy,
      usage,
      timings: (this.clock as Clock).timings(this.input.loadMs, usage),
      settings: this.settings as UsedSettings,
    });
    for (const reader of this.readers.splice(0)) reader.resolve({ done: true, value: undefined });
  }

  /** Ends the generation at once; chunks that nobody has read are dropped. */
  private abort(reason: unknown): void {
    if (this.state === 'finished' || this.state === 'failed') return;
    this.ticket?.cancel();
    this.unread.length = 0;
    this.fail(reason);
  }

  /** Chunks that came before stay readable. */
  private fail(error: unknown): void {
    if (this.state === 'finished' || this.state === 'failed') return;
    this.state = 'failed';
    this.error = error;
    this.release();
    this.rejectOutcome(error);
    for (const reader of this.readers.splice(0)) {
      if (this.left) reader.resolve({ done: true, value: undefined });
      else reader.reject(error);
    }
  }

  private release(): void {
    this.behind = false;
    this.stopListening();
    this.input.owner?.release();
  }
}

/** Tokens of a text, and what is known of each. */
interface Tokens {
  readonly tokens: number[];
  readonly logprobs: number[];
  readonly top: (readonly TopToken[])[];
}

function add(to: Tokens, token: number, logprob: number, top: readonly TopToken[] | null): void {
  to.tokens.push(token);
  to.logprobs.push(logprob);
  if (top !== null) to.top.push(top);
}
