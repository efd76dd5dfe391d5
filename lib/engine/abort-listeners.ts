// engine/abort-listeners.ts - one listener per signal, however many requests share it: node takes more than ten on one
// signal for a leak and warns.

const listeners = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls `listener` once when `signal` aborts.
 * @returns a function that takes the listener away; idempotent
 */
export function onAbort(signal: AbortSignal | undefined, listener: () => void): () => void {
  if (signal === undefined) return () => {};
  const known = listeners.get(signal);
  const all = known ?? new Set();
  const callAll = () => {
    listeners.delete(signal);
    for (const one of [...all]) one();
  };
  if (known === undefined) {
    listeners.set(signal, all);
    signal.addEventListener('abort', callAll, { once: true });
  }
  all.add(listener);
  return () => {
    all.delete(listener);
  };
}
