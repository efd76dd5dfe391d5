// engine/worker/model-host.ts - the worker's side: carries out requests on the model, sends chunks as far as they are wanted.
import { MlaError } from '../../errors';
import type { Generation, Model, Sequence } from '../api';
import { packError } from './packed-error';
import {
  type Invocation,
  MODEL,
  MODEL_METHODS,
  type NewSequence,
  type Reply,
  type Request,
  SEQUENCE_METHODS,
  type SequenceState,
} from './protocol';

/** A generation whose chunks are being sent. */
interface Stream {
  /** chunks that may be sent in all */
  allowed: number;
  /** called when `allowed` grows or the stream is to end */
  wake: () => void;
  ended: boolean;
}

/** Answers requests on one model. */
export class ModelHost {
  private readonly calls = new Map<number, AbortController>();
  private readonly streams = new Map<number, Stream>();
  private readonly sequences = new Map<number, Sequence>();
  private lastSequence = MODEL;
  private outbox: Reply[] = [];

  /** @param send takes replies in order; replies of one turn come together */
  constructor(
    private readonly model: Model,
    private readonly send: (replies: readonly Reply[]) => void,
  ) {}

  /** Takes one request in; answers come later, through `send`. */
  take(request: Request): void {
    switch (request.kind) {
      case 'call':
        void this.call(request.id, request);
        return;
      case 'generate':
        void this.generate(request.id, request);
        return;
      case 'credit': {
        const stream = this.streams.get(request.id);
        if (stream === undefined) return; // it has ended meanwhile
        stream.allowed = request.chunks ?? Number.POSITIVE_INFINITY;
        stream.wake();
        return;
      }
      case 'abort': {
        this.calls.get(request.id)?.abort();
        const stream = this.streams.get(request.id);
        if (stream === undefined) return;
        stream.ended = true;
        stream.wake();
        return;
      }
    }
  }

  private async call(id: number, invocation: Invocation): Promise<void> {
    const controller = new AbortController();
    this.calls.set(id, controller);
    try {
      const given = await this.invoke(invocation, controller.signal);
      const value = methodsOf(invocation)[invocation.method] === 'sequence' ? this.keep(given as Sequence) : given;
      this.replyWithState(invocation, { kind: 'returned', id, value });
    } catch (error) {
      this.replyWithState(invocation, { kind: 'failed', id, error: packError(error) });
    } finally {
      this.calls.delete(id);
    }
  }

  private async generate(id: number, invocation: Invocation): Promise<void> {
    const controller = new AbortController();
    const stream: Stream = { allowed: 0, wake: () => {}, ended: false };
    this.streams.set(id, stream);
    this.calls.set(id, controller);
    try {
      const generation = this.invoke(invocation, controller.signal) as Generation;
      await this.pour(id, stream, generation);
      if (!stream.ended) this.replyWithState(invocation, { kind: 'finished', id, result: await generation.result });
    } catch (error) {
      if (!stream.ended) this.replyWithState(invocation, { kind: 'failed', id, error: packError(error) });
    } finally {
      this.streams.delete(id);
      this.calls.delete(id);
    }
  }

  /** Sends chunks as far as they are wanted. When nothing more is, the signal has ended the generation. */
  private async pour(id: number, stream: Stream, generation: Generation): Promise<void> {
    const chunks = generation[Symbol.asyncIterator]();
    for (let sent = 0; ; sent++) {
      while (sent >= stream.allowed && !stream.ended) {
        await new Promise<void>((resolve) => {
          stream.wake = resolve;
        });
      }
      const next = await chunks.next();
      if (next.done || stream.ended) return;
      this.reply({ kind: 'chunk', id, chunk: next.value });
    }
  }

  private invoke(invocation: Invocation, signal: AbortSignal): unknown {
    const { target, method, args, signalIn } = invocation;
    const object = (target === MODEL ? this.model : this.sequences.get(target)) as
      | Record<string, ((...args: unknown[]) => unknown) | undefined>
      | undefined;
    const called = Object.hasOwn(methodsOf(invocation), method) ? object?.[method] : undefined;
    if (called === undefined) throw new MlaError('ERR_INTERNAL', `The worker has no method ${method} of ${target}.`);
    if (method === 'dispose') this.sequences.delete(target);
    return called.apply(
      object,
      args.map((arg, i) => (i === signalIn ? { ...(arg as object), signal } : arg)),
    );
  }

  /** Gives a sequence a number, by which it is spoken of from now on. */
  private keep(sequence: Sequence): NewSequence {
    const target = ++this.lastSequence;
    this.sequences.set(target, sequence);
    return { target, state: stateOf(sequence) };
  }

  private replyWithState({ target }: Invocation, reply: Reply): void {
    const sequence = this.sequences.get(target);
    if (sequence !== undefined) this.reply({ kind: 'state', target, state: stateOf(sequence) });
    this.reply(reply);
  }

  /** Replies of one turn go out together: a step gives every running sequence a chunk. */
  private reply(reply: Reply): void {
    this.outbox.push(reply);
    if (this.outbox.length > 1) return;
    queueMicrotask(() => {
      const replies = this.outbox;
      this.outbox = [];
      this.send(replies);
    });
  }
}

function methodsOf({ target }: Invocation): Readonly<Record<string, string>> {
  return target === MODEL ? MODEL_METHODS : SEQUENCE_METHODS;
}

function stateOf({ tokens, cachedTokens }: Sequence): SequenceState {
  return { tokens, cachedTokens };
}
