// Activations in fp8 under whole models: what they cost, that they are refused where no weight is fp8, and that saved
// sequences of one numerics are not read by another. That a request's bits do not depend on its company:
// test/engine/deterministic.test.ts. Passages and distributions of the model in the package: quantized.test.ts.
//
// What they cost follows from the format, as with an fp8 cache: e4m3 has 4 significant bits where bf16 has 8, so an
// operand is rounded 16 times as coarsely. bf16 rounds more than operands (the residual stream, what attention works
// with), so the whole effect is up to 16 times that of bf16 activations.
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel, type LatentModelOptions } from '../../lib/model';
import type { Stream } from '../../lib/native';
import { distance, type Golden, goldenOfFp8Activations, goldens, scoresOf, shown } from './golden';
import { type Config, logprobsWith, type Mutation } from './mutations';

/** Nats that float32 may differ by. */
const SAME = 1e-3;
const MOST_RATIO = 16;
const LEAST_RATIO = 2;

const golden = goldens.find(({ name }) => name === 'v3-fp8') as Golden;
const bf16Golden = goldens.find(({ name }) => name === 'v3') as Golden;
const FP8 = { activationDtype: 'fp8' } as const;
/** Those that have fp8 weights in v3-fp8, whose query and latent down-projections have no whole blocks together. */
const OPERATIONS = ['gemm', 'swiglu', 'moeGateUp', 'moeDown'];

const load = (dir: string, options: LatentModelOptions) =>
  LatentModel.load(dir, { device: 'cpu', context: 1024, maxSequences: 4, ...options });

async function withModel<T>(options: LatentModelOptions, run: (model: LatentModel) => Promise<T>, dir = golden.dir) {
  const model = await load(dir, options);
  try {
    return await run(model);
  } finally {
    await model.dispose();
  }
}

const scoresWith = (options: LatentModelOptions) => withModel(options, (model) => scoresOf(model, golden.prompts));

test('cost what the format costs', async () => {
  const f32 = await scoresWith({ activationDtype: 'f32', cacheDtype: 'f32' });
  const bf16 = distance(await scoresWith({ activationDtype: 'bf16', cacheDtype: 'f32' }), f32);
  const scores = await scoresWith({ ...FP8, cacheDtype: 'f32' });
  const fp8 = distance(scores, f32);
  const reference = golden.prompts.flatMap((prompt) => prompt.logprobs.slice(1));
  console.log(
    `v3-fp8: from transformers in float32, ${shown(distance(scores, reference))}; from f32 activations, fp8 ` +
      `${shown(fp8)}, bf16 ${shown(bf16)}`,
  );
  expect(fp8.mean / bf16.mean).toBeGreaterThan(LEAST_RATIO);
  expect(fp8.mean / bf16.mean).toBeLessThan(MOST_RATIO);

  expect(await scoresWith({ ...FP8, cacheDtype: 'f32', threads: 1 })).toEqual(scores);
}, 120_000);

/** Every operation with fp8 weights, with the rounding or (`but`) without. */
function rounding(but: string[] = []): Mutation {
  const flag = (verb: string) => (args: { w_scale?: unknown; weight_scale?: unknown }, right: (args: never) => void) =>
    right({
      ...args,
      fp8_activations: (args.w_scale ?? args.weight_scale) !== undefined && !but.includes(verb),
    } as never);
  const verbs = Object.fromEntries(OPERATIONS.map((verb) => [verb, flag(verb)]));
  return { name: `fp8 activations${but.map((verb) => `, but for ${verb}`).join('')}`, verbs } as Mutation;
}

test('transformers with rounded operands gives the same, and not where one operation does not round', async () => {
  const { prompts } = goldenOfFp8Activations();
  const config = JSON.parse(readFileSync(join(golden.dir, 'config.json'), 'utf8')) as Config;
  // Float32 between operations, as there. Another order of sums turns one operand in hundreds of thousands to the other
  // neighbour, which moves all that follows in its text by hundredths; what comes before is the same.
  const near = (mutation: Mutation) =>
    withModel({ activationDtype: 'f32', cacheDtype: 'f32' }, async (model) => {
      const differences: number[] = [];
      for (const { tokens, logprobs } of prompts) {
        const ours = await logprobsWith(mutation, model, tokens, config);
        logprobs.forEach((reference, at) => {
          if (reference !== null) differences.push(Math.abs((ours[at] as number) - reference));
        });
      }
      expect(differences.length).toBe(prompts.reduce((sum, { tokens }) => sum + tokens.length - 1, 0));
      const share = differences.filter((difference) => difference < SAME).length / differences.length;
      console.log(`${mutation.name}: ${(100 * share).toFixed(1)} % of log-probabilities within ${SAME}`);
      return share;
    });
  expect(await near(rounding())).toBeGreaterThan(0.1);
  for (const verb of OPERATIONS) expect([verb, (await near(rounding([verb]))) < 0.02]).toEqual([verb, true]);
}, 300_000);

