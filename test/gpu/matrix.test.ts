// gpu/matrix.test.ts - dense products on the GPU: gemm, swiglu, queryAbsorb, valueExpand and logProbs against the CPU
// backend. Row counts stand on both sides of every change of kernel (8, 16, 32, 64 rows), and `rows` holds the kernels
// to giving a row the same values whichever of them computes it: within the tolerance that each of them has, and with
// NODE_MLA_TEST_DEVICE=cuda:0:deterministic or cuda:0:portable:deterministic the same bits.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { fp8GoldenRows } from '../cpu/reference-cache';
import { closeDevices, compareVerb, type Inputs, type Planned, type PlannedArgs, runTested, valuesOf } from './harness';

after(closeDevices);

type Act = 'f32' | 'bf16';
type Weight = 'f32' | 'bf16' | 'f8e4m3';

const PAIRS: readonly (readonly [Act, Weight])[] = (['bf16', 'f32'] as const).flatMap((act) =>
  (['bf16', 'f8e4m3', 'f32'] as const).map((weight) => [act, weight] as const),
);
const FLOAT_PAIRS = PAIRS.filter(([, weight]) => weight !== 'f8e4m3') as readonly (readonly [Act, Act])[];
const ROWS = [1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 90, 120, 129, 300];

const blocks = (n: number) => Math.ceil(n / 128);

/** Weights of a product, and their scales where the type has some. The products of normal rows have size 1 or so. */
function weightsOf(make: Inputs, dtype: Weight, shape: readonly number[], scaleShape: readonly number[]) {
  const size = 1 / Math.sqrt(shape.at(-1) as number);
  if (dtype !== 'f8e4m3') return { w: make.normal(dtype, shape, size), w_scale: undefined };
  return { w: make.normal(dtype, shape, 50), w_scale: make.normal('f32', scaleShape, size / 200, size / 50) };
}

/** How rows enter the product: as they are, or as fp8 activations. */
type Entering = 'as they are' | 'in fp8';

const KINDS: readonly (readonly [Act, Weight, Entering])[] = [
  ...PAIRS.map(([act, weight]) => [act, weight, 'as they are'] as const),
  ['bf16', 'f8e4m3', 'in fp8'],
  ['f32', 'f8e4m3', 'in fp8'],
];

interface Gemm {
  act: Act;
  weight: Weight;
  entering?: Entering;
  rows: number;
  n: number;
  k: number;
  residual?: boolean;
  y?: 'f32';
}

function gemmArgs(make: Inputs, c: Gemm): PlannedArgs<'gemm'> {
  return {
    ...weightsOf(make, c.weight, [c.n, c.k], [blocks(c.n), blocks(c.k)]),
    x: make.normal(c.act, [c.rows, c.k]),
    residual: c.residual ? make.normal(c.act, [c.rows, c.n]) : undefined,
    y: make.output(c.y ?? c.act, [c.rows, c.n]),
    fp8_activations: c.entering === 'in fp8',
  };
}

/** `parts`: also single rows and halves. Large weights are placed anew for each of them, so large shapes go without. */
const gemm = (c: Gemm, parts = c.rows > 0) =>
  compareVerb('gemm', (make) => gemmArgs(make, c), {
    label:
      `${c.act} x ${c.weight} [${c.rows}, ${c.k}] x [${c.n}, ${c.k}]${c.residual ? ' + residual' : ''}` +
      (c.entering === 'in fp8' ? ', rows in fp8' : ''),
    ...(parts && { rows: ['x', 'residual', 'y'], product: true }),
  });

for (const [act, weight, entering] of KINDS) {
  test(`gemm, ${act} rows ${entering}, ${weight} weights: odd sizes`, async () => {
    const sizes = [
      [0, 40, 24],
      [1, 1, 8],
      [3, 10, 7],
      [2, 33, 2304],
      [5, 130, 144],
      [20, 300, 1408],
      [33, 17, 16],
      [70, 129, 400],
      [130, 514, 272],
    ] as const;
    for (const [rows, n, k] of sizes) {
      await gemm({ act, weight, entering, rows, n, k });
      await gemm({ act, weight, entering, rows, n, k, residual: true, y: 'f32' });
    }
  });
}

