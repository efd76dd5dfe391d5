// gpu/resident.test.ts - decode steps of one row that one kernel does (csrc/cuda/resident) against the same operations one
// by one. Attention is split over blocks in another way, so last bits differ, as they do between batches: the measure is
// how far deterministic models, which split it in yet another way, are from the same texts. And two models at the same
// time: each one's kernel waits until it has the whole GPU.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { LatentModel, type LatentModelOptions } from '../../lib/model';
import { native } from '../../lib/native';
import { randomTasks, type Task, type Text, textsOf } from '../model/random-texts';
import { closeDevices, openTested, TESTED_DEVICE } from './harness';

/** A row that one kernel took another way through may be this much further off than one of another split. */
const FACTOR = 1.5;
const hopper = TESTED_DEVICE === 'cuda:0' && openTested().info().path === 'sm_90a';

after(closeDevices);

const open = (more: LatentModelOptions): Promise<LatentModel> =>
  LatentModel.random('v2-lite:4', {
    device: TESTED_DEVICE as 'cpu',
    context: 4352,
    maxSequences: 2,
    prefixCache: false,
    ...more,
  });

/** Whether the kernel has been launched since the last question. */
const launched = (): boolean => native.launchedKernels(true).some((kernel) => kernel.includes('resident_kernel'));

/** Log-probabilities along what two texts have in common: how many, and by how much they differ. */
function distance(
  a: readonly Text[],
  b: readonly Text[],
): { same: number; tokens: number; mean: number; worst: number } {
  const off: number[] = [];
  let same = 0;
  for (const [i, text] of a.entries()) {
    const other = b[i] as Text;
    const differs = text.ids.findIndex((id, k) => id !== other.ids[k]);
    if (differs < 0) same += 1;
    const common = differs < 0 ? text.ids.length : differs;
    for (let k = 0; k < common; k++) off.push(Math.abs((text.logprobs[k] as number) - (other.logprobs[k] as number)));
  }
  return { same, tokens: off.length, mean: off.reduce((x, y) => x + y, 0) / off.length, worst: Math.max(...off) };
}

/** Prompts that end around the borders of pages, some of them over several pages. */
function tasksOf(vocab: number): Task[] {
  // The last one grows beyond 66 pages, from where on two blocks of 132 no longer share a page.
  const borders = [1, 2, 15, 16, 17, 62, 63, 64, 65, 127, 128, 700, 1900, 4212];
  const long = randomTasks(vocab, 200, 5).flatMap(({ tokens }) => tokens);
  return [
    ...borders.map((length, i) => ({ tokens: long.slice(i * 7, i * 7 + length), count: 24 })),
    ...randomTasks(vocab, 20, 2),
  ];
}

for (const types of [
  { dtype: 'bf16', cacheDtype: 'bf16' },
  { dtype: 'fp8', cacheDtype: 'fp8' },
  { dtype: 'fp8', cacheDtype: 'bf16' },
] as const) {
  const name = `${types.dtype} weights, ${types.cacheDtype} cache`;
  test(`one kernel for a step, ${name}`, { skip: !hopper }, async () => {
    const texts = async (more: LatentModelOptions): Promise<[Text[], boolean]> => {
      launched();
      const model = await open({ ...types, ...more });
      try {
        const made = await textsOf(model, tasksOf(model.vocab), [1]);
        return [made, launched()];
      } finally {
        await model.dispose();
      }
    };
    const [one, inOne] = await texts({});
    const [again] = await texts({});
    const [apart, inApart] = await texts({ graphs: false });
    const [fixed, inFixed] = await texts({ deterministic: true, graphs: false });
    assert.deepEqual([inOne, inApart, inFixed], [true, false, false], 'which of them the kernel took');
    assert.deepEqual(one, again, 'the same bits in each run');
    const [far, other] = [distance(one, apart), distance(fixed, apart)];
    const say = (d: typeof far) =>
      `${d.same} of ${one.length} texts the same; ${d.tokens} tokens, off by ${d.mean.toExponential(2)}, worst ${d.worst.toExponential(2)}`;
    console.log(`${name}: one kernel: ${say(far)}; another split: ${say(other)}`);
    assert.ok(far.mean <= FACTOR * other.mean, `${far.mean} is more than ${FACTOR} times ${other.mean}`);
    assert.ok(far.tokens >= other.tokens / 2, 'texts part early');
  });
}

/** Long texts behind short prompts. */
const longTasks = (vocab: number, seed: number): Task[] =>
  randomTasks(vocab, 8, seed).map(({ tokens }) => ({ tokens, count: 300 }));

for (const dtypes of [
  ['bf16', 'bf16'],
  ['bf16', 'fp8'],
] as const) {
  const name = `two models at the same time, ${dtypes.join(' and ')} weights`;
  // A step that waits for ever ends after stepTimeout, and its model is lost then.
  test(name, { skip: !hopper, timeout: 180_000 }, async () => {
    const models: LatentModel[] = [];
    try {
      for (const dtype of dtypes) models.push(await open({ dtype, maxSequences: 5, stepTimeout: 20_000 }));
      const [a, b] = models as [LatentModel, LatentModel];
      launched();
      // One sequence on each; and four on the second, whose steps of separate kernels stand between those of one row.
      const works = [
        () => textsOf(a, longTasks(a.vocab, 1), [1]),
        () => textsOf(b, longTasks(b.vocab, 2), [1]),
        () => textsOf(b, longTasks(b.vocab, 3), [4]),
      ];
      const alone: Text[][] = [];
      const began = performance.now();
      for (const work of works) alone.push(await work());
      const apartMs = performance.now() - began;
      assert.ok(launched(), 'the kernel took the steps of one row');
      const together = await Promise.all(works.map((work) => work()));
      const togetherMs = performance.now() - began - apartMs;
      console.log(`${name}: ${togetherMs.toFixed(0)} ms, one after the other ${apartMs.toFixed(0)} ms`);
      assert.deepEqual(together, alone);
    } finally {
      for (const model of models) await model.dispose();
    }
  });
}
