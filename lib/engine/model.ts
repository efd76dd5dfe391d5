// engine/model.ts - the public model, in the thread that loaded it.
import { invalidArg, MlaError } from '../errors';
import type { ChatMessage, RenderChatOptions } from '../text';
import { onAbort } from './abort-listeners';
import type { ChatOptions, Generation, Model, ModelInfo, Sequence, SignalOptions, TemplateOptions } from './api';
import { Engine } from './engine';
import { type GenerationOwner, LocalGeneration } from './generation';
import type { CompleteOptions, GenerateOptions, ScoreOptions } from './options';
import type { EngineStats, Result, Score } from './result';
import { LocalSequence, type SequenceHost } from './sequence';
import {
  abortSignal,
  COMPLETE_OPTIONS,
  completions,
  GENERATE_OPTIONS,
  type PlannedSettings,
  planSettings,
  readOptions,
  readScoreOptions,
  resolveMaxTokens,
  tokenIds,
} from './settings';
import type { EngineModel, KeptPages, TextStream } from './step-model';

const TEMPLATE_OPTIONS = ['tools', 'thinking', 'template'] as const;
export const CHAT_OPTIONS = [...GENERATE_OPTIONS, ...TEMPLATE_OPTIONS] as const;

type Encode = () => Promise<readonly number[]>;

/** The text side of a model, as the engine uses it. */
export interface ModelText {
  /** ids of a text to be continued, BOS as tokenizer_config.json says */
  encodePrompt(text: string): Promise<readonly number[]>;
  /** ids of a text that goes on another: no BOS */
  encodeMore(text: string): Promise<readonly number[]>;
  /** ids of a conversation, up to where the answer begins */
  encodeChat(messages: readonly ChatMessage[], options: RenderChatOptions): Promise<readonly number[]>;
  stream(): TextStream;
  dispose(): Promise<void>;
}

/** What a model is made from. */
export interface ModelParts {
  readonly model: EngineModel;
  readonly text: ModelText | null;
  readonly info: ModelInfo;
  readonly prefillChunk?: number | undefined;
}

/** A {@link Model} in this thread: checks what is asked for, and hands it to the engine. */
export class LocalModel implements Model {
  private readonly model: EngineModel;
  private readonly engine: Engine;
  private readonly text: ModelText | null;
  readonly info: ModelInfo;
  private readonly disposing = new AbortController();
  private disposed: Promise<void> | null = null;

  constructor({ model, text, info, prefillChunk }: ModelParts) {
    this.model = model;
    this.engine = new Engine(model, prefillChunk);
    this.text = text;
    this.info = info;
  }

  generate(prompt: string | readonly number[], options?: GenerateOptions): Generation {
    this.checkAlive();
    const settings = this.plan(readOptions(options, GENERATE_OPTIONS));
    return this.start(settings, this.encoder(prompt));
  }

  chat(messages: readonly ChatMessage[], options?: ChatOptions): Generation {
    this.checkAlive();
    const { tools, thinking, template, ...given } = readOptions(options, CHAT_OPTIONS);
    const settings = this.plan(given);
    return this.start(settings, this.chatEncoder(messages, { tools, thinking, template }));
  }

  async complete(prompt: string | readonly number[], options?: CompleteOptions): Promise<Result[]> {
    this.checkAlive();
    const { n, ...given } = readOptions(options, COMPLETE_OPTIONS);
    const count = completions(n);
    const settings = this.plan(given);
    const encode = this.encoder(prompt);
    if (count === 1) return [await this.start(settings, encode).result];
    return this.completeSeveral(settings, encode, count);
  }

  async createSequence(): Promise<Sequence> {
    this.checkAlive();
    return new LocalSequence(this.host);
  }

  async restore(path: string, options?: SignalOptions): Promise<Sequence> {
    this.checkAlive();
    checkPath(path);
    const signal = this.withDisposing(signalOf(options));
    const { tokens, kept } = await this.model.restore(path, signal);
    return new LocalSequence(this.host, tokens, kept);
  }

