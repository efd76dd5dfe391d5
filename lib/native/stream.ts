// native/stream.ts - the Stream class. Its verbs are made from the addon's list of operations when the addon is loaded.
import { types } from 'node:util';
import { invalidArg, MlaError } from '../errors';
import { readBytes, readOperation, type Vocabulary } from './arguments';
import { NativeEvent, rawEvent } from './event';
import { NativeGraph } from './graph';
import { check, failureError, type RawGraph, type RawReader, type RawStream } from './raw';
import { NativeReader } from './reader';
import { rawTensor } from './tensor';
import type { Device, Event, Graph, Reader, Stream, Tensor, Verbs } from './types';

let rawOf: (value: unknown) => RawStream | undefined;

/** The native handle of a stream. @throws ERR_INVALID_ARG */
function rawStream(method: string, value: unknown): RawStream {
  const raw = rawOf(value);
  if (raw === undefined) throw invalidArg(`Stream.${method}: this`, 'a stream', value);
  return raw;
}

/** Memory for a tensor's bytes; V8 ends the process when native code asks it for what does not fit. */
function hostBuffer<T>(Buffer: new (bytes: number) => T, bytes: number): T {
  try {
    return new Buffer(bytes);
  } catch (cause) {
    throw new MlaError('ERR_OUT_OF_MEMORY', `read: no ${Buffer.name} of ${bytes} bytes can be made.`, { cause });
  }
}

/** All but the verbs, which installVerbs() adds. */
class NativeStream implements Omit<Stream, keyof Verbs> {
  readonly device: Device;
  readonly #raw: RawStream;

  constructor(device: Device, raw: RawStream) {
    this.device = device;
    this.#raw = raw;
  }

  static {
    rawOf = (value) => (typeof value === 'object' && value !== null && #raw in value ? value.#raw : undefined);
  }

  get disposed(): boolean {
    return rawStream('disposed', this).disposed();
  }

  useWorkspace(tensor: Tensor): void {
    check(rawStream('useWorkspace', this).useWorkspace(rawTensor('useWorkspace: tensor', tensor)));
  }

  write(tensor: Tensor, data: ArrayBufferView, byteOffset = 0): void {
    const raw = rawStream('write', this);
    const target = rawTensor('write: tensor', tensor);
    if (!ArrayBuffer.isView(data)) throw invalidArg('write: data', 'a view of an ArrayBuffer', data);
    check(raw.write(target, data, readBytes('write: byteOffset', byteOffset)));
  }

  async read(tensor: Tensor): Promise<ArrayBuffer> {
    const raw = rawStream('read', this);
    const source = rawTensor('read: tensor', tensor);
    const buffer = hostBuffer(ArrayBuffer, tensor.byteLength);
    const failure = await check(raw.read(source, buffer));
    if (failure !== undefined) throw failureError(failure);
    return buffer;
  }

  reader(tensor: Tensor): Reader {
    const raw = rawStream('reader', this);
    const source = rawTensor('reader: tensor', tensor);
    const bytes = hostBuffer(SharedArrayBuffer, tensor.byteLength);
    return new NativeReader(check<RawReader>(raw.reader(source, new Uint8Array(bytes))), bytes);
  }

  readFile(tensor: Tensor, fd: number, offset: number): void {
    const raw = rawStream('readFile', this);
    const target = rawTensor('readFile: tensor', tensor);
    check(raw.readFile(target, readBytes('readFile: fd', fd), readBytes('readFile: offset', offset)));
  }

  record(): Event {
    return new NativeEvent(check(rawStream('record', this).record()));
  }

  wait(event: Event): void {
    check(rawStream('wait', this).wait(rawEvent('wait: event', event)));
  }

  capture(fn: () => void): Graph {
    const raw = rawStream('capture', this);
    if (typeof fn !== 'function') throw invalidArg('capture: fn', 'a function', fn);
    check(raw.beginCapture());
    let result: unknown;
    try {
      result = fn();
    } catch (error) {
      raw.abortCapture();
      throw error;
    }
    if (types.isPromise(result)) {
      raw.abortCapture();
      // Its operations would run after the capture; what it rejects with is not ours to report.
      result.catch(() => {});
      throw invalidArg('capture: fn', 'a synchronous function', result);
    }
    return new NativeGraph(check<RawGraph>(raw.endCapture()));
  }

  dispose(): void {
    rawStream('dispose', this).dispose();
  }
}

/** A stream over its native handle. */
export function makeStream(device: Device, raw: RawStream): Stream {
  return new NativeStream(device, raw) as unknown as Stream;
}

/** Gives streams one method per operation. */
export function installVerbs(vocabulary: Vocabulary): void {
  vocabulary.operations.forEach((operation, index) => {
    const { verb } = operation;
    const method = {
      [verb](this: unknown, args: unknown): void {
        const raw = rawStream(verb, this);
        const failure = raw.run.apply(raw, readOperation(operation, index, args) as [number]);
        if (failure !== undefined) throw failureError(failure);
      },
    };
    Object.defineProperty(NativeStream.prototype, verb, {
      value: method[verb],
      writable: true,
      configurable: true,
      enumerable: false,
    });
  });
}
