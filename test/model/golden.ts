// golden.ts - the committed reference outputs of Hugging Face transformers, and how ours are compared with them.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { LatentModel } from '../../lib/model';

const FOLDER = join(__dirname, '..', 'golden');

/** One prompt of a golden.json. */
export interface GoldenPrompt {
  tokens: number[];
  logprobs: (number | null)[];
  top: [number, number][][];
  lastLogits: number[];
  greedy: number[];
  greedyLogprobs: number[];
  greedyGaps: number[];
}

/** One tiny checkpoint with what transformers computes on it in float32. */
export interface Golden {
  name: string;
  dir: string;
  prompts: GoldenPrompt[];
}

/** Every golden checkpoint. */
export const goldens: Golden[] = readdirSync(FOLDER, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => {
    const dir = join(FOLDER, name);
    const { prompts } = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')) as { prompts: GoldenPrompt[] };
    return { name, dir, prompts };
  });

/** v3-fp8 with what transformers computes where activations meet fp8 weights in fp8: log-probabilities alone. */
export function goldenOfFp8Activations(): Golden {
  const golden = goldens.find(({ name }) => name === 'v3-fp8') as Golden;
  const { logprobs } = JSON.parse(readFileSync(join(golden.dir, 'fp8-activations.json'), 'utf8')) as {
    logprobs: (number | null)[][];
  };
  const prompts = golden.prompts.map((prompt, i) => ({
    ...prompt,
    logprobs: logprobs[i] as (number | null)[],
    top: [],
    lastLogits: [],
  }));
  return { name: 'v3-fp8 with fp8 activations', dir: golden.dir, prompts };
}

/** The log-probabilities that a model gives all prompts, one list; each prompt's first token has none. */
export async function scoresOf(model: LatentModel, prompts: readonly GoldenPrompt[]): Promise<number[]> {
  const scores: number[] = [];
  for (const { tokens } of prompts) scores.push(...(await model.score(tokens)).logprobs.slice(1));
  return scores;
}

/** Differences between two lists of log-probabilities. */
export interface Distance {
  mean: number;
  worst: number;
}

/** Places where `b` has none are left out; NaN where anything is. */
export function distance(a: readonly number[], b: readonly (number | null)[]): Distance {
  if (a.length !== b.length) throw new Error(`${a.length} scores and ${b.length}`);
  const both = a.flatMap((x, i) => (b[i] === null ? [] : [Math.abs(x - (b[i] as number))]));
  return { mean: both.reduce((sum, x) => sum + x, 0) / both.length, worst: Math.max(...both) };
}

export const shown = ({ mean, worst }: Distance) => `mean ${mean.toExponential(2)}, worst ${worst.toExponential(2)}`;

/** Greedy tokens are compared until the reference itself is this close to undecided. */
export const UNDECIDED = 2e-2;

/** How two greedy continuations compare. */
export interface GreedyComparison {
  /** tokens that had to be equal */
  compared: number;
  /** tokens of the reference */
  total: number;
  /** place of the first token that differs although the reference was decided; -1 if there is none */
  firstWrong: number;
}

/**
 * Compares greedy tokens up to and including the first that differs. A difference is excused where the reference's
 * two best logits are less than UNDECIDED apart; what follows it is another text and not compared.
 */
export function compareGreedy(
  reference: readonly number[],
  gaps: readonly number[],
  ours: readonly number[],
): GreedyComparison {
  const total = reference.length;
  for (let i = 0; i < total; i++) {
    if (ours[i] === reference[i]) continue;
    const excused = (gaps[i] as number) < UNDECIDED;
    return { compared: i, total, firstWrong: excused ? -1 : i };
  }
  return { compared: total, total, firstWrong: -1 };
}
