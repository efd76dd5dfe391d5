// bench/watched-stream.ts - a stream that shows what is issued on it.
import type { Stream } from '../native';

/** Arguments of an operation, whichever it is. */
export type Args = Record<string, unknown>;

/** A stream whose operations are issued only where `wanted` says so. */
export function watched(stream: Stream, wanted: (verb: string, args: Args) => boolean): Stream {
  return new Proxy(stream, {
    get(target, key) {
      const value = Reflect.get(target, key, target);
      if (typeof value !== 'function') return value;
      return (args: Args) => {
        if (wanted(String(key), args)) (value as (args: Args) => void).call(target, args);
      };
    },
  });
}
