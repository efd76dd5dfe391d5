// cli/failure.ts - how a command ends: the exit code of each kind of failure, and its one line on stderr.
import { CommanderError } from 'commander';
import { type ErrorCode, MlaError } from '../errors';

/** Exit codes of every command. */
export const EXIT = { ok: 0, failure: 1, usage: 2, noDevice: 3, outOfMemory: 4, interrupted: 130 } as const;

/** Ctrl+C. */
export class Interrupted extends Error {
  constructor() {
    super('Interrupted.');
  }
}

/** Whoever read stdout has gone; nobody is interested in the rest. */
export class ClosedPipe extends Error {
  constructor() {
    super('stdout was closed.');
  }
}

/** A GPU was asked for, and this build of the package has no code for any. */
export class NoGpuSupport extends Error {
  constructor(override readonly cause: MlaError) {
    super(cause.message);
  }
}

/** A command did its work, and what it looked at is not as it should be. */
export class FoundWanting extends Error {
  constructor(
    message: string,
    readonly exitCode: number = EXIT.failure,
  ) {
    super(message);
  }
}

/** Flags that do not go together, or lack something. */
export class UsageError extends Error {}

const CODES: Partial<Record<ErrorCode, number>> = {
  ERR_INVALID_ARG: EXIT.usage,
  ERR_NO_DEVICE: EXIT.noDevice,
  ERR_DEVICE_UNUSABLE: EXIT.noDevice,
  ERR_DRIVER_TOO_OLD: EXIT.noDevice,
  ERR_OUT_OF_MEMORY: EXIT.outOfMemory,
  ERR_OUT_OF_DEVICE_MEMORY: EXIT.outOfMemory,
};

/** The exit code for whatever a command threw. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof ClosedPipe) return EXIT.ok;
  if (error instanceof Interrupted) return EXIT.interrupted;
  if (error instanceof UsageError) return EXIT.usage;
  if (error instanceof NoGpuSupport) return EXIT.noDevice;
  if (error instanceof FoundWanting) return error.exitCode;
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  if (error instanceof MlaError) return CODES[error.code] ?? EXIT.failure;
  return EXIT.failure;
}

/** The line for stderr, or null when nothing is to be said (a closed pipe), or commander has said it. */
export function lineOf(error: unknown): string | null {
  if (error instanceof ClosedPipe || error instanceof CommanderError) return null;
  if (error instanceof Interrupted) return 'mla: interrupted';
  if (error instanceof NoGpuSupport) return lineOf(error.cause);
  if (error instanceof FoundWanting) return `mla: ${oneLine(error.message)}`;
  if (error instanceof UsageError) return `mla: ${oneLine(error.message)} (add --help for the list of flags)`;
  if (error instanceof MlaError) return `mla: ${oneLine(error.message)} (${error.code})`;
  const { code, message } = error instanceof Error ? (error as NodeJS.ErrnoException) : { message: String(error) };
  return `mla: ${oneLine(message)} (${code ?? 'ERR_INTERNAL'})`;
}

/** File names and the like come from outside: no line breaks, no escape sequences. */
function oneLine(text: string): string {
  return text.replace(/\p{Cc}+/gu, ' ').trim();
}
