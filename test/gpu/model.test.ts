// gpu/model.test.ts - whole models on the GPU: against transformers in float32, against the CPU backend, and what stays
// behind after many loads and after each failed allocation.
//
// With float32 activations the GPU must be as near to transformers as the CPU is (test/model/golden.test.ts). With bf16
// activations it cannot be: rounding alone moves the log-probabilities of these random checkpoints by 0.01 to 0.08 in
// the mean, so there the measure is the CPU backend with bf16 activations, which rounds in the same places: the GPU's
// distance from float32 may be larger than the CPU's only by MEAN_FACTOR and WORST_FACTOR. NaN is never near enough.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { MlaError } from '../../lib/errors';
import { LatentModel, type LatentModelOptions } from '../../lib/model';
import { native } from '../../lib/native';
import { continueAlone, continueTogether } from '../model/continue';
import { compareGreedy, type Golden, goldenOfFp8Activations, goldens } from '../model/golden';
import { BATCHES, randomTasks, sameTexts, textsOf, withSpoiltGraphs } from '../model/random-texts';
import { closeDevices, openTested, TESTED_DEVICE } from './harness';

const TOLERANCE = 1e-2;
const MEAN_TOLERANCE = 1e-3;
/** Two roundings of the same thing: their mean errors over 947 positions agreed within 4 % in three forms of attention. */
const MEAN_FACTOR = 1.25;
/** The largest of 947 errors scatters more: 40 % between the same three. */
const WORST_FACTOR = 2;
/** Of the forced positions where the reference is decided by more than this, nearly all must have its token. */
const CLEARLY_DECIDED = 0.1;
const BUNDLED = join(__dirname, '..', '..', 'models', 'kjv-10m');

/** bf16 is what a GPU gets by default; said here so that the same test can run on the CPU. */
const BF16: LatentModelOptions = { activationDtype: 'bf16', cacheDtype: 'bf16' };
const F32: LatentModelOptions = { activationDtype: 'f32', cacheDtype: 'f32' };
const options: LatentModelOptions = { device: TESTED_DEVICE as 'cpu', ...BF16, context: 1024, maxSequences: 8 };

after(closeDevices);

async function withModel<T>(
  dir: string,
  more: LatentModelOptions,
  work: (model: LatentModel) => Promise<T>,
): Promise<T> {
  const model = await LatentModel.load(dir, { ...options, ...more });
  try {
    return await work(model);
  } finally {
    await model.dispose();
  }
}

const ways: [string, LatentModelOptions][] = [
  ['as it comes', {}],
  ['expanded attention, chunks of 100', { attention: 'expanded', prefillChunk: 100 }],
  ['absorbed attention', { attention: 'absorbed' }],
];

/** How far a model's scores are from the reference. */
interface Distance {
  positions: number;
  compared: number;
  worst: number;
  mean: number;
}

/** Scores every prompt and compares all that the reference has. NaN makes `worst` NaN. */
async function distanceOf(golden: Golden, model: LatentModel): Promise<Distance> {
  let positions = 0;
  let compared = 0;
  let sum = 0;
  let worst = 0;
  const look = (ours: number | undefined, reference: number): number => {
    const difference = Math.abs((ours ?? Number.NaN) - reference);
    worst = Math.max(worst, difference);
    return difference;
  };
  for (const prompt of golden.prompts) {
    const result = await model.score(prompt.tokens, { top: 5, logits: true });
    positions += prompt.logprobs.length - 1;
    for (const [i, reference] of prompt.logprobs.entries()) {
      if (reference === null) continue;
      sum += look(result.logprobs[i], reference);
      compared += 1;
      const best = prompt.top[i]?.[0]?.[1];
      if (best !== undefined) look(result.top[i]?.[0]?.logprob, best);
    }
    for (const [id, reference] of prompt.lastLogits.entries()) look(result.logits?.[id], reference);
  }
  return { positions, compared, worst, mean: sum / compared };
}

/** Of the clearly decided greedy tokens, how many are the likeliest when the text before them is given. */
async function forcedTokens(golden: Golden, model: LatentModel): Promise<{ right: number; total: number }> {
  let right = 0;
  let total = 0;
  for (const { tokens, greedy, greedyGaps } of golden.prompts) {
    const { top } = await model.score([...tokens, ...greedy], { top: 1 });
    greedy.forEach((id, i) => {
      if ((greedyGaps[i] as number) < CLEARLY_DECIDED) return;
      total += 1;
      if (top[tokens.length + i]?.[0]?.id === id) right += 1;
    });
  }
  return { right, total };
}

