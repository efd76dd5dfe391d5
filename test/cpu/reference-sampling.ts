// cpu/reference-sampling.ts - the sampler by its definition: sort, filter, add noise, take the largest.
import { gumbelOf, keyOf } from './reference-philox';

/** One row of SampleParams::settings. */
export interface Settings {
  temperature: number;
  top_k?: number;
  top_p?: number;
  min_p?: number;
  repetition?: number;
  presence?: number;
  frequency?: number;
}

/** The flag in a count of an id that stands in the prompt. */
export const IN_PROMPT = 1 << 30;

/** The settings as the tensor has them. */
export function settingsRow(s: Settings): number[] {
  const { temperature, top_k = 0, top_p = 1, min_p = 0, repetition = 1, presence = 0, frequency = 0 } = s;
  return [temperature, top_k, top_p, min_p, repetition, presence, frequency, 0];
}

/** Closer than this to a border, float32 and float64 may decide differently; references refuse to answer there. */
const DOUBT = 1e-6;

interface Candidate {
  id: number;
  x: number;
  p: number;
}

function normalised(candidates: Candidate[]): Candidate[] {
  const largest = candidates.reduce((most, c) => Math.max(most, c.x), -Infinity);
  const sum = candidates.reduce((total, c) => total + Math.exp(c.x - largest), 0);
  return candidates.map((c) => ({ ...c, p: Math.exp(c.x - largest) / sum }));
}

/** Tokens that stay after penalties, mask, temperature and all filters, in descending order; greedy keeps one. */
export function keptTokens(
  logits: ArrayLike<number>,
  settings: Settings,
  vocab: number,
  counts?: ArrayLike<number>,
  allowed?: (id: number) => boolean,
  bias?: ArrayLike<number>,
): Candidate[] {
  const { temperature, top_k = 0, top_p = 1, min_p = 0, repetition = 1, presence = 0, frequency = 0 } = settings;
  let candidates: Candidate[] = [];
  for (let id = 0; id < vocab; id++) {
    let x = logits[id] as number;
    const count = counts?.[id] ?? 0;
    const after = count & (IN_PROMPT - 1);
    if (count > 0) x = x > 0 ? x / repetition : x * repetition;
    if (count > 0 && after > 0) x -= presence + frequency * after;
    x += bias?.[id] ?? 0;
    if (x > -Infinity && (allowed?.(id) ?? true)) candidates.push({ id, x: Math.fround(x), p: 0 });
  }
  candidates.sort((a, b) => b.x - a.x || a.id - b.id);
  if (temperature === 0) return candidates.slice(0, 1);
  candidates = candidates.map((c) => ({ ...c, x: c.x / temperature }));
  if (top_k > 0) candidates = candidates.slice(0, top_k);
  if (top_p < 1) {
    let sum = 0;
    let n = 0;
    for (const { p } of normalised(candidates)) {
      if (n > 0 && sum >= top_p) break;
      sum += p;
      n++;
      // Where single tokens are as unlikely as that, the sum passes close by in any case, and which of them stays
      // hardly ever matters.
      if (Math.abs(sum - top_p) < DOUBT && p > DOUBT)
        throw new Error(`top_p ${top_p} is too close to a sum of probabilities`);
    }
    candidates = candidates.slice(0, n);
  }
  const most = candidates[0]?.x as number;
  for (const { x } of candidates) {
    if (min_p > 0 && Math.abs(Math.exp(x - most) / min_p - 1) < DOUBT && x !== most)
      throw new Error(`min_p ${min_p} is too close to a ratio of probabilities`);
  }
  return normalised(candidates.filter(({ x }) => x === most || Math.exp(x - most) >= min_p));
}

/** The token that a seed and position choose among candidates. */
export function pick(candidates: readonly Candidate[], seed: number, position: number): number {
  const key = keyOf(BigInt(seed));
  let first = { id: -1, y: -Infinity };
  let second = first;
  for (const { id, x } of candidates) {
    const y = candidates.length === 1 ? x : x + gumbelOf(key, position, id);
    if (y > first.y) [first, second] = [{ id, y }, first];
    else if (y > second.y) second = { id, y };
  }
  if (first.id < 0) throw new Error('no candidate');
  if (first.y - second.y < DOUBT * (1 + Math.abs(first.y)))
    throw new Error(`seed ${seed} and position ${position} are too close to a tie`);
  return first.id;
}

/** log softmax of the logits as given. */
export function logProbability(logits: ArrayLike<number>, id: number): number {
  let largest = -Infinity;
  for (let i = 0; i < logits.length; i++) largest = Math.max(largest, logits[i] as number);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp((logits[i] as number) - largest);
  return (logits[id] as number) - largest - Math.log(sum);
}
