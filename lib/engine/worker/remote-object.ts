// engine/worker/remote-object.ts - an object that lives in a model's worker thread: its methods as messages.
import { describe, MlaError } from '../../errors';
import { onAbort } from '../abort-listeners';
import { abortSignal } from '../settings';
import type { ModelThread } from './model-thread';
import { RemoteGeneration } from './remote-generation';

/** What {@link RemoteModel} and {@link RemoteSequence} have in common. */
export class RemoteObject {
  constructor(
    protected readonly thread: ModelThread,
    protected readonly target: number,
  ) {}

  /**
   * Calls a method that gives a promise. `options`, where the method has them, are its last argument; their signal stays
   * here, and so its reason is what the promise rejects with.
   */
  protected async call(method: string, args: readonly unknown[], options?: unknown): Promise<unknown> {
    this.thread.checkOpen();
    const { invocation, signal } = this.invocation(method, args, options);
    signal?.throwIfAborted();
    let stopListening = () => {};
    try {
      return await this.thread.waitFor((receiver) => {
        const id = this.thread.request((id) => ({ kind: 'call', id, ...invocation }), receiver);
        stopListening = onAbort(signal, () => {
          this.thread.drop(id);
          receiver.fail(signal?.reason);
        });
      });
    } finally {
      stopListening();
    }
  }

  /** Calls a method that gives a generation, once somebody wants something of it. */
  protected open(method: string, input: unknown, options: unknown): RemoteGeneration {
    this.thread.checkOpen();
    const { invocation, signal } = this.invocation(method, [input], options ?? {});
    return new RemoteGeneration(this.thread, invocation, signal);
  }

  /** Copies what the caller gave now: it may change later. @throws ERR_INVALID_ARG for what is not plain data */
  private invocation(method: string, args: readonly unknown[], options: unknown) {
    const { plain, signal } = takeSignal(options);
    const all = options === undefined ? args : [...args, plain];
    const isObject = typeof plain === 'object' && plain !== null;
    try {
      const copy = structuredClone(all);
      return {
        invocation: { target: this.target, method, args: copy, signalIn: isObject ? args.length : null },
        signal,
      };
    } catch (cause) {
      throw new MlaError('ERR_INVALID_ARG', `${method}: expected arguments of plain data (${describe(cause)}).`, {
        cause,
      });
    }
  }
}

/** Each property is read once. @throws ERR_INVALID_ARG for a signal that is none, or a property that cannot be read */
function takeSignal(options: unknown): { plain: unknown; signal: AbortSignal | undefined } {
  if (typeof options !== 'object' || options === null || Array.isArray(options))
    return { plain: options, signal: undefined };
  let read: Record<string, unknown>;
  try {
    read = { ...(options as Record<string, unknown>) };
  } catch (cause) {
    throw new MlaError('ERR_INVALID_ARG', 'options: expected readable properties; reading one of them threw.', {
      cause,
    });
  }
  const { signal, ...plain } = read;
  return { plain, signal: abortSignal(signal) };
}
