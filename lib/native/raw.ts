// native/raw.ts - what the .node exports. Only this folder sees it; types.ts describes what the rest of the package uses.
//
// Native calls take numbers, booleans and handles, never objects of a caller: reading those could run JavaScript in the
// middle of a call. They never throw and their promises never reject: a failure is the string "ERR_CODE\ntext", which
// check() turns into an MlaError, because error objects made by native code belong to another realm under jest.
import { type ErrorCode, MlaError } from '../errors';
import type { GpuFacts } from './types';

/** What a native call returns in place of its result when it fails. */
export type Failure = string;

export interface RawTensor {
  view(dtype: number, byteOffset: number, ...shape: number[]): RawTensor | Failure;
  dispose(): void;
  disposed(): boolean;
}

export interface RawEvent {
  readonly done: Promise<undefined | Failure>;
}

export interface RawGraph {
  operations(): number;
  launches(): number;
  replay(): undefined | Failure;
  dispose(): void;
  disposed(): boolean;
}

export interface RawReader {
  /** Fills the target. */
  read(): Promise<undefined | Failure> | Failure;
  dispose(): void;
  disposed(): boolean;
}

export interface RawStream {
  /** One operation: its number in operations(), then its arguments in the order of its fields. */
  run(verb: number, ...args: unknown[]): undefined | Failure;
  useWorkspace(tensor: RawTensor): undefined | Failure;
  write(tensor: RawTensor, data: ArrayBufferView, byteOffset: number): undefined | Failure;
  /** Fills `target`, which must have the tensor's size and belong to nobody else until the promise resolves. */
  read(tensor: RawTensor, target: ArrayBuffer): Promise<undefined | Failure> | Failure;
  /** `target` is a view of shared memory, of the tensor's size. */
  reader(tensor: RawTensor, target: Uint8Array): RawReader | Failure;
  readFile(tensor: RawTensor, fd: number, offset: number): undefined | Failure;
  record(): RawEvent | Failure;
  wait(event: RawEvent): undefined | Failure;
  beginCapture(): undefined | Failure;
  endCapture(): RawGraph | Failure;
  abortCapture(): void;
  dispose(): void;
  disposed(): boolean;
}

export interface RawDevice {
  info(): object | Failure;
  allocate(dtype: number, ...shape: number[]): Promise<RawTensor | Failure> | Failure;
  stream(): RawStream | Failure;
  /** Like run(), with [dtype, ...shape] for each tensor. */
  workspaceBytes(verb: number, ...args: unknown[]): number | Failure;
  decodePlanInts(maxSequences: number, heads: number): number | Failure;
  allocatedBytes(): number;
  /** A promise the first time, undefined afterwards. */
  dispose(): Promise<undefined | Failure> | undefined | Failure;
  disposed(): boolean;
  abandon(ms: number): undefined | Failure;
  failCommand(k: number, lost: boolean): undefined | Failure;
}

/** One operation as csrc/ops/ops.h lists it. */
export interface RawOperation {
  verb: string;
  fields: { name: string; kind: 'tensor' | 'integer' | 'number' | 'boolean'; optional: boolean }[];
}

export interface RawAddon {
  /** `number` is the GPU's index for CUDA, the thread count for the CPU. */
  openDevice(
    cuda: boolean,
    number: number,
    portable: boolean,
    deterministic: boolean,
    serial: boolean,
  ): RawDevice | Failure;
  build(): { cuda: boolean; version: string; archs: string };
  gpus(): { runtimeCuda: number; driverCuda: number; gpus: GpuFacts[]; failure: Failure | undefined };
  /** A GPU (major, minor, multiprocessors, sharedBytesPerBlock), then the arguments of RawDevice.workspaceBytes. */
  planWorkspaceBytes(...args: unknown[]): number | Failure;
  /** The same, then those of RawDevice.decodePlanInts. */
  planDecodeInts(...args: unknown[]): number | Failure;
  /** Names of the element types; a type's number is its place here. */
  dtypes(): string[];
  operations(): RawOperation[];
  failAllocation(k: number): undefined | Failure;
  allocationCount(): number;
  launchedKernels(forget: boolean): string[] | Failure;
}

/** The result of a native call; throws the MlaError that a failure stands for. */
export function check<T>(result: T | Failure): T {
  if (typeof result !== 'string') return result;
  throw failureError(result);
}

/** The error that a native failure stands for. */
export function failureError(failure: Failure): MlaError {
  const end = failure.indexOf('\n');
  return new MlaError(failure.slice(0, end) as ErrorCode, failure.slice(end + 1));
}