  async score(prompt: string | readonly number[], options?: ScoreOptions): Promise<Score> {
    this.checkAlive();
    const { top, logits, signal: given } = readScoreOptions(options);
    const signal = this.withDisposing(given);
    const encode = this.encoder(prompt);
    signal.throwIfAborted();
    const tokens = await encode();
    const { context } = this.info;
    if (tokens.length === 0) throw invalidArg('prompt', 'at least one token', tokens);
    if (tokens.length > context) {
      throw new MlaError(
        'ERR_CONTEXT_LENGTH',
        `The text has ${tokens.length} tokens; expected at most the context of ${context}.`,
      );
    }
    const scored = await this.engine.withSequence(() => this.model.score(tokens, { top, logits, signal }), signal);
    return {
      tokens,
      logprobs: Array.from(scored.logprobs, (value, i) => (i === 0 ? null : value)),
      top: tokens.map((_, i) => (i === 0 ? null : (scored.top[i] ?? []))),
      logits: scored.logits,
    };
  }

  async encode(text: string): Promise<readonly number[]> {
    this.checkAlive();
    if (typeof text !== 'string') throw invalidArg('text', 'a string', text);
    return this.needText().encodePrompt(text);
  }

  async encodeChat(messages: readonly ChatMessage[], options?: TemplateOptions): Promise<readonly number[]> {
    this.checkAlive();
    return this.chatEncoder(messages, readOptions(options, TEMPLATE_OPTIONS))();
  }

  async decode(ids: readonly number[]): Promise<string> {
    this.checkAlive();
    const stream = this.needText().stream();
    const pieces = tokenIds('ids', ids, this.info.vocabSize).map((id) => stream.push(id));
    return pieces.join('') + stream.end();
  }

  async stats(): Promise<EngineStats> {
    this.checkAlive();
    return this.engine.stats();
  }

