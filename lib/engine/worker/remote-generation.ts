// engine/worker/remote-generation.ts - a generation that runs in a model's worker thread. Chunks flow under credit: a
// consumer that falls behind stops asking for more, and then the worker's own generation pauses.
import { MlaError } from '../../errors';
import { onAbort } from '../abort-listeners';
import type { Generation } from '../api';
import type { Chunk, Result } from '../result';
import type { ModelThread } from './model-thread';
import type { Invocation } from './protocol';

/** Chunks that may be on their way or unread. */
export const CREDIT_CHUNKS = 64;

type State = 'idle' | 'started' | 'finished' | 'failed';

interface Reader {
  resolve(value: IteratorResult<Chunk, undefined>): void;
  reject(error: unknown): void;
}

/** A {@link Generation} in the worker thread of its model. */
export class RemoteGeneration implements Generation {
  private state: State = 'idle';
  private error: unknown;
  private iterating = false;
  private left = false;
  private resultWanted = false;
  /** whether the process is kept alive for `result` */
  private holding = false;

  private id = 0;
  /** chunks that the worker may send in all, and how many have been read */
  private allowed = 0;
  private read = 0;
  private readonly unread: Chunk[] = [];
  private readonly readers: Reader[] = [];

  private readonly outcome: Promise<Result>;
  private resolveOutcome!: (result: Result) => void;
  private rejectOutcome!: (error: unknown) => void;
  private stopListening: () => void = () => {};

  /** @param signal the caller's own: its reason never crosses to the worker, and so stays what it is */
  constructor(
    private readonly thread: ModelThread,
    private readonly invocation: Invocation,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.outcome = new Promise((resolve, reject) => {
      this.resolveOutcome = resolve;
      this.rejectOutcome = reject;
    });
    this.outcome.catch(() => {}); // whoever reads `result` still gets the rejection
  }

  get result(): Promise<Result> {
    if (!this.resultWanted) {
      this.resultWanted = true;
      this.start();
      this.allow(null);
      this.holding = this.state === 'started';
      if (this.holding) this.thread.hold();
    }
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
      this.read++;
      this.allowMore();
      return Promise.resolve({ done: false, value: chunk });
    }
    if (this.left || this.state === 'finished') return Promise.resolve({ done: true, value: undefined });
    if (this.state === 'failed') return Promise.reject(this.error);
    this.allowMore();
    this.thread.hold();
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
    const { signal, invocation } = this;
    if (signal?.aborted) {
      this.fail(signal.reason);
      return;
    }
    try {
      this.id = this.thread.request((id) => ({ kind: 'generate', id, ...invocation }), {
        chunk: ({ chunk }) => this.accept(chunk),
        end: (result) => this.finish(result as Result),
        fail: (error) => this.fail(error),
      });
    } catch (error) {
      this.fail(error);
      return;
    }
    this.stopListening = onAbort(signal, () => this.abort(signal?.reason));
  }

  /** Lets the worker send as many as the consumer takes in its stride. */
  private allowMore(): void {
    if (this.allowed - this.read <= CREDIT_CHUNKS / 2) this.allow(this.read + CREDIT_CHUNKS);
  }

  /** @param chunks in all; null is as many as there are */
  private allow(chunks: number | null): void {
    if (this.state !== 'started' || this.allowed === Number.POSITIVE_INFINITY) return;
    this.allowed = chunks ?? Number.POSITIVE_INFINITY;
    this.thread.post({ kind: 'credit', id: this.id, chunks });
  }

  private accept(chunk: Chunk): void {
    const reader = this.takeReader();
    if (reader === undefined) this.unread.push(chunk);
    else {
      this.read++;
      reader.resolve({ done: false, value: chunk });
    }
  }

  private finish(result: Result): void {
    if (this.state !== 'started') return;
    this.settle('finished');
    this.resolveOutcome(result);
    for (let reader = this.takeReader(); reader !== undefined; reader = this.takeReader())
      reader.resolve({ done: true, value: undefined });
  }

  /** Ends the generation at once; chunks that nobody has read are dropped. */
  private abort(reason: unknown): void {
    if (this.state === 'finished' || this.state === 'failed') return;
    if (this.state === 'started') this.thread.drop(this.id);
    this.unread.length = 0;
    this.fail(reason);
  }

  /** Chunks that came before stay readable. */
  private fail(error: unknown): void {
    if (this.state === 'finished' || this.state === 'failed') return;
    this.error = error;
    this.settle('failed');
    this.rejectOutcome(error);
    for (let reader = this.takeReader(); reader !== undefined; reader = this.takeReader()) {
      if (this.left) reader.resolve({ done: true, value: undefined });
      else reader.reject(error);
    }
  }

  private takeReader(): Reader | undefined {
    const reader = this.readers.shift();
    if (reader !== undefined) this.thread.letGo();
    return reader;
  }

  private settle(state: 'finished' | 'failed'): void {
    this.state = state;
    this.stopListening();
    if (this.holding) this.thread.letGo();
    this.holding = false;
  }
}
