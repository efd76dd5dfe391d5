// engine/worker/model-thread.ts - the worker thread of one model, seen from outside: sends requests, hands out replies, and
// fails whatever is open when the thread is lost. The thread holds the process only while somebody waits for it.
import { Worker } from 'node:worker_threads';
import { MlaError } from '../../errors';
import type { LoadProgress } from '../../model';
import { entryFile } from '../../text/entry-file';
import type { ModelInfo } from '../api';
import { unpackError } from './packed-error';
import {
  type Invocation,
  LOADING,
  MODEL,
  type Reply,
  type Request,
  type SequenceState,
  type WorkerStart,
} from './protocol';

/** Who gets the answers to one request. */
export interface Receiver {
  /** an answer that others may follow */
  chunk?(reply: Extract<Reply, { kind: 'chunk' }>): void;
  /** the last answer */
  end(value: unknown): void;
  /** the last answer, where something went wrong */
  fail(error: unknown): void;
}

/** Posts requests to a model's worker thread and hands out what comes back. */
export class ModelThread {
  private readonly worker: Worker;
  private readonly receivers = new Map<number, Receiver>();
  private lastId = LOADING;
  private waiters = 0;
  /** Why nothing can be asked any more. */
  private closed: { reason: unknown } | null = null;
  private readonly exited: Promise<void>;
  private readonly sequences = new Map<number, (state: SequenceState) => void>();

  /** @param onProgress must not throw */
  constructor(
    start: WorkerStart,
    private readonly onProgress: (progress: LoadProgress) => void,
  ) {
    // Flags of this process (--require, --inspect-brk) are not meant for a thread that runs nobody's code but ours.
    this.worker = new Worker(entryFile(__dirname, 'model-worker'), { workerData: start, execArgv: [] });
    this.worker.unref();
    let cause: unknown;
    this.exited = new Promise((resolve) => {
      this.worker
        .on('message', (replies: readonly Reply[]) => {
          for (const reply of replies) this.hand(reply);
        })
        .on('error', (error) => {
          cause = error;
        })
        .on('exit', (code) => {
          this.close(lostError(cause, code));
          resolve();
        });
    });
  }

  /** Waits until the model is loaded. Rejects with what loading rejects with, or ERR_WORKER_LOST. */
  loaded(): Promise<ModelInfo> {
    return this.waitFor((receiver) => this.receivers.set(LOADING, receiver)) as Promise<ModelInfo>;
  }

  /** Ends the loading, which then rejects. */
  abortLoading(): void {
    this.worker.postMessage({ kind: 'abort', id: LOADING } satisfies Request);
  }

  /**
   * Sends a request under a new number, which it returns; the answers go to `receiver`.
   * @throws what {@link close} was given, or ERR_WORKER_LOST
   */
  request(make: (id: number) => Request, receiver: Receiver): number {
    this.checkOpen();
    const id = ++this.lastId;
    this.worker.postMessage(make(id));
    this.receivers.set(id, receiver);
    return id;
  }

  /** Sends something about an open request. What has ended meanwhile needs it no more. */
  post(request: Request): void {
    if (this.receivers.has(request.id)) this.worker.postMessage(request);
  }

  /** Aborts a request; no further answer is handed out. */
  drop(id: number): void {
    this.post({ kind: 'abort', id });
    this.receivers.delete(id);
  }

  /** Tells `listener` of every change of a sequence in the worker, until it is null. */
  watch(target: number, listener: ((state: SequenceState) => void) | null): void {
    if (listener === null) this.sequences.delete(target);
    else this.sequences.set(target, listener);
  }

  /** Whether nothing can be asked any more. */
  get isClosed(): boolean {
    return this.closed !== null;
  }

  /** @throws as {@link request} */
  checkOpen(): void {
    if (this.closed !== null) throw this.closed.reason;
  }

  /** A promise that keeps the process alive until it is settled. */
  async waitFor(start: (receiver: Receiver) => void): Promise<unknown> {
    this.hold();
    try {
      return await new Promise((end, fail) => start({ end, fail }));
    } finally {
      this.letGo();
    }
  }

  /** From now on somebody waits: the process is kept alive. */
  hold(): void {
    if (this.waiters++ === 0) this.worker.ref();
  }

  /** Undoes one {@link hold}. */
  letGo(): void {
    if (--this.waiters === 0) this.worker.unref();
  }

  /** Fails all open requests with `reason`, and every later one. */
  close(reason: unknown): void {
    if (this.closed !== null) return;
    this.closed = { reason };
    const open = [...this.receivers.values()];
    this.receivers.clear();
    this.sequences.clear();
    for (const receiver of open) receiver.fail(reason);
  }

  /** Lets the model give everything back, and then ends the thread; what is open fails with `reason`. */
  async dispose(reason: unknown): Promise<void> {
    if (this.closed === null) {
      this.close(reason);
      this.hold();
      const disposed = new Promise<void>((resolve) => {
        this.receivers.set(++this.lastId, { end: () => resolve(), fail: () => resolve() });
      });
      const dispose: Invocation = { target: MODEL, method: 'dispose', args: [], signalIn: null };
      this.worker.postMessage({ kind: 'call', id: this.lastId, ...dispose } satisfies Request);
      await Promise.race([disposed, this.exited]);
      this.letGo();
    }
    await this.end();
  }

  /** Ends the thread as it is. */
  async end(): Promise<void> {
    await this.worker.terminate();
    await this.exited;
  }

  private hand(reply: Reply): void {
    switch (reply.kind) {
      case 'progress':
        this.onProgress(reply.progress);
        return;
      case 'loaded':
        this.take(LOADING)?.end(reply.info);
        return;
      case 'chunk':
        this.receivers.get(reply.id)?.chunk?.(reply);
        return;
      case 'returned':
        this.take(reply.id)?.end(reply.value);
        return;
      case 'finished':
        this.take(reply.id)?.end(reply.result);
        return;
      case 'failed':
        this.take(reply.id)?.fail(unpackError(reply.error));
        return;
      case 'state':
        this.sequences.get(reply.target)?.(reply.state);
    }
  }

  private take(id: number): Receiver | undefined {
    const receiver = this.receivers.get(id);
    this.receivers.delete(id);
    return receiver;
  }
}

function lostError(cause: unknown, code: number): MlaError {
  const why = cause instanceof Error ? cause.message : `exit code ${code}`;
  return new MlaError(
    'ERR_WORKER_LOST',
    `The worker thread of the model has ended (${why}); expected it to live until the model is disposed. Load the model again.`,
    cause === undefined ? undefined : { cause },
  );
}
