// native/reader.ts - the Reader class.
import { invalidArg } from '../errors';
import { check, failureError, type RawReader } from './raw';
import type { Reader } from './types';

export class NativeReader implements Reader {
  readonly bytes: SharedArrayBuffer;
  readonly #raw: RawReader;

  constructor(raw: RawReader, bytes: SharedArrayBuffer) {
    this.#raw = raw;
    this.bytes = bytes;
  }

  static #of(value: unknown, method: string): RawReader {
    if (typeof value === 'object' && value !== null && #raw in value) return value.#raw;
    throw invalidArg(`Reader.${method}: this`, 'a reader', value);
  }

  get disposed(): boolean {
    return NativeReader.#of(this, 'disposed').disposed();
  }

  async read(): Promise<SharedArrayBuffer> {
    const failure = await check(NativeReader.#of(this, 'read').read());
    if (failure !== undefined) throw failureError(failure);
    return this.bytes;
  }

  dispose(): void {
    NativeReader.#of(this, 'dispose').dispose();
  }
}
