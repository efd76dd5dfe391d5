// gpu/sampling.test.ts - sample and advance on the GPU against the CPU backend.
//
// Penalties, temperature and noise have the same bits on both, so ids must be equal. Only top_p compares sums of
// probabilities, whose last bits differ; the inputs are made from fixed seeds that come to no border that closely.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { type GenerateOptions, loadModel } from '../../lib/index';
import {
  closeDevices,
  compareVerb,
  type Inputs,
  type Planned,
  type PlannedArgs,
  RECORDING,
  runTested,
  TESTED_DEVICE,
} from './harness';

after(closeDevices);

/** temperature, top_k, top_p, min_p, repetition, presence, frequency. */
type Settings = readonly [number, number, number, number, number, number, number];

/** kInPrompt of csrc/ops/ops.h. */
const IN_PROMPT = 1 << 30;
const GREEDY: Settings = [0, 0, 1, 0, 1, 0, 0];
const SETTINGS: readonly Settings[] = [
  GREEDY,
  [1, 0, 1, 0, 1, 0, 0],
  [0.7, 0, 1, 0, 1, 0, 0],
  [0.7, 50, 1, 0, 1, 0, 0],
  [1, 1, 1, 0, 1, 0, 0],
  [0.8, 0, 0.9, 0, 1, 0, 0],
  [1.5, 0, 0.99, 0, 1, 0, 0],
  [1, 0, 0.3, 0, 1, 0, 0],
  [1, 0, 0, 0, 1, 0, 0],
  [0.9, 0, 1, 0.05, 1, 0, 0],
  [1.1, 40, 0.95, 0.02, 1, 0, 0],
  [2, 3000, 0.8, 0, 1, 0, 0],
  [3, 90000, 0.95, 0, 1, 0, 0],
  [1, 5000000, 0.5, 2, 1, 0, 0],
  [1e-45, 0, 0.9, 0, 1, 0, 0],
  [0, 0, 1, 0, 1.3, 0.5, 0.1],
  [0.9, 20, 0.9, 0, 1.3, -0.5, 0.2],
];

interface Sampling {
  vocab: number;
  width?: number;
  settings?: readonly Settings[];
  counts?: boolean;
  bias?: boolean;
  mask?: boolean;
  logprobs?: boolean;
  logits: (make: Inputs, shape: readonly number[]) => Planned;
}

const normal = (scale: number) => (make: Inputs, shape: readonly number[]) => make.normal('f32', shape, scale, 0.5);

function sampleArgs(make: Inputs, s: Sampling): PlannedArgs<'sample'> {
  const settings = s.settings ?? SETTINGS;
  const rows = settings.length;
  const width = s.width ?? s.vocab;
  return {
    logits: s.logits(make, [rows, width]),
    settings: make.values(
      'f32',
      [rows, 8],
      settings.flatMap((row) => [...row, 0]),
    ),
    seeds: make.integers('i64', [rows], 0, 2 ** 40),
    positions: make.values(
      'i32',
      [rows],
      Array.from({ length: rows }, (_, b) => (b % 12 === 11 ? -1 : 3 * b)),
    ),
    counts: s.counts ? countsOf(make, [rows, width]) : undefined,
    bias: s.bias ? make.normal('f32', [rows, width], 1, 0) : undefined,
    mask: s.mask ? make.integers('u32', [rows, Math.ceil(width / 32)], 0, 2 ** 32) : undefined,
    ids: make.output('i32', [rows]),
    logprobs: s.logprobs === false ? undefined : make.output('f32', [rows]),
    vocab: s.vocab,
  };
}

/** Some ids stand in the prompt too, or only there. */
function countsOf(make: Inputs, shape: readonly [number, number]): Planned {
  const values = Array.from({ length: shape[0] * shape[1] }, () => {
    const n = make.random.below(6) - 3;
    return n >= 0 && make.random.below(3) === 0 ? n + IN_PROMPT : n;
  });
  return make.values('i32', shape, values);
}

const ROWS = ['logits', 'settings', 'seeds', 'positions', 'counts', 'bias', 'mask', 'ids', 'logprobs'];
/** The sum of 100,000 exponentials in float32. */
const LOGPROB = { logprobs: { absolute: 2e-5 } };

const CASES: Readonly<Record<string, Sampling>> = {
  'a large vocabulary': { vocab: 102400, logits: normal(3) },
  'nearly flat': { vocab: 129280, logits: normal(0.3) },
  'penalties and bias': { vocab: 4000, width: 4001, counts: true, bias: true, logits: normal(4) },
  'bias and mask': { vocab: 30000, bias: true, mask: true, logits: normal(2) },
  'penalties, bias and mask together': { vocab: 102400, counts: true, bias: true, mask: true, logits: normal(3) },
  'peaked, with penalties and mask': { vocab: 50003, width: 50010, counts: true, mask: true, logits: normal(6) },
  'small, no log-probabilities': { vocab: 100, width: 128, logprobs: false, counts: true, logits: normal(2) },
  'one token': { vocab: 1, width: 3, logits: normal(1) },
  'logits with few different values': {
    vocab: 40000,
    logits: steps,
  },
};

