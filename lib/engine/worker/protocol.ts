// engine/worker/protocol.ts - what a model's worker thread and the thread that uses the model say to each other.
//
// Every request has a number, which all answers to it carry. A request is a method of an object of the worker (the model,
// or a sequence) with plain arguments. Chunks of a generation flow under credit: the worker sends
// no more than the consumer has asked for.
import type { LoadProgress } from '../../model';
import type { Generation, Model, ModelInfo, Sequence } from '../api';
import type { LoadOptions } from '../load';
import type { Chunk, Result } from '../result';
import type { PackedError } from './packed-error';

/** What the worker is started with. */
export interface WorkerStart {
  readonly dir: string;
  /** functions and signals left out */
  readonly options: LoadOptions;
  /** whether progress is to be told */
  readonly progress: boolean;
}

/** What a method gives: a stream of chunks, a sequence that stays in the worker, or plain data. */
type Gives<M> = M extends (...args: never[]) => infer R
  ? R extends Generation
    ? 'generation'
    : R extends Promise<Sequence>
      ? 'sequence'
      : 'value'
  : never;

/** The methods of T that cross, each with what it gives: adding a method to T without adding it below does not compile. */
type Methods<T> = {
  readonly [M in keyof T as T[M] extends (...args: never[]) => unknown ? (M extends string ? M : never) : never]: Gives<
    T[M]
  >;
};

/** How the methods of a model cross. */
export const MODEL_METHODS: Methods<Model> = {
  generate: 'generation',
  chat: 'generation',
  complete: 'value',
  score: 'value',
  createSequence: 'sequence',
  restore: 'sequence',
  encode: 'value',
  encodeChat: 'value',
  decode: 'value',
  stats: 'value',
  dispose: 'value',
};

/** How the methods of a sequence cross. */
export const SEQUENCE_METHODS: Methods<Sequence> = {
  append: 'value',
  generate: 'generation',
  fork: 'sequence',
  save: 'value',
  dispose: 'value',
};

/** The model among the objects of the worker; sequences have numbers from 1 on. */
export const MODEL = 0;

/** What a sequence says of itself. */
export interface SequenceState {
  readonly tokens: readonly number[];
  readonly cachedTokens: number;
}

/** A method to be called in the worker. */
export interface Invocation {
  /** {@link MODEL}, or the number of a sequence */
  readonly target: number;
  readonly method: string;
  readonly args: readonly unknown[];
  /** which argument is an object whose `signal` is to be one that an 'abort' of this request aborts */
  readonly signalIn: number | null;
}

/** From the user of the model to the worker. */
export type Request =
  /** calls a method; answered by 'returned' or 'failed' */
  | ({ readonly kind: 'call'; readonly id: number } & Invocation)
  /** starts a generation; answered by any number of 'chunk', then 'finished' or 'failed' */
  | ({ readonly kind: 'generate'; readonly id: number } & Invocation)
  /** how many chunks of a generation may be sent, all that were sent before included; null is all */
  | { readonly kind: 'credit'; readonly id: number; readonly chunks: number | null }
  /** aborts a call, or ends a generation: nothing more is wanted of it */
  | { readonly kind: 'abort'; readonly id: number };

/** From the worker to the user of the model. */
export type Reply =
  | { readonly kind: 'progress'; readonly progress: LoadProgress }
  | { readonly kind: 'loaded'; readonly info: ModelInfo }
  | { readonly kind: 'returned'; readonly id: number; readonly value: unknown }
  /** of a sequence, before the last answer to any request to it */
  | { readonly kind: 'state'; readonly target: number; readonly state: SequenceState }
  | { readonly kind: 'chunk'; readonly id: number; readonly chunk: Chunk }
  | { readonly kind: 'finished'; readonly id: number; readonly result: Result }
  | { readonly kind: 'failed'; readonly id: number; readonly error: PackedError };

/** What the methods that give a sequence return. */
export interface NewSequence {
  readonly target: number;
  readonly state: SequenceState;
}

/** The number of the one request that needs no message: loading. */
export const LOADING = 0;
