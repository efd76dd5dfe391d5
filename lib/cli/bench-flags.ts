// cli/bench-flags.ts - flags of the benches that measure whole models.
import type { Command } from 'commander';
import type { ModelBenchOptions } from '../bench';
import { SHAPE_NAMES } from '../model';
import { UsageError } from './failure';
import { addDeterministicFlag, addJsonFlag, addPlacementFlags, integer, type JsonFlag, type ModelFlags } from './flags';

/** Which model is measured, where, and how often. */
export interface ModelBenchFlags
  extends Pick<
      ModelFlags,
      'model' | 'device' | 'dtype' | 'cacheDtype' | 'activationDtype' | 'threads' | 'deterministic'
    >,
    JsonFlag {
  shape?: string;
  repetitions: number;
}

/** Adds the flags of {@link ModelBenchFlags}. */
export function addModelBenchFlags(command: Command): Command {
  command
    .option('-m, --model <dir>', 'checkpoint folder, or org/name in the cache')
    .option('--shape <name>', `random weights in a published shape: ${SHAPE_NAMES.join(', ')}, or NAME:LAYERS`)
    .option('--repetitions <n>', 'how often each figure is taken', integer(1, 1000), 3);
  return addJsonFlag(addDeterministicFlag(addPlacementFlags(command)));
}

/** The options that the flags stand for. @throws UsageError */
export function modelBenchOptionsOf(flags: ModelBenchFlags, signal: AbortSignal): ModelBenchOptions {
  const { model, shape, device, dtype, cacheDtype, activationDtype, threads, deterministic, repetitions } = flags;
  if ((model === undefined) === (shape === undefined)) throw new UsageError('Give either --shape or --model.');
  const what = shape === undefined ? { dir: model as string } : { shape };
  return { model: what, device, dtype, cacheDtype, activationDtype, threads, deterministic, repetitions, signal };
}

/** What `circumstances` is to look at: 'auto' takes the first GPU. */
export const deviceOf = (device: string): string => (device === 'auto' ? 'cuda:0' : device);
