// model/capacity.ts - how long a context, and how many sequences, fit into so much memory.
import { invalidArg } from '../errors';
import type { DeviceInfo, Planner } from '../native';
import type { WeightOrigin } from './build';
import { type ModelPlan, planModel } from './plan';
import type { LatentModelOptions } from './types';

/** The most that fits; 0 where not even one does. */
export interface Capacity {
  /** tokens of the longest context for one sequence, at most what the model allows */
  longestContext: number;
  /** sequences at the full context of the options, at most the engine's limit */
  mostSequences: number;
}

const MOST_SEQUENCES = 1024;

/** @throws ERR_INVALID_ARG, ERR_UNSUPPORTED */
export function capacityOf(
  planner: Planner,
  info: DeviceInfo,
  origin: Pick<WeightOrigin, 'config' | 'layout'>,
  options: LatentModelOptions,
  plan: ModelPlan,
): Capacity {
  if (!(info.memoryFree >= 0)) throw invalidArg('memoryFree', 'bytes', info.memoryFree);
  const fits = (more: LatentModelOptions) =>
    planModel(planner, info, origin, { ...options, pages: undefined, ...more }, plan).memory.total <= info.memoryFree;
  return {
    longestContext: largest(origin.config.max_position_embeddings, (context) => fits({ context, maxSequences: 1 })),
    mostSequences: largest(MOST_SEQUENCES, (maxSequences) => fits({ maxSequences })),
  };
}

/** The largest integer from 1 to `most` that fits, 0 if none does. What fits, fits smaller too. */
function largest(most: number, fits: (n: number) => boolean): number {
  if (!fits(1)) return 0;
  if (fits(most)) return most;
  let low = 1;
  let high = most;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return low;
}
