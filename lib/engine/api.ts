// engine/api.ts - the public model as its users see it, in whichever thread it runs: LocalModel is the model itself,
// RemoteModel stands for one in a worker thread. So all but what starts a generation gives promises.
import type { MemoryPlan } from '../model';
import type { DeviceInfo } from '../native';
import type { BuiltInTemplate, ChatMessage, Json } from '../text';
import type { CompleteOptions, GenerateOptions, ScoreOptions } from './options';
import type { Chunk, EngineStats, Result, Score } from './result';

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

/** What the chat template may use. */
export interface TemplateOptions {
  /** Definitions of functions, as JSON objects, for templates that have a place for them. */
  tools?: readonly Json[] | undefined;
  /** For models that answer with or without reasoning. Default: as the template does it. */
  thinking?: boolean | undefined;
  /** Use this built-in format instead of the checkpoint's template. */
  template?: BuiltInTemplate | undefined;
}

/** Options of `Model.chat`: those of `generate`, and what the template may use. */
export interface ChatOptions extends GenerateOptions, TemplateOptions {}

/** Options of what only needs to be stopped. */
export interface SignalOptions {
  signal?: AbortSignal | undefined;
}

/**
 * What `generate` and `chat` return: iterate over it for chunks as they come, await `result` for the whole, or both.
 *
 * - Work starts at the first `next()` of the iterator, or when `result` is first read.
 * - Leaving the loop early aborts; `result` then rejects with ERR_ABORTED. After an abort by the signal, both the
 *   iterator and `result` reject with the signal's reason.
 * - There is one consumer: a second iterator is refused with ERR_STATE.
 * - A consumer that falls behind pauses this generation (and no other) until it catches up, unless `result` has been
 *   asked for: then the chunks are kept until they are read.
 * - A failure nobody looks at is not an unhandled rejection.
 */
export interface Generation extends AsyncIterable<Chunk> {
  /** The finished generation. Reading this property starts the work. */
  readonly result: Promise<Result>;
  /** @throws ERR_STATE when there is an iterator already */
  [Symbol.asyncIterator](): AsyncIterator<Chunk, undefined>;
}

/**
 * A text that keeps its rows in the latent cache between generations. It takes no place among the running sequences
 * while nothing is generated, but its pages stay taken until it is disposed.
 */
export interface Sequence extends AsyncDisposable {
  /** all tokens so far: what was appended and what was generated */
  readonly tokens: readonly number[];
  /** how many of them the cache holds; the others are computed when they are first needed */
  readonly cachedTokens: number;
  readonly disposed: boolean;
  /**
   * Appends a text (with BOS if the sequence is empty and tokenizer_config.json asks for it) or token ids, and brings
   * the cache up to date. Rejects as `Model.generate` does, or with ERR_STATE while a generation runs; unchanged then.
   */
  append(prompt: string | readonly number[], options?: SignalOptions): Promise<void>;
  /**
   * Appends `prompt` (which may be empty if the sequence is not) and continues. When the generation has finished, the
   * sequence has the prompt and all tokens of the result; when it was aborted or failed, it is as it was before.
   * @throws as `Model.generate`; a second generation at the same time rejects with ERR_STATE
   */
  generate(prompt: string | readonly number[], options?: GenerateOptions): Generation;
  /**
   * Another sequence with the same tokens. Pages are shared; one is copied only when it is written to.
   * Rejects with ERR_STATE while a generation runs, ERR_DISPOSED.
   */
  fork(): Promise<Sequence>;
  /**
   * Writes tokens and cache to a file, which `Model.restore` reads. The file appears whole or not at all.
   * Rejects with ERR_STATE while a generation runs, ERR_FILE, ERR_DISPOSED, or the signal's reason.
   */
  save(path: string, options?: SignalOptions): Promise<void>;
  /** Gives its pages back; a running generation is aborted. Idempotent. */
  dispose(): Promise<void>;
}

/**
 * A loaded model. Any number of generations may run at once; they share the steps of the device, and more than
 * `info.maxSequences` wait for their turn. Dispose it when done (`await using` does): weights are large.
 */
export interface Model extends AsyncDisposable {
  /** Device, limits and identity. */
  readonly info: ModelInfo;
  /**
   * Continues a raw text (with the BOS that tokenizer_config.json asks for) or token ids (as they are).
   * @throws ERR_INVALID_ARG for a wrong prompt or option, ERR_DISPOSED, ERR_TOKENIZER for a text without a tokenizer.
   *   What shows only later rejects: ERR_CONTEXT_LENGTH, ERR_NO_PAGES, errors of the device
   */
  generate(prompt: string | readonly number[], options?: GenerateOptions): Generation;
  /**
   * Answers a conversation, which the checkpoint's chat template turns into a prompt. Nothing in the messages can become
   * a control token.
   * @throws as `generate`; a broken or missing template, or messages it refuses, reject with ERR_TEMPLATE
   */
  chat(messages: readonly ChatMessage[], options?: ChatOptions): Generation;
  /**
   * `n` continuations of one prompt, which is computed once. Completion i has the seed of the first plus i.
   * Rejects with the first failure (the others are then aborted), as `generate` throws and rejects.
   */
  complete(prompt: string | readonly number[], options?: CompleteOptions): Promise<Result[]>;
  /**
   * Log-probabilities of a text, or of token ids, under the model.
   * Rejects with ERR_INVALID_ARG, ERR_CONTEXT_LENGTH, ERR_NO_PAGES, ERR_DISPOSED, or the signal's reason.
   */
  score(prompt: string | readonly number[], options?: ScoreOptions): Promise<Score>;
  /** A new, empty sequence. Rejects with ERR_DISPOSED. */
  createSequence(): Promise<Sequence>;
  /**
   * Reads what `Sequence.save` wrote. Rejects with ERR_SNAPSHOT for a file that is not one, is damaged, or was made by
   * another model, dtype or layout; with ERR_FILE, ERR_NO_PAGES, ERR_CONTEXT_LENGTH, ERR_DISPOSED or the signal's reason.
   */
  restore(path: string, options?: SignalOptions): Promise<Sequence>;
  /**
   * The token ids of a text to be continued: with the BOS that tokenizer_config.json asks for.
   * Rejects with ERR_TOKENIZER without a tokenizer, ERR_INVALID_ARG, ERR_DISPOSED.
   */
  encode(text: string): Promise<readonly number[]>;
  /** The token ids of a conversation, up to where the answer begins: what `chat` gives the model. Rejects as `chat`. */
  encodeChat(messages: readonly ChatMessage[], options?: TemplateOptions): Promise<readonly number[]>;
  /**
   * The text of token ids, without special tokens; bytes that are not UTF-8 become U+FFFD.
   * Rejects with ERR_TOKENIZER without a tokenizer, ERR_INVALID_ARG, ERR_DISPOSED.
   */
  decode(ids: readonly number[]): Promise<string>;
  /** What the engine is doing and has done. Rejects with ERR_DISPOSED. */
  stats(): Promise<EngineStats>;
  /** Ends all generations (they reject with ERR_DISPOSED) and gives all memory back. Idempotent. */
  dispose(): Promise<void>;
}