/** The GPU's distance from the reference beside that of the CPU with the same options. */
async function asNearAsTheCpu(golden: Golden, more: LatentModelOptions, what: string): Promise<void> {
  const [ours, cpu] = [
    await withModel(golden.dir, more, (model) => distanceOf(golden, model)),
    await withModel(golden.dir, { ...more, device: 'cpu' }, (model) => distanceOf(golden, model)),
  ];
  console.log(`${golden.name} ${what}: ${ours.compared} of ${ours.positions}, ${shown(ours)}; CPU ${shown(cpu)}`);
  assert.ok(ours.compared >= 0.95 * ours.positions, `${ours.compared} of ${ours.positions} compared`);
  assert.ok(ours.mean < MEAN_FACTOR * cpu.mean, `mean ${ours.mean}, the CPU's ${cpu.mean}`);
  assert.ok(ours.worst < WORST_FACTOR * cpu.worst, `worst ${ours.worst}, the CPU's ${cpu.worst}`);
}

// bf16 between operations turns operands to their other e4m3 neighbour here and there, and this checkpoint makes much of
// that: the bound says that nothing is broken. What each operation rounds is held to the CPU operation by operation, and
// to transformers on the CPU (test/model/fp8-activations.test.ts).
test('v3-fp8 with fp8 activations: log-probabilities', () =>
  asNearAsTheCpu(goldenOfFp8Activations(), { activationDtype: 'fp8' }, 'as it comes'));

const shown = ({ worst, mean }: Distance) => `mean ${mean.toExponential(2)}, worst ${worst.toExponential(2)}`;

for (const golden of goldens) {
  for (const [way, more] of ways) {
    test(`${golden.name}: float32 log-probabilities, ${way}`, async () => {
      const distance = await withModel(golden.dir, { ...F32, ...more }, (model) => distanceOf(golden, model));
      const { positions, compared, worst, mean } = distance;
      console.log(`${golden.name} f32, ${way}: ${compared} of ${positions}, ${shown(distance)}`);
      assert.ok(compared >= 0.95 * positions, `${compared} of ${positions} compared`);
      assert.ok(worst < TOLERANCE, `worst ${worst}`);
      assert.ok(mean < MEAN_TOLERANCE, `mean ${mean}`);
    });

    for (const cacheDtype of ['bf16', 'fp8'] as const) {
      test(`${golden.name}: bf16 log-probabilities, ${cacheDtype} cache, ${way}`, () =>
        asNearAsTheCpu(golden, { ...more, cacheDtype }, `bf16, ${cacheDtype} cache, ${way}`));
    }
  }

  test(`${golden.name}: float32 greedy tokens, alone and together`, async () => {
    await withModel(golden.dir, F32, async (model) => {
      const prompts = golden.prompts.map((p) => p.tokens);
      const count = golden.prompts[0]?.greedy.length as number;
      const alone: number[][] = [];
      for (const tokens of prompts) alone.push(await continueAlone(model, tokens, count));
      for (const [way, texts] of [
        ['alone', alone],
        ['together', await continueTogether(model, prompts, count)],
      ] as const) {
        let compared = 0;
        let total = 0;
        golden.prompts.forEach((prompt, p) => {
          const ours = texts[p] as number[];
          const result = compareGreedy(prompt.greedy, prompt.greedyGaps, ours);
          assert.equal(result.firstWrong, -1, `${way}, prompt ${p}: ${ours} instead of ${prompt.greedy}`);
          compared += result.compared;
          total += result.total;
        });
        console.log(`${golden.name} f32, ${way}: ${compared} of ${total} greedy tokens`);
        assert.ok(compared >= 0.8 * total, `${way}: ${compared} of ${total} compared`);
      }
    });
  });

  test(`${golden.name}: bf16 greedy tokens, each after the reference's own text`, async () => {
    const [ours, cpu] = [
      await withModel(golden.dir, {}, (model) => forcedTokens(golden, model)),
      await withModel(golden.dir, { device: 'cpu' }, (model) => forcedTokens(golden, model)),
    ];
    console.log(`${golden.name} bf16: ${ours.right} of ${ours.total} forced tokens; CPU ${cpu.right}`);
    assert.ok(ours.total >= 0.8 * golden.prompts.length * 32, `${ours.total} compared`);
    assert.ok(ours.right >= cpu.right - 3, `${ours.right} of ${ours.total}, the CPU ${cpu.right}`);
    assert.ok(ours.right >= 0.9 * ours.total, `${ours.right} of ${ours.total}`);
  });

  test(`${golden.name}: bf16 text of a batch is the text alone`, async () => {
    await withModel(golden.dir, {}, async (model) => {
      const prompts = golden.prompts.map((p) => p.tokens);
      const together = await continueTogether(model, prompts, 24);
      let same = 0;
      for (const [p, tokens] of prompts.entries()) {
        if ((await continueAlone(model, tokens, 24)).join() === together[p]?.join()) same += 1;
      }
      console.log(`${golden.name} bf16: ${same} of ${prompts.length} texts of a batch are those alone`);
      assert.equal(same, prompts.length);
    });
  });
}

