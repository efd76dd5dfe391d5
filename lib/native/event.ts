// native/event.ts - the Event class.
import { invalidArg } from '../errors';
import { failureError, type RawEvent } from './raw';
import type { Event } from './types';

let rawOf: (value: unknown) => RawEvent | undefined;

export class NativeEvent implements Event {
  readonly done: Promise<void>;
  readonly #raw: RawEvent;

  constructor(raw: RawEvent) {
    this.#raw = raw;
    // An async function, because then() of a native promise would give a promise of another realm under jest.
    this.done = (async () => {
      const result = await raw.done;
      if (result !== undefined) throw failureError(result);
    })();
    // A caller may look at `done` later, or never: that must not end the process.
    this.done.catch(() => {});
  }

  static {
    rawOf = (value) => (typeof value === 'object' && value !== null && #raw in value ? value.#raw : undefined);
  }
}

/** The native handle of an event. @throws ERR_INVALID_ARG */
export function rawEvent(what: string, value: unknown): RawEvent {
  const raw = rawOf(value);
  if (raw === undefined) throw invalidArg(what, 'an event', value);
  return raw;
}
