// cli/gpus.ts - GPUs that `mla inspect --gpu` knows by name, so that one can ask before one has them.
import type { DeviceInfo, GpuFacts } from '../native';

const GIB = 2 ** 30;
const KIB = 1024;

/**
 * Compute capability, multiprocessors and shared memory per block as NVIDIA publishes them; memory as drivers report it,
 * which is less than the number in the name (H100 measured, the others as commonly reported).
 */
const GPUS: Readonly<
  Record<string, readonly [capability: number, multiprocessors: number, sharedKib: number, gib: number]>
> = {
  h200: [9.0, 132, 227, 139.8],
  h100: [9.0, 132, 227, 79.1],
  b200: [10.0, 148, 227, 178.3],
  a100: [8.0, 108, 163, 79.1],
  'a100-40gb': [8.0, 108, 163, 39.4],
  l40s: [8.9, 142, 99, 44.4],
  l4: [8.9, 58, 99, 22.0],
  a10: [8.6, 72, 99, 22.0],
  'rtx-3090': [8.6, 82, 99, 23.7],
  'rtx-4090': [8.9, 128, 99, 23.6],
  'rtx-5090': [12.0, 170, 99, 31.4],
  'rtx-pro-6000': [12.0, 188, 99, 94.9],
};

/** What a process takes besides the model: CUDA's context and all kernels. 0.52 GiB on an H100, 2026-11-26. */
export const CONTEXT_BYTES = 0.55 * GIB;

/** Names for --gpu. */
export const GPU_NAMES: readonly string[] = Object.keys(GPUS);

/** The GPU of this name, free but for the context; null when it is not known. */
export function namedGpu(name: string): { facts: GpuFacts; info: DeviceInfo } | null {
  const key = name.toLowerCase();
  const known = Object.hasOwn(GPUS, key) ? GPUS[key] : undefined;
  if (known === undefined) return null;
  const [capability, multiprocessors, sharedKib, gib] = known;
  const major = Math.floor(capability);
  const minor = Math.round(10 * (capability - major));
  const memoryTotal = gib * GIB;
  const facts = { name: key, major, minor, multiprocessors, sharedBytesPerBlock: sharedKib * KIB, memoryTotal };
  const path = capability === 9 ? 'sm_90a' : 'portable';
  const info: DeviceInfo = {
    kind: 'cuda',
    name: key,
    path,
    memoryTotal,
    memoryFree: memoryTotal - CONTEXT_BYTES,
    threads: 0,
    multiprocessors,
  };
  return { facts, info };
}