for (const [weight, entering] of [
  ['bf16', 'as they are'],
  ['f8e4m3', 'as they are'],
  ['f8e4m3', 'in fp8'],
] as const) {
  test(`gemm, bf16 rows ${entering}, ${weight} weights: every kernel's row counts`, async () => {
    for (const rows of ROWS) {
      await gemm({ act: 'bf16', weight, entering, rows, n: 576, k: 2048, residual: rows % 2 === 1 });
      await gemm({ act: 'bf16', weight, entering, rows, n: 2048, k: 2048, residual: rows % 2 === 0 });
    }
  });
}

test('gemm of rows in fp8 with the identity: another library rounds the same', async () => {
  for (const { dtype, x, k, y } of fp8GoldenRows()) {
    for (const act of dtype === 'bf16' ? (['bf16', 'f32'] as const) : (['f32'] as const)) {
      const identity = Array.from({ length: k * k }, (_, i) => (i % (k + 1) === 0 ? 1 : 0));
      const { y: entered } = await runTested('gemm', (make) => ({
        x: make.values(act, [1, k], x),
        w: make.values('f8e4m3', [k, k], identity),
        w_scale: make.values('f32', [blocks(k), blocks(k)], new Array(blocks(k) ** 2).fill(1)),
        y: make.output('f32', [1, k]),
        fp8_activations: true,
      }));
      assert.deepEqual(Array.from(valuesOf('f32', entered as Uint8Array), withoutSign), y.map(withoutSign));
    }
  }
});

/** Zeros of either sign are the same. */
const withoutSign = (x: number) => (x === 0 ? 0 : x);

for (const weight of ['bf16', 'f8e4m3'] as const) {
  test(`gemm, bf16 rows, ${weight} weights: projections of V2-Lite, Moonlight, GLM-4.7-Flash and V3`, async () => {
    const shapes = [
      [3072, 2048],
      [2048, 5120],
      [2112, 7168],
    ] as const;
    for (const [n, k] of shapes) {
      for (const rows of [1, 9, 66]) await gemm({ act: 'bf16', weight, rows, n, k }, rows === 66);
    }
    for (const rows of [1, 24, 150]) await gemm({ act: 'bf16', weight, rows, n: 2048, k: 10944 }, false);
    for (const rows of [8, 150]) await gemm({ act: 'bf16', weight, rows, n: 24576, k: 1536 }, false);
    await gemm({ act: 'bf16', weight, rows: 3, n: 7168, k: 16384 }, false);
  });
}

test('gemm: logits of a head of 102,400 ids', async () => {
  for (const rows of [1, 40]) await gemm({ act: 'bf16', weight: 'bf16', rows, n: 102400, k: 2048, y: 'f32' }, false);
});

test('gemm: many rows in so few tiles that blocks share their k', async () => {
  for (const [rows, n, k] of [
    [140, 1101, 2056],
    [260, 2112, 7168],
    [500, 2112, 7168],
  ] as const) {
    await gemm({ act: 'bf16', weight: 'bf16', rows, n, k, residual: true }, false);
    await gemm({ act: 'bf16', weight: 'bf16', rows, n, k, y: 'f32' }, false);
  }
});

test('gemm: several waves of tiles, with rows, columns and k that fill none of them', async () => {
  for (const weight of ['bf16', 'f8e4m3'] as const) {
    const k = weight === 'bf16' ? 72 : 80;
    await gemm({ act: 'bf16', weight, rows: 2100, n: 8650, k, residual: true }, false);
    await gemm({ act: 'bf16', weight, rows: 2100, n: 8650, k, y: 'f32' }, false);
  }
  await gemm({ act: 'bf16', weight: 'f8e4m3', entering: 'in fp8', rows: 2100, n: 8656, k: 208, residual: true }, false);
});

test('gemm: the residual may be the memory of y', async () => {
  for (const rows of [1, 12, 100, 700]) {
    await compareVerb('gemm', (make) => {
      const y = make.inout(make.normal('bf16', [rows, 512]));
      return { ...gemmArgs(make, { act: 'bf16', weight: 'bf16', rows, n: 512, k: 256 }), residual: y, y };
    });
  }
});

function swigluArgs(
  make: Inputs,
  act: Act,
  weight: Weight,
  rows: number,
  width: number,
  d: number,
  entering: Entering,
): PlannedArgs<'swiglu'> {
  return {
    ...weightsOf(make, weight, [2 * width, d], [2, blocks(width), blocks(d)]),
    x: make.normal(act, [rows, d]),
    out: make.output(act, [rows, width]),
    fp8_activations: entering === 'in fp8',
  };
}

