// engine/api.ts - the public model as its users see it, in whichever thread it runs: LocalModel is the model itself,
// RemoteModel stands for one in a worker thread.
import type { MemoryPlan } from '../model';
import type { DeviceInfo } from '../native';
import type { BuiltInTemplate, ChatMessage, Json } from '../text';
import type { GenerateOptions, ScoreOptions } from './options';
import type { Chunk, Result, Score } from './result';

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

/** What goes on in a model at the moment. */
export interface ModelStats {
  /** requests that take part in steps */
  running: number;
  /** requests that wait for a place */
  waiting: number;
  stepsInFlight: number;
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
   * Log-probabilities of a text, or of token ids, under the model.
   * @returns rejects with ERR_INVALID_ARG, ERR_CONTEXT_LENGTH, ERR_NO_PAGES, ERR_DISPOSED, or the signal's reason
   */
  score(prompt: string | readonly number[], options?: ScoreOptions): Promise<Score>;

  /**
   * The token ids of a text to be continued: with the BOS that tokenizer_config.json asks for.
   * @returns rejects with ERR_TOKENIZER without a tokenizer, ERR_INVALID_ARG, ERR_DISPOSED
   */
  encode(text: string): Promise<readonly number[]>;

  /**
   * The text of token ids, without special tokens; bytes that are not UTF-8 become U+FFFD.
   * @throws ERR_TOKENIZER without a tokenizer, ERR_INVALID_ARG, ERR_DISPOSED
   */
  decode(ids: readonly number[]): string;

  /** How many requests run and wait, and how many steps are in flight. */
  stats(): ModelStats;

  /** Ends all generations (they reject with ERR_DISPOSED) and gives all memory back. Idempotent. */
  dispose(): Promise<void>;

  /** As {@link Model.dispose}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}
