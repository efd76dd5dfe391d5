// encode-thread.ts - the worker thread that encodes long texts, seen from outside. It is started by the first long text, kept
// for the next, holds the process only while it works, and is ended when it does not answer in time.
import { Worker } from 'node:worker_threads';
import { describe, type ErrorCode, MlaError } from '../errors';
import { type EncodeParts, encodeLimitMs, lengthOf } from './encoder';
import { entryFile } from './entry-file';
import { ENCODER_START_MS } from './limits';

/** What the thread needs to build its own tokenizer. */
export interface EncodeThreadData {
  /** The bytes of tokenizer.json. */
  source: SharedArrayBuffer;
  /** The text of tokenizer_config.json. */
  config: string;
}

export interface EncodeRequest {
  parts: EncodeParts;
  special: boolean;
}

export type EncodeReply = 'ready' | { ids: Int32Array } | { code: ErrorCode; message: string };

/** Encodes one request after the other in a worker thread of its own. */
export class EncodeThread {
  private worker: Worker | null = null;
  private last: Promise<unknown> = Promise.resolve();

  constructor(private readonly data: EncodeThreadData) {}

  /** @throws ERR_TOKENIZER as the tokenizer does; ERR_WORKER_LOST when the thread dies */
  encode(parts: EncodeParts, special: boolean): Promise<number[]> {
    const turn = this.last.then(() => this.run({ parts, special }));
    this.last = turn.catch(() => undefined);
    return turn;
  }

  /** Ends the thread after the text it works on. */
  async dispose(): Promise<void> {
    await this.last;
    const { worker } = this;
    this.worker = null;
    await worker?.terminate();
  }

  private async run(request: EncodeRequest): Promise<number[]> {
    const worker = this.worker ?? (await this.start());
    // The thread keeps the time itself and answers with an error; this is for one that cannot.
    const reply = await this.ask(worker, encodeLimitMs(lengthOf(request.parts)) + 2000, () =>
      worker.postMessage(request),
    );
    if (reply === 'ready') throw new MlaError('ERR_INTERNAL', 'The encoding thread said it is ready twice.');
    if ('code' in reply) throw new MlaError(reply.code, reply.message);
    return Array.from(reply.ids);
  }

  private async start(): Promise<Worker> {
    const worker = new Worker(entryFile(__dirname, 'encode-worker'), { workerData: this.data, execArgv: [], env: {} });
    worker.on('error', () => undefined); // reported by ask(); an unheard 'error' would end the process
    this.worker = worker;
    await this.ask(worker, ENCODER_START_MS, () => undefined);
    return worker;
  }

  /** Sends something and waits for the next message; whatever else happens first ends the thread and rejects. */
  private ask(worker: Worker, milliseconds: number, send: () => void): Promise<EncodeReply> {
    return new Promise((resolve, reject) => {
      const lost = (message: string, cause?: unknown) => {
        leave();
        if (this.worker === worker) this.worker = null;
        void worker.terminate();
        reject(new MlaError('ERR_WORKER_LOST', `The encoding thread ${message}.`, { cause }));
      };
      const onMessage = (reply: EncodeReply) => {
        leave();
        resolve(reply);
      };
      const onError = (cause: unknown) =>
        lost(`failed (${cause instanceof Error ? cause.message : describe(cause)})`, cause);
      const onExit = () => lost('ended');
      const timer = setTimeout(() => lost(`did not answer in ${milliseconds} ms`), milliseconds);
      const leave = () => {
        clearTimeout(timer);
        worker.off('message', onMessage).off('error', onError).off('exit', onExit);
        worker.unref();
      };
      worker.ref();
      worker.on('message', onMessage).on('error', onError).on('exit', onExit);
      send();
    });
  }
}