for (const [act, weight, entering] of KINDS) {
  test(`swiglu, ${act} rows ${entering}, ${weight} weights`, async () => {
    const sizes: [number, number, number][] = [
      [0, 8, 8],
      [1, 8, 10],
      [5, 24, 72],
      [16, 136, 320],
      [30, 264, 144],
      [60, 264, 656],
      [70, 272, 400],
      [130, 528, 272],
    ];
    if (act === 'bf16' && weight !== 'f32') for (const rows of [1, 17, 40, 300]) sizes.push([rows, 10944, 2048]);
    for (const [rows, width, d] of sizes) {
      await compareVerb('swiglu', (make) => swigluArgs(make, act, weight, rows, width, d, entering), {
        label: `${act} x ${weight}, rows ${entering}, ${rows} rows of ${d}, width ${width}`,
        ...(rows > 0 && width < 10000 && { rows: ['x', 'out'], product: true }),
      });
    }
  });
}

for (const [act, weight] of FLOAT_PAIRS) {
  test(`valueExpand, ${act} rows, ${weight} weights`, async () => {
    const sizes: [number, number, number, number][] = [
      [0, 4, 64, 32],
      [3, 3, 72, 40],
      [40, 2, 50, 24],
      [70, 5, 136, 33],
    ];
    if (act === weight) for (const rows of [1, 8, 17, 65]) sizes.push([rows, 16, 512, 128], [rows, 20, 512, 256]);
    if (act === 'bf16' && weight === 'bf16') for (const rows of [1, 30, 300]) sizes.push([rows, 128, 512, 128]);
    for (const [rows, heads, c, v] of sizes) {
      await compareVerb(
        'valueExpand',
        (make) => ({
          u: make.normal(act, [rows, heads, c]),
          w_uv: make.normal(weight, [heads, v, c], 1 / Math.sqrt(c)),
          out: make.output(act, [rows, heads * v]),
        }),
        {
          label: `${act} x ${weight}, ${rows} rows, ${heads} heads, c ${c}, v ${v}`,
          ...(rows > 0 && { rows: ['u', 'out'], product: true }),
        },
      );
    }
  });

  test(`queryAbsorb, ${act} rows, ${weight} weights`, async () => {
    const sizes: [number, number, number, number, number][] = [
      [0, 4, 64, 16, 64],
      [3, 3, 24, 8, 136],
      [9, 2, 10, 4, 20],
      [70, 5, 136, 16, 72],
    ];
    if (act === weight)
      for (const rows of [1, 8, 17, 65]) sizes.push([rows, 16, 128, 64, 512], [rows, 20, 192, 64, 512]);
    if (act === 'bf16' && weight === 'bf16') for (const rows of [1, 30, 150]) sizes.push([rows, 128, 128, 64, 512]);
    for (const [rows, heads, n, r, c] of sizes) {
      await compareVerb(
        'queryAbsorb',
        (make) => ({
          q: make.normal(act, [rows, heads, n + r]),
          w_uk: make.normal(weight, [heads, n, c], 1 / Math.sqrt(n)),
          positions: make.values(
            'i32',
            [rows],
            Array.from({ length: rows }, (_, t) => (t % 7 === 5 ? -1 - t : make.random.below(99))),
          ),
          cos_sin: make.cosSin(99, r),
          out: make.output(act, [rows, heads, c + r]),
        }),
        {
          label: `${act} x ${weight}, ${rows} rows, ${heads} heads, n ${n}, r ${r}, c ${c}`,
          ...(rows > 0 && { rows: ['q', 'positions', 'out'] }),
        },
      );
    }
  });
}

test('queryAbsorb: positions past the table are padding', async () => {
  const [rows, heads, width] = [6, 2, 64 + 16];
  const written = await runTested('queryAbsorb', (make) => ({
    q: make.normal('bf16', [rows, heads, 48]),
    w_uk: make.normal('bf16', [heads, 32, 64]),
    positions: make.values('i32', [rows], [0, 9, 10, 2147480000, -2147480000, 5]),
    cos_sin: make.cosSin(10, 16),
    out: make.output('bf16', [rows, heads, width]),
  })).catch((error: { code?: string }) => error);
  if (written instanceof Error) return assert.equal((written as { code?: string }).code, 'ERR_INVALID_ARG');
  const out = valuesOf('bf16', (written as Record<string, Uint8Array>).out as Uint8Array);
  for (let t = 0; t < rows; t++) {
    const row = Array.from({ length: heads * width }, (_, i) => out[t * heads * width + i] as number);
    assert(row.every(Number.isFinite), `row ${t}`);
    assert.equal(
      row.every((x) => x === 0),
      t >= 2 && t <= 4,
      `row ${t}`,
    );
  }
});

