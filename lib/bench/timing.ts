// bench/timing.ts - how long one operation takes: many of them in a captured graph, replayed often enough that the host's
// part (a replay's launch, the wait for the end) is below a hundredth of what is measured.
import type { Graph, Stream } from '../native';

const MIN_SAMPLE_MS = 10;
const ENOUGH_SAMPLES = 5;
/** Of one case; slow operations then get fewer samples, but at least ENOUGH_SAMPLES. */
const BUDGET_MS = 2500;

/** Milliseconds that `replays` replays take, seen from the host. */
async function sample(stream: Stream, graph: Graph, replays: number): Promise<number> {
  const began = performance.now();
  for (let i = 0; i < replays; i++) graph.replay();
  await stream.record().done;
  return performance.now() - began;
}

/** Microseconds per operation, one figure for each sample, in the order they were taken. */
export async function timeGraph(stream: Stream, graph: Graph, samples: number): Promise<number[]> {
  await sample(stream, graph, 1);
  const once = await sample(stream, graph, 1);
  const replays = Math.max(1, Math.ceil(MIN_SAMPLE_MS / once));
  await sample(stream, graph, replays);
  const began = performance.now();
  const taken: number[] = [];
  for (let i = 0; i < samples; i++) {
    if (i >= ENOUGH_SAMPLES && performance.now() - began > BUDGET_MS) break;
    taken.push(((await sample(stream, graph, replays)) * 1000) / (replays * graph.operations));
  }
  return taken;
}

/**
 * Microseconds of a replay of `whole`, and by how much it is longer than one of `part`: medians of samples taken in turn,
 * so that neither a change of the GPU's clocks nor the other's heat counts.
 */
export async function timeInTurn(
  stream: Stream,
  whole: Graph,
  part: Graph,
  samples: number,
): Promise<{ whole: number; difference: number }> {
  await sample(stream, part, 1);
  const once = await sample(stream, whole, 1);
  const replays = Math.max(1, Math.ceil(MIN_SAMPLE_MS / once));
  const taken: number[] = [];
  const differences: number[] = [];
  for (let i = 0; i < samples; i++) {
    const a = await sample(stream, whole, replays);
    const b = await sample(stream, part, replays);
    taken.push((a * 1000) / replays);
    differences.push(((a - b) * 1000) / replays);
  }
  return { whole: median(taken), difference: median(differences) };
}

/** The middle one. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[middle] as number;
  return ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}
