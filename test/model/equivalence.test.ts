// The same greedy text whatever way it is computed: chunked or whole prefill, absorbed or expanded attention, alone or
// in a batch, with one thread or two. Where two ways differ, the reference must have been undecided.
import { LatentModel, type LatentModelOptions } from '../../lib/model';
import { continueAlone, continueTogether } from './continue';
import { compareGreedy, goldens } from './golden';

const COUNT = 24;

async function withModel<T>(
  dir: string,
  options: LatentModelOptions,
  run: (model: LatentModel) => Promise<T>,
): Promise<T> {
  const model = await LatentModel.load(dir, { device: 'cpu', context: 1024, maxSequences: 8, ...options });
  try {
    return await run(model);
  } finally {
    await model.dispose();
  }
}

describe.each(goldens.map((g) => [g.name, g] as const))('%s', (_, golden) => {
  const [, , long, longest] = golden.prompts.map((p) => p.tokens) as [number[], number[], number[], number[]];
  // eight sequences of different lengths: the golden prompts and the beginnings of the long ones
  const prompts = [
    ...golden.prompts.map((p) => p.tokens),
    ...[2, 63, 64, 65].map((length) => longest.slice(0, length)),
  ];
  const alone = (options: LatentModelOptions) =>
    withModel(golden.dir, options, async (model) => {
      const texts = [];
      for (const prompt of prompts) texts.push(await continueAlone(model, prompt, COUNT));
      return texts;
    });

  test('gives the same text in every way', async () => {
    const reference = await alone({});
    const ways: Record<string, number[][]> = {
      'batch of 8': await withModel(golden.dir, {}, (model) => continueTogether(model, prompts, COUNT)),
      'chunks of 50': await alone({ prefillChunk: 50 }),
      'chunks of 7': await alone({ prefillChunk: 7, maxSequences: 2 }),
      'expanded attention': await alone({ attention: 'expanded' }),
      'absorbed attention': await alone({ attention: 'absorbed' }),
      'batch of 8, chunks of 50, expanded': await withModel(
        golden.dir,
        { prefillChunk: 50, attention: 'expanded' },
        (model) => continueTogether(model, prompts, COUNT),
      ),
      'one thread': await alone({ threads: 1 }),
    };
    let exceptions = 0;
    for (const [way, texts] of Object.entries(ways)) {
      texts.forEach((ids, i) => {
        const gaps = golden.prompts[i]?.greedyGaps;
        if (gaps === undefined || ids.join() === reference[i]?.join()) {
          expect([way, i, ids]).toEqual([way, i, reference[i]]);
          return;
        }
        exceptions += 1;
        expect([way, i, compareGreedy(reference[i] as number[], gaps, ids).firstWrong]).toEqual([way, i, -1]);
      });
    }
    console.log(
      `${golden.name}: ${Object.keys(ways).length} ways x ${prompts.length} prompts, ${exceptions} exceptions`,
    );
  });

  test('a row does not depend on its neighbours, bit for bit', async () => {
    const logits = await withModel(golden.dir, {}, async (model) => {
      const score = await model.score(long, { logits: true });
      const sequence = model.openSequence();
      const pending = model.step([{ sequence, tokens: longest }]);
      const again = await model.score(long, { logits: true });
      await pending;
      sequence.dispose();
      return [score.logits, again.logits] as Float32Array[];
    });
    const [before, after] = logits.map((row) => Buffer.from(row.buffer));
    expect(after).toEqual(before);
  });
});