interface Head {
  act: Act;
  weight: Act;
  rows: number;
  d: number;
  vocab: number;
  top: number;
  /** weights that are all zero: every logit ties */
  flat?: boolean;
}

function logProbsArgs(make: Inputs, c: Head): PlannedArgs<'logProbs'> {
  const head = c.flat
    ? make.values(c.weight, [c.vocab, c.d], new Float64Array(c.vocab * c.d))
    : make.normal(c.weight, [c.vocab, c.d], 1 / Math.sqrt(c.d));
  const top: { top_ids?: Planned; top_logprobs?: Planned } =
    c.top === 0
      ? {}
      : { top_ids: make.output('i32', [c.rows, c.top]), top_logprobs: make.output('f32', [c.rows, c.top]) };
  return {
    x: make.normal(c.act, [c.rows, c.d]),
    head,
    targets: make.values(
      'i32',
      [c.rows],
      Array.from({ length: c.rows }, (_, t) => (t % 5 === 3 ? -1 : make.random.below(c.vocab))),
    ),
    logprobs: make.output('f32', [c.rows]),
    ...top,
  };
}

/** Ids may change places where their log-probabilities are equal but for the order of sums. */
function judgeIds(c: Head) {
  return (actual: Record<string, Uint8Array>, expected: Record<string, Uint8Array>) => {
    if (c.top === 0) return;
    const ours = valuesOf('i32', actual.top_ids as Uint8Array);
    const theirs = valuesOf('i32', expected.top_ids as Uint8Array);
    const near = valuesOf('f32', expected.top_logprobs as Uint8Array);
    let moved = 0;
    for (let t = 0; t < c.rows; t++) {
      const seen = new Set<number>();
      for (let j = 0; j < c.top; j++) {
        const i = t * c.top + j;
        assert(!seen.has(ours[i] as number), `row ${t}: id ${ours[i]} twice`);
        seen.add(ours[i] as number);
        if (ours[i] === theirs[i]) continue;
        moved++;
        assert(!c.flat, `row ${t}, place ${j}: id ${ours[i]}, expected ${theirs[i]}`);
        const gap = Math.min(
          ...[-1, 1].map((side) =>
            j + side < 0 || j + side >= c.top ? 0 : Math.abs((near[i + side] as number) - (near[i] as number)),
          ),
        );
        assert(gap < 2e-5, `row ${t}, place ${j}: id ${ours[i]}, expected ${theirs[i]}, ${gap} from its neighbour`);
      }
    }
    assert(moved <= 2 + 0.01 * c.rows * c.top, `${moved} of ${c.rows * c.top} ids stand elsewhere`);
  };
}

test('logProbs', async () => {
  const heads: Head[] = FLOAT_PAIRS.flatMap(([act, weight]) => [
    { act, weight, rows: 0, d: 16, vocab: 50, top: 3 },
    { act, weight, rows: 3, d: 16, vocab: 5, top: 5 },
    { act, weight, rows: 7, d: 72, vocab: 3001, top: 20 },
    { act, weight, rows: 131, d: 30, vocab: 1100, top: 0 },
    { act, weight, rows: 2, d: 16, vocab: 1100, top: 64, flat: true },
  ]);
  for (const rows of [1, 40, 260]) heads.push({ act: 'bf16', weight: 'bf16', rows, d: 256, vocab: 102400, top: 20 });
  heads.push({ act: 'bf16', weight: 'bf16', rows: 5, d: 2048, vocab: 102400, top: 64 });
  for (const c of heads) {
    await compareVerb('logProbs', (make) => logProbsArgs(make, c), {
      label: `${c.act} x ${c.weight}, ${c.rows} rows of ${c.d}, ${c.vocab} ids, top ${c.top}`,
      ignore: ['top_ids'],
      judge: judgeIds(c),
      width: { logprobs: 1 },
      // A row is one number, near -log(vocab): the bound is one of that size, not of a product's root mean square.
      tolerance: { logprobs: { absolute: 5e-5 } },
      ...(c.rows > 0 && c.d < 2000 && { rows: ['x', 'targets', 'logprobs', 'top_ids', 'top_logprobs'], product: true }),
    });
  }
});
