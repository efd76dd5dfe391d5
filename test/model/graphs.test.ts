// A decode step replayed from a graph gives the text that its operations give when each is issued anew, in every size of
// batch: 204 random prompts. The same on a GPU, also without dependent launch, is in test/gpu/model.test.ts.
import { LatentModel, type LatentModelOptions } from '../../lib/model';
import { openDevice } from '../../lib/native';
import { goldens } from './golden';
import { BATCHES, randomTasks, sameTexts, type Text, textsOf, withSpoiltGraphs } from './random-texts';

const PROMPTS = 34;
const options: LatentModelOptions = { device: 'cpu', context: 128, maxSequences: 16, prefixCache: false };

async function texts(dir: string, more: LatentModelOptions, sizes = BATCHES): Promise<Text[]> {
  const model = await LatentModel.load(dir, { ...options, ...more });
  try {
    return await textsOf(model, randomTasks(model.vocab, PROMPTS, 1), sizes);
  } finally {
    await model.dispose();
  }
}

test.each(goldens.map((g) => [g.name, g] as const))(
  '%s: the same texts with and without graphs',
  async (name, golden) => {
    const captured = await texts(golden.dir, {});
    const issued = await texts(golden.dir, { graphs: false });
    const alone = await texts(golden.dir, { graphs: false }, [1]);
    const tokens = captured.reduce((sum, { ids }) => sum + ids.length, 0);
    const same = { issued: sameTexts(captured, issued), alone: sameTexts(captured, alone) };
    console.log(
      `${name}: ${captured.length} prompts, ${tokens} tokens, batches of ${BATCHES}: without graphs ${same.issued.ids} ` +
        `the same (${same.issued.bits} to the bit), and alone ${same.alone.ids}`,
    );
    expect(captured).toHaveLength(PROMPTS);
    expect(same.issued).toEqual({ ids: PROMPTS, bits: PROMPTS });
    expect(same.alone.ids).toBe(PROMPTS);
  },
);

test('control: graphs that lack one operation give other texts', async () => {
  const device = openDevice('cpu', { threads: 1 });
  const { dir } = goldens[0] as (typeof goldens)[number];
  const right = await texts(dir, { graphs: false });
  const [spoilt, untouched] = await withSpoiltGraphs(device.stream(), async () => [
    await texts(dir, {}),
    await texts(dir, { graphs: false }),
  ]);
  await device.dispose();
  const { ids } = sameTexts(right, spoilt as Text[]);
  console.log(`graphs without their first attention: ${PROMPTS - ids} of ${PROMPTS} texts are others`);
  expect(ids).toBeLessThan(PROMPTS / 2);
  expect(sameTexts(right, untouched as Text[]).ids).toBe(PROMPTS);
});
