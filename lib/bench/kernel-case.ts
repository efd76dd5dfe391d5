// bench/kernel-case.ts - what a measured operation is.
import type { Tensor } from '../native';
import type { Workbench } from './workbench';

/** One operation at one shape. */
export interface KernelCase {
  /** As bench/anchors.json names it. */
  id: string;
  /** What one call moves at least (each input read once, each output written once) and computes; `fp8`: of two operands in fp8. */
  cost(): { bytes: number; flops: number; fp8?: boolean };
  /** Makes arguments in so many sets that together they take `coldBytes`: no cache then holds what a call reads. */
  prepare(bench: Workbench, coldBytes: number): Promise<PreparedCase>;
}

/** A case whose data is on the device. */
export interface PreparedCase {
  sets: number;
  /** Issues the operation on one of the sets. */
  issue(set: number): void;
  /** Everything that it writes for a set. */
  outputs(set: number): readonly Tensor[];
  /** Relative error of what was computed, on sampled rows, against float64. */
  check(): Promise<number>;
  /** The largest such error that bf16 arithmetic explains. */
  bound: number;
}

/** Sets of arguments that take `coldBytes` together. */
export function setsFor(bytes: number, coldBytes: number): number {
  return Math.min(1024, Math.max(1, Math.ceil(coldBytes / bytes)));
}