test('every operation with fp8 weights is told, and no other', async () => {
  const told = (options: LatentModelOptions, dir: string) =>
    withModel(
      options,
      async (model) => {
        const seen = new Set<string>();
        const watch = (stream: Stream) =>
          new Proxy(stream, {
            get: (_, name) => (args: { [name: string]: unknown }) => {
              const weights = args.w_scale ?? args.weight_scale;
              seen.add(
                `${String(name)}: ${weights === undefined ? 'plain' : 'fp8'} weights, ${args.fp8_activations ?? false}`,
              );
              (stream[name as keyof Stream] as (args: unknown) => void)(args);
            },
          });
        model.captureDecode(1, watch).dispose();
        return [...seen].filter((text) => /fp8 weights|true/.test(text)).sort();
      },
      dir,
    );
  const expected = (on: boolean) => OPERATIONS.map((verb) => `${verb}: fp8 weights, ${on}`).sort();
  expect(await told(FP8, golden.dir)).toEqual(expected(true));
  expect(await told({}, golden.dir)).toEqual(expected(false));
});

test('deterministic: the same bits in chunks of any size and on any number of threads', async () => {
  const whole = await scoresWith({ ...FP8, deterministic: true });
  for (const options of [{ prefillChunk: 50 }, { prefillChunk: 7, threads: 1 }])
    expect(await scoresWith({ ...FP8, deterministic: true, ...options })).toEqual(whole);
}, 120_000);

test('are refused where no weight is fp8, and taken where they are made so', async () => {
  const refusal = await load(bf16Golden.dir, FP8).catch((error: unknown) => error);
  expect(refusal).toMatchObject({
    name: 'MlaError',
    code: 'ERR_INVALID_ARG',
    message: expect.stringMatching(
      /^activationDtype: 'fp8' is for weights in fp8, .* dtype: 'fp8' makes them at load\.$/,
    ),
  });
  await expect(load(golden.dir, { ...FP8, dtype: 'bf16' })).rejects.toMatchObject({ code: 'ERR_INVALID_ARG' });
  const tokens = bf16Golden.prompts[1]?.tokens as number[];
  const scores = async (options: LatentModelOptions) =>
    withModel(options, async (model) => [...(await model.score(tokens)).logprobs.slice(1)], bf16Golden.dir);
  const [rounded, plain] = [
    await scores({ ...FP8, dtype: 'fp8' }),
    await scores({ activationDtype: 'bf16', dtype: 'fp8' }),
  ];
  expect(distance(rounded, plain).mean).toBeGreaterThan(0);
});

test('a saved sequence is read by a model of the same numerics only', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'mla-fp8-'));
  const path = join(folder, 'sequence');
  const { signal } = new AbortController();
  const tokens = golden.prompts[2]?.tokens as number[];
  const saved = (options: LatentModelOptions) =>
    withModel(options, async (model) => {
      const sequence = model.openSequence();
      await model.step([{ sequence, tokens, sample: false }]);
      const kept = sequence.keep();
      await model.save(path, tokens, kept, signal);
      kept.dispose();
      sequence.dispose();
    });
  const restored = (options: LatentModelOptions) =>
    withModel(options, async (model) => {
      const { kept } = await model.restore(path, signal);
      const rows = kept?.tokens.length ?? 0;
      kept?.dispose();
      return rows;
    });
  const bf16 = { activationDtype: 'bf16' } as const;
  try {
    for (const [mine, other] of [
      [FP8, bf16],
      [bf16, FP8],
    ] as const) {
      await saved(mine);
      expect(await restored(mine)).toBe(tokens.length);
      await expect(restored(other)).rejects.toMatchObject({ code: 'ERR_SNAPSHOT' });
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});