// Graphs and dependent launch change when kernels start, not what they compute; a bucket changes neither, in numbers of
// rows that one kernel takes.
for (const golden of goldens) {
  test(`${golden.name}: bf16 texts of 200 random prompts, with and without graphs and dependent launch`, async () => {
    const texts = (more: LatentModelOptions, sizes: readonly number[] = BATCHES) =>
      withModel(golden.dir, { context: 128, maxSequences: 16, prefixCache: false, ...more }, (model) =>
        textsOf(model, randomTasks(model.vocab, 200, 1), sizes),
      );
    const serial = { device: (TESTED_DEVICE === 'cpu' ? 'cpu' : `${TESTED_DEVICE}:serial`) as 'cpu' };
    const usual = await texts({});
    const tokens = usual.reduce((sum, { ids }) => sum + ids.length, 0);
    console.log(`${golden.name}: ${usual.length} prompts, ${tokens} tokens, batches of ${BATCHES}`);
    for (const [way, more] of [
      ['without graphs', { graphs: false }],
      ['without dependent launch', serial],
      ['without both', { ...serial, graphs: false }],
    ] as const) {
      const same = sameTexts(usual, await texts(more));
      console.log(`${golden.name} ${way}: ${same.ids} the same, ${same.bits} to the bit`);
      assert.deepEqual(same, { ids: 200, bits: 200 }, way);
    }
    // The number of rows may choose a kernel that sums up in another order; not where the model is deterministic.
    const [together, alone] = [await texts({ deterministic: true }), await texts({ deterministic: true }, [1])];
    const same = sameTexts(together, alone);
    console.log(`${golden.name} deterministic, each alone: ${same.ids} the same, ${same.bits} to the bit`);
    assert.deepEqual(same, { ids: 200, bits: 200 });
  });
}

test('control: graphs that lack one operation give other texts', async () => {
  const device = openTested();
  const texts = (graphs: boolean) =>
    withModel(small.dir, { context: 128, maxSequences: 16, prefixCache: false, graphs }, (model) =>
      textsOf(model, randomTasks(model.vocab, 40, 1)),
    );
  const right = await texts(false);
  const { ids } = sameTexts(right, await withSpoiltGraphs(device.stream(), () => texts(true)));
  await device.dispose();
  console.log(`graphs without their first attention: ${40 - ids} of 40 texts are others`);
  assert.ok(ids < 20, `${ids} of 40 texts are the same`);
});

test('there are golden checkpoints of six variants', () => {
  assert.equal(goldens.length, 6);
});

interface Passage {
  prompt: number[];
  expected: number[];
}

for (const cacheDtype of ['bf16', 'fp8'] as const) {
  test(`the bundled model recites the same on the CPU, ${cacheDtype} cache`, () =>
    recitesTheSame(`${cacheDtype} cache`, { cacheDtype }, 20));
}
// One passage comes to a word that is as good as undecided (test/model/quantized.test.ts), where last bits choose.
test('the bundled model recites the same on the CPU, fp8 weights and activations', () =>
  recitesTheSame('fp8 weights and activations', { dtype: 'fp8', activationDtype: 'fp8' }, 18));

async function recitesTheSame(what: string, types: LatentModelOptions, leastSame: number): Promise<void> {
  const passages = JSON.parse(readFileSync(join(BUNDLED, 'passages.json'), 'utf8')) as Passage[];
  const recite = (more: LatentModelOptions) =>
    withModel(BUNDLED, { context: 512, ...types, ...more }, async (model) => {
      const texts: number[][] = [];
      for (const { prompt, expected } of passages) texts.push(await continueAlone(model, prompt, expected.length));
      return texts;
    });
  const [cpu, gpu] = [await recite({ device: 'cpu' }), await recite({})];
  const same = gpu.filter((ids, i) => ids.join() === cpu[i]?.join()).length;
  const exact = gpu.filter((ids, i) => ids.join() === passages[i]?.expected.join()).length;
  console.log(`${what}: ${same} of ${passages.length} passages as on the CPU, ${exact} as in the book`);
  assert.equal(passages.length, 20);
  assert.ok(exact >= 15, `${exact} of 20 recited`);
  assert.ok(same >= leastSame, `${same} of 20 as on the CPU`);
}

