// Every golden checkpoint through the public steps of the model class, against transformers in float32.
import { LatentModel, type LatentModelOptions } from '../../lib/model';
import { continueAlone } from './continue';
import { compareGreedy, type Golden, goldens } from './golden';

const TOLERANCE = 1e-2;
const MEAN_TOLERANCE = 1e-3;

const ways: [string, LatentModelOptions][] = [
  ['as it comes', {}],
  ['expanded attention, chunks of 100 and context pieces of many', { attention: 'expanded', prefillChunk: 100 }],
  ['absorbed attention', { attention: 'absorbed' }],
];

async function scored(golden: Golden, options: LatentModelOptions) {
  const model = await LatentModel.load(golden.dir, { device: 'cpu', context: 1024, maxSequences: 4, ...options });
  try {
    const results = [];
    for (const { tokens } of golden.prompts) results.push(await model.score(tokens, { top: 5, logits: true }));
    return results;
  } finally {
    await model.dispose();
  }
}

describe.each(goldens.map((g) => [g.name, g] as const))('%s', (_, golden) => {
  test.each(ways)('log-probabilities, %s', async (_way, options) => {
    const results = await scored(golden, options);
    let sum = 0;
    let worst = 0;
    let compared = 0;
    let positions = 0;
    golden.prompts.forEach((prompt, p) => {
      const result = results[p] as (typeof results)[number];
      positions += prompt.logprobs.length - 1;
      prompt.logprobs.forEach((reference, i) => {
        if (reference === null) return;
        // What is missing or no number spoils sum and maximum, so it cannot pass as "not compared".
        const difference = Math.abs((result.logprobs[i] ?? Number.NaN) - reference);
        compared += 1;
        sum += difference;
        worst = Math.max(worst, difference);
        const best = prompt.top[i]?.[0]?.[1];
        if (best !== undefined) worst = Math.max(worst, Math.abs((result.top[i]?.[0]?.logprob ?? Number.NaN) - best));
      });
      prompt.lastLogits.forEach((reference, id) => {
        worst = Math.max(worst, Math.abs((result.logits?.[id] ?? Number.NaN) - reference));
      });
    });
    console.log(
      `${golden.name}: ${compared} of ${positions}, worst ${worst.toExponential(2)}, mean ${(sum / compared).toExponential(2)}`,
    );
    expect(compared).toBeGreaterThanOrEqual(0.95 * positions);
    expect(worst).toBeLessThan(TOLERANCE);
    expect(sum / compared).toBeLessThan(MEAN_TOLERANCE);
  });

  test('greedy tokens, one by one', async () => {
    const model = await LatentModel.load(golden.dir, { device: 'cpu', context: 1024, maxSequences: 4 });
    let compared = 0;
    let total = 0;
    try {
      for (const prompt of golden.prompts) {
        const ours = await continueAlone(model, prompt.tokens, prompt.greedy.length);
        expect(ours).toHaveLength(prompt.greedy.length);
        const result = compareGreedy(prompt.greedy, prompt.greedyGaps, ours);
        expect(result.firstWrong).toBe(-1);
        compared += result.compared;
        total += result.total;
      }
    } finally {
      await model.dispose();
    }
    console.log(`${golden.name}: ${compared} of ${total} greedy tokens`);
    expect(compared).toBeGreaterThanOrEqual(0.8 * total);
  });
});

test('there are golden checkpoints of six variants', () => {
  expect(goldens.map((g) => g.name).sort()).toEqual(['glm-4.7-flash', 'moonlight', 'v2', 'v2-lite', 'v3', 'v3-fp8']);
});
