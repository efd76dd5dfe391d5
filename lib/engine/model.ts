// engine/model.ts - the public model: what loadModel returns.
import { invalidArg, MlaError } from '../errors';
import type { MemoryPlan } from '../model';
import type { DeviceInfo } from '../native';
import type { BuiltInTemplate, ChatMessage, Json, RenderChatOptions } from '../text';
import { Engine } from './engine';
import { Generation } from './generation';
import {
  GENERATE_OPTIONS,
  type GenerateOptions,
  type PlannedSettings,
  planSettings,
  readOptions,
  readScoreOptions,
  type ScoreOptions,
  tokenIds,
} from './options';
import type { Score } from './result';
import type { EngineModel, TextStream } from './step-model';

/** What a model says of itself. */
export interface ModelInfo {
  /** the checkpoint folder */
  readonly directory: string;
  /** model_type of config.json */
  readonly modelType: string;
  readonly layers: number;
  readonly vocabSize: number;
  /** tokens one sequence may have in all */
  readonly context: number;
  /** sequences that run at once; further ones wait */
  readonly maxSequences: number;
  readonly device: DeviceInfo;
  /** bytes on the device, by use */
  readonly memory: MemoryPlan;
  /** whether texts work; without tokenizer.json only token ids do */
  readonly hasTokenizer: boolean;
  /** whether `chat` works */
  readonly hasChatTemplate: boolean;
  /** milliseconds */
  readonly loadMs: number;
  /** ids that end a text */
  readonly eosIds: readonly number[];
}

/** Options of `Model.chat`: those of `generate`, and what the template may use. */
export interface ChatOptions extends GenerateOptions {
  /** Definitions of functions, as JSON objects, for templates that have a place for them. */
  tools?: readonly Json[] | undefined;
  /** For models that answer with or without reasoning. Default: as the template does it. */
  thinking?: boolean | undefined;
  /** Use this built-in format instead of the checkpoint's template. */
  template?: BuiltInTemplate | undefined;
}

const CHAT_OPTIONS = [...GENERATE_OPTIONS, 'tools', 'thinking', 'template'] as const;

/** The text side of a model, as the engine uses it. */
export interface ModelText {
  /** ids of a text to be continued, BOS as tokenizer_config.json says */
  encodePrompt(text: string): Promise<readonly number[]>;
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

/**
 * A loaded model. Any number of generations may run at once; they share the steps of the device, and more than
 * `info.maxSequences` wait for their turn. Dispose it when done (`await using` does): weights are large.
 */
export class Model implements AsyncDisposable {
  private readonly model: EngineModel;
  private readonly engine: Engine;
  private readonly text: ModelText | null;
  /** Device, limits and identity. */
  readonly info: ModelInfo;
  private readonly disposing = new AbortController();
  private disposed: Promise<void> | null = null;

  /** @internal */
  constructor({ model, text, info, prefillChunk }: ModelParts) {
    this.model = model;
    this.engine = new Engine(model, prefillChunk);
    this.text = text;
    this.info = info;
  }

  /**
   * Continues a raw text (with the BOS that tokenizer_config.json asks for) or token ids (as they are).
   * @throws ERR_INVALID_ARG for a wrong prompt or option, ERR_DISPOSED, ERR_TOKENIZER for a text without a tokenizer.
   *   What shows only later rejects: ERR_CONTEXT_LENGTH, ERR_NO_PAGES, errors of the device
   */
  generate(prompt: string | readonly number[], options?: GenerateOptions): Generation {
    this.checkAlive();
    const settings = this.plan(readOptions(options, GENERATE_OPTIONS));
    return this.start(settings, this.encoder(prompt));
  }

  /**
   * Answers a conversation, which the checkpoint's chat template turns into a prompt. Nothing in the messages can become
   * a control token.
   * @throws as `generate`; a broken or missing template, or messages it refuses, reject with ERR_TEMPLATE
   */
  chat(messages: readonly ChatMessage[], options?: ChatOptions): Generation {
    this.checkAlive();
    const { tools, thinking, template, ...given } = readOptions(options, CHAT_OPTIONS);
    const settings = this.plan(given);
    if (!Array.isArray(messages)) throw invalidArg('messages', 'an array of messages', messages);
    const text = this.needText();
    // The template's own options are checked, like the messages, where they are read.
    const chosen = Object.fromEntries(
      Object.entries({ tools, thinking, template }).filter(([, value]) => value !== undefined),
    );
    return this.start(settings, () => text.encodeChat(messages, chosen));
  }

  /**
   * Log-probabilities of a text, or of token ids, under the model.
   * @returns rejects with ERR_INVALID_ARG, ERR_CONTEXT_LENGTH, ERR_NO_PAGES, ERR_DISPOSED, or the signal's reason
   */
  async score(prompt: string | readonly number[], options?: ScoreOptions): Promise<Score> {
    this.checkAlive();
    const { top, logits, signal: given } = readScoreOptions(options);
    const signal = given === undefined ? this.disposing.signal : AbortSignal.any([given, this.disposing.signal]);
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

  /**
   * The token ids of a text to be continued: with the BOS that tokenizer_config.json asks for.
   * @returns rejects with ERR_TOKENIZER without a tokenizer, ERR_INVALID_ARG, ERR_DISPOSED
   */
  async encode(text: string): Promise<readonly number[]> {
    this.checkAlive();
    if (typeof text !== 'string') throw invalidArg('text', 'a string', text);
    return this.needText().encodePrompt(text);
  }

  /**
   * The text of token ids, without special tokens; bytes that are not UTF-8 become U+FFFD.
   * @throws ERR_TOKENIZER without a tokenizer, ERR_INVALID_ARG, ERR_DISPOSED
   */
  decode(ids: readonly number[]): string {
    this.checkAlive();
    const stream = this.needText().stream();
    const pieces = tokenIds('ids', ids, this.info.vocabSize).map((id) => stream.push(id));
    return pieces.join('') + stream.end();
  }

  /** How many requests run and wait, and how many steps are in flight. */
  stats(): { running: number; waiting: number; stepsInFlight: number } {
    return this.engine.stats();
  }

  /** Ends all generations (they reject with ERR_DISPOSED) and gives all memory back. Idempotent. */
  dispose(): Promise<void> {
    this.disposed ??= this.disposeOnce();
    return this.disposed;
  }

  /** As {@link Model.dispose}, for `await using`. */
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

  private start(settings: PlannedSettings, encode: () => Promise<readonly number[]>): Generation {
    return new Generation({
      engine: this.engine,
      context: this.info.context,
      loadMs: this.info.loadMs,
      settings,
      text: this.text?.stream() ?? null,
      encode: async () => {
        this.checkAlive();
        return encode();
      },
    });
  }

  /** Checks a prompt now; the ids come later. */
  private encoder(prompt: unknown): () => Promise<readonly number[]> {
    if (typeof prompt === 'string') {
      const text = this.needText();
      return () => text.encodePrompt(prompt);
    }
    if (!Array.isArray(prompt)) throw invalidArg('prompt', 'a string or an array of token ids', prompt);
    const { context } = this.info;
    // An array that cannot fit is not looked through.
    const { length } = prompt;
    if (length > context) {
      return async () => {
        throw new MlaError(
          'ERR_CONTEXT_LENGTH',
          `The prompt has ${length} tokens; expected fewer than the context of ${context}.`,
        );
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