  dispose(): Promise<void> {
    this.disposed ??= this.disposeOnce();
    return this.disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  private async disposeOnce(): Promise<void> {
    const reason = disposedError();
    this.disposing.abort(reason);
    await this.engine.close(reason);
    await Promise.all([this.model.dispose(), this.text?.dispose()]);
  }

  private plan(given: Parameters<typeof planSettings>[0]): PlannedSettings {
    const { config, generationDefaults: defaults } = this.model;
    return planSettings(given, { vocabSize: config.vocab_size, eosIds: this.info.eosIds, defaults });
  }

  private start(settings: PlannedSettings, encode: Encode, owner?: GenerationOwner): Generation {
    return new LocalGeneration({
      engine: this.engine,
      context: this.info.context,
      loadMs: this.info.loadMs,
      settings,
      text: this.text?.stream() ?? null,
      owner,
      encode: async () => {
        this.checkAlive();
        return encode();
      },
    });
  }

  /** The prompt is computed once, by a sequence; each continuation goes on a fork of it. */
  private async completeSeveral(settings: PlannedSettings, encode: Encode, count: number): Promise<Result[]> {
    const stop = new AbortController();
    const signals = [stop.signal, ...(settings.signal === undefined ? [] : [settings.signal])];
    const signal = AbortSignal.any(signals);
    const prompt = await encode();
    resolveMaxTokens(settings.maxTokens, prompt.length, this.info.context);
    const kept = await this.prefill(prompt, null, signal, settings);
    try {
      const one = (i: number) => {
        const seed = (settings.seed + i) % Number.MAX_SAFE_INTEGER;
        const owner = { kept, grow: (_: unknown, rows: KeptPages) => rows.dispose(), release: () => {} };
        return this.start({ ...settings, seed, signal }, async () => prompt, owner).result;
      };
      const all = Array.from({ length: count }, (_, i) => one(i));
      try {
        return await Promise.all(all);
      } catch (error) {
        stop.abort(error);
        await Promise.allSettled(all);
        throw error;
      }
    } finally {
      kept.dispose();
    }
  }

  /** Brings a text into the cache, and keeps its rows. */
  private prefill(
    prompt: readonly number[],
    kept: KeptPages | null,
    signal: AbortSignal,
    { priority, cacheSalt: salt }: { priority: number; cacheSalt: string } = { priority: 0, cacheSalt: '' },
  ): Promise<KeptPages> {
    if (prompt.length === 0) throw invalidArg('prompt', 'at least one token', prompt);
    if (prompt.length > this.info.context) throw tooLong(prompt.length, this.info.context);
    signal.throwIfAborted();
    return new Promise((resolve, reject) => {
      const ticket = this.engine.submit({
        prompt,
        sampling: null,
        priority,
        kept,
        salt,
        paused: false,
        onStart: () => {},
        onToken: () => false,
        onKept: (rows) => {
          stopListening();
          resolve(rows);
        },
        onError: (error) => {
          stopListening();
          reject(error);
        },
      });
      const stopListening = onAbort(signal, () => {
        ticket.cancel();
        reject(signal.reason);
      });
    });
  }

  private get host(): SequenceHost {
    return {
      encoder: (prompt, first) => this.encoder(prompt, first),
      checkAlive: () => this.checkAlive(),
      generate: (encode, options, signal, owner) => {
        const settings = this.plan(readOptions(options, GENERATE_OPTIONS));
        const both = settings.signal === undefined ? signal : AbortSignal.any([settings.signal, signal]);
        return this.start({ ...settings, signal: both }, encode, owner);
      },
      prefill: (tokens, kept, signal) => this.prefill(tokens, kept, signal),
      save: (path, tokens, kept, signal) => {
        checkPath(path);
        return this.model.save(path, tokens, kept, this.withDisposing(signal));
      },
      signalOf,
    };
  }

  private withDisposing(signal: AbortSignal | undefined): AbortSignal {
    return signal === undefined ? this.disposing.signal : AbortSignal.any([signal, this.disposing.signal]);
  }

  private chatEncoder(messages: unknown, options: Record<string, unknown>): Encode {
    if (!Array.isArray(messages)) throw invalidArg('messages', 'an array of messages', messages);
    const text = this.needText();
    // The template's own options are checked, like the messages, where they are read.
    const chosen = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    return () => text.encodeChat(messages, chosen);
  }

  /** Checks a prompt now; the ids come later. A text that goes on gets no BOS. */
  private encoder(prompt: unknown, first = () => true): Encode {
    if (typeof prompt === 'string') {
      const text = this.needText();
      return () => (first() ? text.encodePrompt(prompt) : text.encodeMore(prompt));
    }
    if (!Array.isArray(prompt)) throw invalidArg('prompt', 'a string or an array of token ids', prompt);
    const { context } = this.info;
    // An array that cannot fit is not looked through.
    const { length } = prompt;
    if (length > context) {
      return async () => {
        throw tooLong(length, context);
      };
    }
    const ids = tokenIds('prompt', prompt, this.model.config.vocab_size);
    return async () => ids;
  }

  private needText(): ModelText {
    if (this.text !== null) return this.text;
    throw new MlaError(
      'ERR_TOKENIZER',
      `${this.info.directory} has no tokenizer.json, so texts do not work. Pass an array of token ids as the prompt (--tokens on the command line).`,
    );
  }

  private checkAlive(): void {
    if (this.disposed !== null) throw disposedError();
  }
}

function disposedError(): MlaError {
  return new MlaError('ERR_DISPOSED', 'The model has been disposed.');
}

function tooLong(tokens: number, context: number): MlaError {
  return new MlaError(
    'ERR_CONTEXT_LENGTH',
    `The prompt has ${tokens} tokens; expected fewer than the context of ${context}.`,
  );
}

function signalOf(options: SignalOptions | undefined): AbortSignal | undefined {
  return abortSignal(readOptions(options, ['signal'] as const).signal);
}

function checkPath(path: unknown): void {
  if (typeof path !== 'string' || path === '') throw invalidArg('path', 'the path of a file', path);
}
