// native/arguments.ts - takes callers' objects apart into plain numbers. What callers pass is hostile: getters and
// proxies may throw or lie, so each property is read once, and nothing native is called in between.
import { describe, invalidArg, MlaError } from '../errors';
import type { RawAddon, RawOperation, RawTensor } from './raw';
import { rawTensor } from './tensor';
import type { DType } from './types';

const MAX_RANK = 4;

/** Numbers of the element types, and the operations' argument lists, as the loaded addon has them. */
export class Vocabulary {
  private readonly dtypes: Map<string, number>;
  private readonly verbs: Map<string, number>;
  readonly operations: readonly RawOperation[];

  constructor(addon: RawAddon) {
    this.dtypes = new Map(addon.dtypes().map((name, code) => [name, code]));
    this.operations = addon.operations();
    this.verbs = new Map(this.operations.map(({ verb }, index) => [verb, index]));
  }

  /** The number of an element type. @throws ERR_INVALID_ARG */
  dtype(what: string, value: unknown): number {
    const code = typeof value === 'string' ? this.dtypes.get(value) : undefined;
    if (code === undefined) throw invalidArg(what, `one of ${[...this.dtypes.keys()].join(', ')}`, value);
    return code;
  }

  /** The number of a verb. @throws ERR_INVALID_ARG */
  verb(what: string, value: unknown): number {
    const index = typeof value === 'string' ? this.verbs.get(value) : undefined;
    if (index === undefined) throw invalidArg(what, 'the name of an operation', value);
    return index;
  }
}

/** Runs `read`, which touches a caller's object; what a getter or a proxy throws becomes ERR_INVALID_ARG. */
function reading<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof MlaError) throw error;
    throw new MlaError('ERR_INVALID_ARG', `${what}: reading it failed: ${describe(error)}.`, { cause: error });
  }
}

/** A copy of a shape, each dimension a number; native code checks the ranges. @throws ERR_INVALID_ARG */
export function readShape(what: string, value: unknown): number[] {
  return reading(what, () => {
    if (!Array.isArray(value)) throw invalidArg(what, `an array of at most ${MAX_RANK} dimensions`, value);
    const rank = value.length;
    if (!(rank <= MAX_RANK)) throw invalidArg(what, `at most ${MAX_RANK} dimensions`, value);
    const shape: number[] = [];
    for (let i = 0; i < rank; i++) {
      const dimension: unknown = value[i];
      if (typeof dimension !== 'number' || !Number.isSafeInteger(dimension) || dimension < 0)
        throw invalidArg(`${what}[${i}]`, 'an integer from 0 to 2^53 - 1', dimension);
      shape.push(dimension);
    }
    return shape;
  });
}

/** The element type and shape of a tensor or of a plain spec. @throws ERR_INVALID_ARG */
export function readSpec(what: string, value: unknown): { dtype: DType; shape: number[] } {
  return reading(what, () => {
    if (typeof value !== 'object' || value === null) throw invalidArg(what, 'a tensor, or { dtype, shape }', value);
    const { dtype, shape } = value as { dtype: DType; shape: unknown };
    return { dtype, shape: readShape(`${what}.shape`, shape) };
  });
}

/**
 * The values of an operation's arguments in the order of its fields, after the number of its verb. `tensor` turns a
 * tensor argument into what native code takes.
 * @throws ERR_INVALID_ARG also for names that the operation does not have: a misspelt optional argument would otherwise
 *   be lost without a word
 */
function readFields(
  operation: RawOperation,
  index: number,
  args: unknown,
  tensor: (what: string, value: unknown) => unknown,
): unknown[] {
  if (typeof args !== 'object' || args === null) throw invalidArg(operation.verb, 'an object of arguments', args);
  const values: unknown[] = [index];
  try {
    let given = 0;
    for (const { name, kind } of operation.fields) {
      const value = (args as Record<string, unknown>)[name];
      if (value !== undefined) given++;
      values.push(kind === 'tensor' && value !== undefined ? tensor(`${operation.verb}: ${name}`, value) : value);
    }
    const names = Object.keys(args);
    if (names.length !== given) {
      const unknown = names.find((name) => !operation.fields.some((field) => field.name === name));
      if (unknown !== undefined)
        throw new MlaError('ERR_INVALID_ARG', `${operation.verb} has no argument "${unknown}".`);
    }
  } catch (error) {
    return reading(operation.verb, () => {
      throw error;
    });
  }
  return values;
}

const asHandle = (what: string, value: unknown): RawTensor => rawTensor(what, value);

/** Arguments for RawStream.run(). @throws ERR_INVALID_ARG */
export function readOperation(operation: RawOperation, index: number, args: unknown): unknown[] {
  return readFields(operation, index, args, asHandle);
}

/** Arguments for RawDevice.workspaceBytes(). @throws ERR_INVALID_ARG */
export function readPlannedOperation(vocabulary: Vocabulary, verb: unknown, args: unknown): unknown[] {
  const index = vocabulary.verb('workspaceBytes: verb', verb);
  const operation = vocabulary.operations[index] as RawOperation;
  return readFields(operation, index, args, (what, value) => {
    const { dtype, shape } = readSpec(what, value);
    return [vocabulary.dtype(`${what}.dtype`, dtype), ...shape];
  });
}

/** A byte position or count. @throws ERR_INVALID_ARG */
export function readBytes(what: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
    throw invalidArg(what, 'an integer from 0 to 2^53 - 1', value);
  return value;
}

/** The options of openDevice, read once; 0 or false where left out. @throws ERR_INVALID_ARG */
export function readOptions(
  what: string,
  value: unknown,
): {
  threads: unknown;
  index: unknown;
  portable: boolean;
  deterministic: boolean;
  serial: boolean;
} {
  return reading(what, () => {
    if (typeof value !== 'object' || value === null) throw invalidArg(what, 'an object', value);
    const given = value as Record<string, unknown>;
    const { threads = 0, index = 0, portable = false, deterministic = false, serial = false } = given;
    if (typeof portable !== 'boolean') throw invalidArg(`${what}: portable`, 'true or false', portable);
    if (typeof deterministic !== 'boolean') throw invalidArg(`${what}: deterministic`, 'true or false', deterministic);
    if (typeof serial !== 'boolean') throw invalidArg(`${what}: serial`, 'true or false', serial);
    return { threads, index, portable, deterministic, serial };
  });
}