/** Integers as floats: thousands of equal logits at every border. */
function steps(make: Inputs, shape: readonly number[]): Planned {
  const n = (shape[0] as number) * (shape[1] as number);
  return make.values(
    'f32',
    shape,
    Array.from({ length: n }, () => make.random.below(12)),
  );
}

for (const [name, sampling] of Object.entries(CASES))
  test(`sample, ${name}`, () =>
    compareVerb('sample', (make) => sampleArgs(make, sampling), {
      label: name,
      rows: ROWS,
      tolerance: LOGPROB,
    }));

/** So few tokens stay that one too many, or one too few, shows in the choices. */
const NARROW: readonly Settings[] = Array.from({ length: 240 }, (_, row): Settings => {
  const few = 1 + (row % 7);
  const kinds: Settings[] = [
    [1, few, 1, 0, 1, 0, 0],
    [0.7, 0, few * 4e-4, 0, 1, 0, 0],
    [2, 3 * few, 0.5, 0, 1, 0, 0],
    [1, 0, 1, 1 - few * 0.02, 1, 0, 0],
    [1, 40, few * 0.05, 0.95, 1, 0, 0],
  ];
  return kinds[row % 5] as Settings;
});
for (const [name, logits] of [
  ['different logits', normal(0.2)],
  ['many equal logits', steps],
  ['equal logits', (make: Inputs, shape: readonly number[]) => make.normal('f32', shape, 0, 2)],
] as const)
  test(`sample, filters that leave a few tokens of ${name}`, () =>
    compareVerb('sample', (make) => sampleArgs(make, { vocab: 9001, settings: NARROW, logits }), {
      label: name,
      tolerance: LOGPROB,
    }));

test('sample, all logits equal: the lowest ids stay', () =>
  compareVerb(
    'sample',
    (make) =>
      sampleArgs(make, {
        vocab: 6000,
        settings: [GREEDY, [1, 7, 1, 0, 1, 0, 0], [1, 0, 0.25, 0, 1, 0, 0], [1, 5000, 0.5, 0.1, 1, 0, 0]],
        logits: (_, shape) =>
          make.values('f32', shape, new Float64Array((shape[0] as number) * (shape[1] as number)).fill(2)),
      }),
    { tolerance: LOGPROB },
  ));

test('sample, -infinity is never chosen', () =>
  compareVerb(
    'sample',
    (make) =>
      sampleArgs(make, {
        vocab: 5000,
        settings: [GREEDY, [1, 0, 1, 0, 1, 0, 0], [1, 30, 1, 0, 1, 0, 0], [1, 0, 0.999999, 0, 1, 0, 0]],
        logits: (_, shape) =>
          make.values(
            'f32',
            shape,
            Array.from({ length: (shape[0] as number) * 5000 }, (_, i) =>
              i % 250 === 249 ? -make.random.next() : -Infinity,
            ),
          ),
      }),
    { tolerance: LOGPROB },
  ));

/** What the CPU refuses with an error, which a kernel cannot. */
async function runOrRefused<V extends 'sample' | 'advance'>(
  verb: V,
  makeArgs: (make: Inputs) => PlannedArgs<V>,
): Promise<Record<string, Uint8Array> | undefined> {
  if (TESTED_DEVICE !== 'cpu') return runTested(verb, makeArgs);
  await assert.rejects(runTested(verb, makeArgs), { code: 'ERR_INVALID_ARG' });
  return undefined;
}

const ints = (bytes: Uint8Array | undefined) => Array.from(new Int32Array((bytes as Uint8Array).slice().buffer));

test('sample, rows that leave nothing to choose give -1', async () => {
  const vocab = 300;
  const settings: Settings[] = Array.from({ length: 8 }, () => [1, 0, 0.9, 0, 1, 0, 0]);
  settings[4] = [-1, 0, 1, 0, 1, 0, 0];
  settings[5] = [Number.NaN, 0, 1, 0, 1, 0, 0];
  settings[6] = [1, 0, Number.NaN, 0, 1, 0, 0];
  const written = await runOrRefused('sample', (make) =>
    sampleArgs(make, {
      vocab,
      settings,
      logits: (_, shape) => {
        const values = Array.from({ length: 8 * vocab }, () => make.random.next());
        values[0 * vocab + 299] = Number.NaN;
        values[1 * vocab + 5] = Infinity;
        values.fill(-Infinity, 2 * vocab, 3 * vocab);
        return make.values('f32', shape, values);
      },
    }),
  );
  if (written === undefined) return;
  const ids = ints(written.ids);
  const logprobs = Array.from(new Float32Array((written.logprobs as Uint8Array).slice().buffer));
  for (const row of [0, 1, 2, 4, 5, 6]) assert.deepEqual([ids[row], logprobs[row]], [-1, 0], `row ${row}`);
  for (const row of [3, 7]) assert((ids[row] as number) >= 0 && (logprobs[row] as number) < 0, `row ${row}`);
});

