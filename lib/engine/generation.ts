// engine/generation.ts - one text in the making, as its caller sees it: chunks to iterate over, and a result.
import { MlaError } from '../errors';
import { onAbort } from './abort-listeners';
import type { Generation } from './api';
import type { Engine, EngineRequest, Ticket } from './engine';
import { type PlannedSettings, resolveMaxTokens, type UsedSettings } from './options';
import { type Chunk, Clock, type Result } from './result';
import type { SamplingSettings, StepResult, TextStream } from './step-model';

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
}

type State = 'idle' | 'started' | 'finished' | 'failed';

/** A {@link Generation} of the engine in this thread. */
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
  private promptTokens = 0;
  private settings: UsedSettings | null = null;

  private readonly unread: Chunk[] = [];
  private readonly readers: { resolve(value: IteratorResult<Chunk, undefined>): void; reject(error: unknown): void }[] =
    [];
  /** Tokens whose text is not a whole character yet. */
  private held: { tokens: number[]; logprobs: number[] } = { tokens: [], logprobs: [] };
  private readonly tokens: number[] = [];
  private readonly logprobs: number[] = [];
  private text = '';

  private readonly outcome: Promise<Result>;
  private resolveOutcome!: (result: Result) => void;
  private rejectOutcome!: (error: unknown) => void;
  private stopListening: () => void = () => {};

  /** @internal */
  constructor(private readonly input: GenerationInput) {
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
      this.promptTokens = prompt.length;
      const { temperature, topK, topP, minP, seed, stopTokens } = settings;
      this.settings = { temperature, topK, topP, minP, seed, maxTokens, stopTokens };
      this.ticket = engine.submit(this.request(prompt, this.settings));
    } catch (error) {
      this.fail(error);
    }
  }

  private request(prompt: readonly number[], used: UsedSettings): EngineRequest {
    const { temperature, topK, topP, minP, seed, maxTokens, stopTokens } = used;
    const sampling: SamplingSettings = {
      temperature,
      topK,
      topP,
      minP,
      seed,
      stopIds: stopTokens,
      maxLength: prompt.length + maxTokens,
    };
    const isBehind = () => this.behind;
    return {
      prompt,
      sampling,
      get paused() {
        return isBehind();
      },
      onStart: () => this.clock?.prefill(),
      onToken: (result) => this.accept(result),
      onError: (error) => this.fail(error),
    };
  }

  private accept({ token, logprob, finished }: StepResult): void {
    this.clock?.token();
    this.tokens.push(token);
    this.logprobs.push(logprob);
    this.held.tokens.push(token);
    this.held.logprobs.push(logprob);
    const { text } = this.input;
    // What ends the text is not part of it.
    let added = finished === 'stop' ? '' : (text?.push(token) ?? '');
    if (finished !== null) added += text?.end() ?? '';
    this.text += added;
    if (added !== '' || text === null || finished !== null) {
      this.emit({ text: added, ...this.held });
      this.held = { tokens: [], logprobs: [] };
    }
    if (finished !== null) this.finish(finished);
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

  private finish(finishReason: 'stop' | 'length'): void {
    const usage = { promptTokens: this.promptTokens, completionTokens: this.tokens.length };
    this.state = 'finished';
    this.release();
    this.resolveOutcome({
      text: this.text,
      tokens: this.tokens,
      logprobs: this.logprobs,
      finishReason,
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
  }
}
