// continue.ts - continuations by steps of the model class, as the engine makes them.
import type { LatentModel, SamplingSettings } from '../../lib/model';

/** Greedy settings for `count` tokens after `prompt`. */
export function greedy(prompt: readonly number[], count: number): SamplingSettings {
  return { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0, stopIds: [], maxLength: prompt.length + count };
}

/** `count` greedy tokens after each prompt, all prompts in the same steps. */
export async function continueTogether(
  model: LatentModel,
  prompts: readonly (readonly number[])[],
  count: number,
): Promise<number[][]> {
  const rows = prompts.map((tokens) => {
    const sequence = model.openSequence();
    sequence.setSampling(greedy(tokens, count));
    return { sequence, ids: [] as number[], running: true };
  });
  try {
    let first = true;
    while (rows.some((row) => row.running)) {
      const running = rows.filter((row) => row.running);
      const results = await model.step(
        running.map((row) =>
          first ? { sequence: row.sequence, tokens: prompts[rows.indexOf(row)] } : { sequence: row.sequence },
        ),
      );
      first = false;
      running.forEach((row, i) => {
        row.ids.push(results[i]?.token as number);
        row.running = results[i]?.finished === null;
      });
    }
    return rows.map((row) => row.ids);
  } finally {
    for (const { sequence } of rows) sequence.dispose();
  }
}

/** `count` greedy tokens after one prompt. */
export async function continueAlone(model: LatentModel, prompt: readonly number[], count: number): Promise<number[]> {
  return (await continueTogether(model, [prompt], count))[0] as number[];
}
