// bench/startup.ts - how long it takes until a model says something: loading, and the first token.
import { LatentModel, type LoadProgress } from '../model';
import type { DeviceInfo } from '../native';
import type { PlacementOptions } from './model-bench';

export interface StartupBenchOptions extends PlacementOptions {
  /** checkpoint folder */
  dir: string;
  repetitions: number;
  /** tokens of the first prompt */
  promptTokens: number;
}

/** One start. The first after a boot reads the disk, later ones what the system has kept of it in memory. */
export interface StartupResult {
  /** of weights on the device */
  bytes: number;
  /** from the call to a model that can be used, device included */
  loadMs: number;
  /** of that, from the first byte of weights asked for to the last one on the device */
  weightsMs: number;
  /** while weights were loaded */
  bytesPerSecond: number;
  /** from the first prompt to its first token */
  firstTokenMs: number;
  device: DeviceInfo;
}

/** Loads, generates one token and disposes, so many times. Rejects with what loading rejects with. */
export async function benchStartup(
  options: StartupBenchOptions,
  report: (result: StartupResult) => void,
): Promise<void> {
  const { dir, repetitions, promptTokens, ...placed } = options;
  for (let i = 0; i < repetitions; i++) {
    placed.signal?.throwIfAborted();
    const began = performance.now();
    const reached = { weights: 0, ready: 0 };
    const onProgress = ({ phase }: LoadProgress) => {
      if (phase === 'weights') reached.weights ||= performance.now();
      if (phase === 'ready') reached.ready = performance.now();
    };
    const model = await LatentModel.load(dir, { ...placed, maxSequences: 1, onProgress });
    try {
      const loadMs = performance.now() - began;
      const sequence = model.openSequence();
      const tokens = Int32Array.from({ length: promptTokens }, (_, t) => (t * 7919) % model.vocab);
      const asked = performance.now();
      await model.step([{ sequence, tokens }]);
      const firstTokenMs = performance.now() - asked;
      const bytes = model.memory.weights;
      const weightsMs = reached.ready - reached.weights;
      const bytesPerSecond = (bytes * 1000) / weightsMs;
      report({ bytes, loadMs, weightsMs, bytesPerSecond, firstTokenMs, device: model.deviceInfo });
    } finally {
      await model.dispose();
    }
  }
}