/** Free device memory after everything has been given back. */
async function freeBytes(): Promise<number> {
  const device = openTested();
  const { memoryFree } = device.info();
  await device.dispose();
  return memoryFree;
}

const small = goldens.find((g) => g.name === 'v3') as Golden;

test('200 loads and disposals leave the device memory where it was', async () => {
  const [prompt] = small.prompts.slice(1).map((p) => p.tokens) as [number[]];
  const once = () => withModel(small.dir, { maxSequences: 2 }, (model) => continueAlone(model, prompt, 2));
  for (let i = 0; i < 5; i++) await once();
  const before = await freeBytes();
  const rss = process.memoryUsage().rss;
  for (let i = 0; i < 200; i++) await once();
  const lost = before - (await freeBytes());
  globalThis.gc?.();
  const grown = process.memoryUsage().rss - rss;
  console.log(`200 loads: ${lost} bytes of device memory lost, ${(grown / 2 ** 20).toFixed(1)} MiB of host memory`);
  // The CPU's free memory is the machine's, which others use.
  if (TESTED_DEVICE !== 'cpu') assert.ok(lost <= 0, `${lost} bytes of device memory lost`);
  assert.ok(grown < 64 * 2 ** 20, `${grown} bytes of host memory lost`);
});

/** The code of what `work` rejects with. */
async function codeOf(work: () => Promise<unknown>): Promise<string> {
  try {
    await work();
  } catch (error) {
    if (error instanceof MlaError) return error.code;
    throw error;
  }
  return 'nothing thrown';
}

const OUT_OF_MEMORY = /^ERR_OUT_OF_(DEVICE_)?MEMORY$/;

test('every allocation of a load that fails is a typed error, leaks nothing, and the next load works', async () => {
  const prompt = small.prompts[1]?.tokens as number[];
  const expected = await withModel(small.dir, {}, (model) => continueAlone(model, prompt, 4));
  const load = () => withModel(small.dir, {}, async () => {});
  native.failAllocation(-1);
  await load();
  const sites = native.allocationCount();
  assert.ok(sites > 3, `${sites} allocations`);
  const before = await freeBytes();
  try {
    for (let k = 0; k < sites; k++) {
      native.failAllocation(k);
      assert.match(await codeOf(load), OUT_OF_MEMORY, `allocation ${k}`);
    }
  } finally {
    native.failAllocation(-1);
  }
  if (TESTED_DEVICE !== 'cpu') assert.equal(before - (await freeBytes()), 0);
  await withModel(small.dir, {}, async (model) => {
    assert.deepEqual(await continueAlone(model, prompt, 4), expected);
  });
  console.log(`${sites} allocations of a load failed, one by one`);
});

test('every allocation of a request that fails is a typed error, and the next request is right', () =>
  withModel(small.dir, {}, async (model) => {
    const [, short, long] = small.prompts.map((p) => p.tokens) as [number[], number[], number[]];
    const expected = await continueAlone(model, short, 4);
    native.failAllocation(-1);
    await continueAlone(model, long, 3);
    const sites = native.allocationCount();
    const { allocatedBytes } = model.stats();
    let failed = 0;
    try {
      for (let k = 0; k < sites; k++) {
        native.failAllocation(k);
        const code = await codeOf(() => continueAlone(model, long, 3));
        // Buffers for copies are kept and used again; a run that finds more of them makes fewer allocations.
        if (code !== 'nothing thrown' || native.allocationCount() > k) {
          assert.match(code, OUT_OF_MEMORY, `allocation ${k}`);
          failed += 1;
        }
        native.failAllocation(-1);
        assert.deepEqual(await continueAlone(model, short, 4), expected);
        assert.equal(model.stats().pagesFree, model.stats().pagesTotal);
        assert.equal(model.stats().allocatedBytes, allocatedBytes);
      }
    } finally {
      native.failAllocation(-1);
    }
    console.log(`${failed} of ${sites} allocations of a request failed, one by one`);
    assert.ok(failed >= sites / 2, `${failed} of ${sites} allocations failed`);
  }));
