// errors/index.ts - the one error class of the package and its codes; everything above imports from here.

/** Every code an {@link MlaError} can carry. Codes are part of the public API; texts are not. */
export const ERROR_CODES = [
  // arguments and state
  'ERR_INVALID_ARG', // a value of the wrong type, range, dtype, shape or device
  'ERR_DISPOSED', // use after dispose()
  'ERR_STATE', // the call is not possible now (capture inside capture, two consumers, ...)
  'ERR_CONTEXT_LENGTH', // prompt plus new tokens do not fit the context
  'ERR_NO_PAGES', // the latent cache has no free page
  // memory and devices
  'ERR_OUT_OF_MEMORY', // host memory
  'ERR_OUT_OF_DEVICE_MEMORY',
  'ERR_NO_DEVICE', // the device asked for does not exist
  'ERR_DEVICE_UNUSABLE', // it exists, and cannot be used
  'ERR_DRIVER_TOO_OLD',
  'ERR_DEVICE_LOST', // a fault that only a new process survives
  'ERR_UNSUPPORTED', // this backend or build cannot do it
  'ERR_BACKEND', // a backend call failed in a way no other code names
  'ERR_NATIVE_LOAD', // the addon could not be loaded
  // checkpoints
  'ERR_HUB', // the Hub could not be reached, refused, or gave something else than what was asked for
  'ERR_FILE', // a file could not be opened or read
  'ERR_SAFETENSORS', // a safetensors file breaks a rule of the format
  'ERR_CHECKPOINT', // the set of files or tensors is not a whole, consistent checkpoint
  'ERR_CONFIG', // config.json is broken or contradicts itself
  'ERR_UNSUPPORTED_MODEL', // an architecture or a value that is not understood
  'ERR_SNAPSHOT', // a saved sequence that is damaged, or was made by another model, dtype or layout
  // text
  'ERR_TOKENIZER',
  'ERR_TEMPLATE',
  // running
  'ERR_ABORTED',
  'ERR_WORKER_LOST',
  'ERR_INTERNAL', // a defect of this package
] as const;

/** One of {@link ERROR_CODES}. */
export type ErrorCode = (typeof ERROR_CODES)[number];

/** The error every function of this package throws or rejects with. The message names what was wrong and what was expected. */
export class MlaError extends Error {
  override readonly name = 'MlaError';
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

/** Builds the error of a wrong argument, so that all such messages read alike. */
export function invalidArg(name: string, expected: string, actual: unknown): MlaError {
  return new MlaError('ERR_INVALID_ARG', `${name}: expected ${expected}, got ${describe(actual)}.`);
}

/** A short printable form of any value; never throws, whatever the value is. */
export function describe(value: unknown): string {
  try {
    if (typeof value === 'string')
      return value.length > 60 ? `a string of ${value.length} characters` : JSON.stringify(value);
    if (typeof value === 'bigint') return `${value}n`;
    if (typeof value === 'function') return 'a function';
    if (Array.isArray(value)) return `an array of ${value.length}`;
    if (typeof value === 'object' && value !== null) return `an object (${value.constructor?.name ?? 'no prototype'})`;
    return String(value);
  } catch {
    return `a value of type ${typeof value}`;
  }
}
