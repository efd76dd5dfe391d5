// engine/worker/packed-error.ts - errors as messages: a structured clone keeps neither the class of an MlaError nor its code.
import { describe, ERROR_CODES, type ErrorCode, MlaError } from '../../errors';

/** Whatever was thrown, as plain data. */
export type PackedError =
  | {
      readonly kind: 'mla' | 'error';
      readonly name: string;
      readonly code: string | undefined;
      readonly message: string;
      readonly stack: string | undefined;
      readonly cause: PackedError | undefined;
    }
  | { readonly kind: 'value'; readonly value: unknown };

/** Causes of causes that are kept. */
const MAX_DEPTH = 8;

/** Plain data that {@link unpackError} makes an equal error of. Never throws. */
export function packError(error: unknown, depth = 0): PackedError {
  if (!(error instanceof Error)) return { kind: 'value', value: plain(error) };
  const { name, message, stack, cause } = error;
  const code = (error as NodeJS.ErrnoException).code;
  return {
    kind: error instanceof MlaError ? 'mla' : 'error',
    name: String(name),
    code: typeof code === 'string' ? code : undefined,
    message: String(message),
    stack: typeof stack === 'string' ? stack : undefined,
    cause: cause === undefined || depth === MAX_DEPTH ? undefined : packError(cause, depth + 1),
  };
}

/** What {@link packError} was given: an MlaError with its code, an Error with its name, or a value. */
export function unpackError(packed: PackedError): unknown {
  if (packed.kind === 'value') return packed.value;
  const { name, code, message, stack } = packed;
  const options = packed.cause === undefined ? undefined : { cause: unpackError(packed.cause) };
  let error: Error;
  if (packed.kind === 'mla' && ERROR_CODES.includes(code as ErrorCode)) {
    error = new MlaError(code as ErrorCode, message, options);
  } else {
    error = new Error(message, options);
    if (name !== error.name) Object.defineProperty(error, 'name', { value: name, configurable: true, writable: true });
    if (code !== undefined) Object.assign(error, { code });
  }
  if (stack !== undefined) error.stack = stack; // where it happened, not where the message arrived
  return error;
}

function plain(value: unknown): unknown {
  try {
    return structuredClone(value);
  } catch {
    return describe(value);
  }
}