test('advance', () =>
  compareVerb(
    'advance',
    (make) => {
      const rows = 200;
      const of = (low: number, high: number) => make.integers('i32', [rows], low, high);
      return {
        sampled: of(-1, 20),
        block_table: make.integers('i32', [rows, 5], 0, 1000),
        stop_ids: make.integers('i32', [rows, 3], -1, 20),
        limits: of(1, 300),
        ids: make.inout(of(-1, 20)),
        positions: make.inout(of(-1, 5 * 64 - 1)),
        lengths: make.inout(of(0, 300)),
        slots: make.inout(of(-1, 300)),
        finished: make.inout(of(0, 3)),
        counts: make.inout(make.integers('i32', [rows, 20], -1, 3)),
      };
    },
    {
      rows: [
        'sampled',
        'block_table',
        'stop_ids',
        'limits',
        'ids',
        'positions',
        'lengths',
        'slots',
        'finished',
        'counts',
      ],
    },
  ));

test('advance: a row without a page for its next token ends at its limit', async () => {
  const of = (make: Inputs, values: number[]) => make.values('i32', [values.length], values);
  const written = await runOrRefused('advance', (make) => ({
    sampled: of(make, [7, 7, 7, 7]),
    block_table: make.values('i32', [4, 2], [3, -1, 3, 2147480000, 3, 9, 3, 9]),
    stop_ids: make.values('i32', [4, 0], []),
    limits: of(make, [1000, 1000, 1000, 1000]),
    ids: make.inout(of(make, [1, 1, 1, 1])),
    positions: make.inout(of(make, [63, 63, 127, 63])),
    lengths: make.inout(of(make, [64, 64, 128, 64])),
    slots: make.inout(of(make, [0, 0, 0, 0])),
    finished: make.inout(of(make, [0, 0, 0, 0])),
  }));
  if (written === undefined) return;
  assert.deepEqual(ints(written.finished), [2, 2, 2, 0]);
  assert.deepEqual(ints(written.slots), [-1, -1, -1, 9 * 64]);
  assert.deepEqual(ints(written.positions), [-1, -1, -1, 64]);
  assert.deepEqual(ints(written.ids), [-1, -1, -1, 7]);
  assert.deepEqual(ints(written.lengths), [0, 0, 0, 65]);
});

/** Requests that ask for different things of the same steps: what a graph of each set of features does. */
const REQUESTS: readonly GenerateOptions[] = [
  {},
  { repetitionPenalty: 1.3, topLogprobs: 3 },
  { presencePenalty: 2, frequencyPenalty: 0.7 },
  { logitBias: { 5: 4, 11: -1000 }, minTokens: 20 },
  { temperature: 0.9, topK: 40, topP: 0.9, minP: 0.02, seed: 3, topLogprobs: 20 },
  { temperature: 1.5, minP: 0.1, seed: 4, repetitionPenalty: 1.2, logitBias: { 7: 2 } },
];

test('whole model: what requests ask for together is done as on the CPU', { skip: RECORDING }, async () => {
  const run = async (device: string) => {
    const types = { activationDtype: 'f32', cacheDtype: 'f32' } as const;
    const model = await loadModel(undefined, { device: device as 'cpu', ...types, context: 256, maxSequences: 8 });
    try {
      const ask = (prompt: string, options: GenerateOptions) =>
        model.generate(prompt, { temperature: 0, maxTokens: 32, ignoreEos: true, ...options }).result;
      return await Promise.all(
        REQUESTS.flatMap((options) => [ask('In the', options), ask('And God said, Let', options)]),
      );
    } finally {
      await model.dispose();
    }
  };
  const [cpu, gpu] = [await run('cpu'), await run(TESTED_DEVICE)];
  let worst = 0;
  let tokens = 0;
  let close = 0;
  for (const [i, ours] of gpu.entries()) {
    const reference = cpu[i] as (typeof cpu)[number];
    for (const [k, id] of ours.tokens.entries()) {
      if (id !== reference.tokens[k]) {
        // Behind another choice everything is another text; float32 on both sides should not let that happen often.
        close++;
        break;
      }
      tokens++;
      worst = Math.max(worst, Math.abs((ours.logprobs[k] as number) - (reference.logprobs[k] as number)));
      assert.deepEqual(ours.top[k]?.length ?? 0, reference.top[k]?.length ?? 0);
      for (const [j, top] of (ours.top[k] ?? []).entries()) {
        const expected = reference.top[k]?.[j]?.logprob as number;
        worst = Math.max(worst, Math.abs(top.logprob - expected));
      }
    }
  }
  console.log(
    `${tokens} of ${gpu.length * 32} tokens as on the CPU, log-probabilities within ${worst.toExponential(1)}; ${close} texts part at a close choice`,
  );
  assert.ok(close <= 1, `${close} texts differ`);
  assert.ok(worst < 1e-3, `${worst}`);
});
