// gpu/matrix-experts.test.ts - moeGateUp and moeDown on the GPU: against the CPU backend on routings with padding rows,
// experts without rows and experts that live elsewhere; a token's bits alone and among others; and senseless device data.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import {
  closeDevices,
  compareVerb,
  expectSameProduct,
  Inputs,
  Planned,
  type PlannedArgs,
  poisonByte,
  RECORDING,
  runTested,
  TESTED_DEVICE,
} from './harness';

after(closeDevices);

type Act = 'f32' | 'bf16';
type Weight = 'f32' | 'bf16' | 'f8e4m3';

/** What experts a token's columns name; -1 names none. */
type Routing = (token: number, column: number, make: Inputs) => number;

interface Layer {
  act: Act;
  weight: Weight;
  /** rows enter as fp8 activations */
  fp8?: boolean;
  d: number;
  width: number;
  experts: number;
  perToken: number;
  /** always-on experts, the last ones; what moeGateUp is told of them */
  always?: number;
}

const blocks = (n: number) => Math.ceil(n / 128);

/** The weights of a layer; made once for all of its cases. */
function weightsOf(make: Inputs, { weight, experts, d, width }: Layer) {
  const scaled = weight === 'f8e4m3';
  const size = (k: number) => 1 / Math.sqrt(k);
  const scale = (shape: number[], k: number) =>
    scaled ? make.normal('f32', shape, size(k) / 200, size(k) / 50) : undefined;
  return {
    up: make.normal(weight, [experts, 2 * width, d], scaled ? 50 : size(d)),
    upScale: scale([experts, 2, blocks(width), blocks(d)], d),
    down: make.normal(weight, [experts, d, width], scaled ? 50 : size(width)),
    downScale: scale([experts, blocks(d), blocks(width)], width),
  };
}

/** offsets, order and slots of the experts that pairs name. */
function group(ids: readonly number[], experts: number) {
  const offsets = [0];
  const order: number[] = [];
  const slots = ids.map(() => -1);
  for (let e = 0; e < experts; e++) {
    ids.forEach((id, pair) => {
      if (id === e) slots[pair] = order.push(pair) - 1;
    });
    offsets.push(order.length);
  }
  const used = order.length;
  while (order.length < ids.length) order.push(-1);
  return { offsets, order, slots, used };
}

/** One batch of tokens of a layer, whole or tokens [begin, end) of it. */
class Batch {
  readonly weights: ReturnType<typeof weightsOf>;
  private readonly x: Planned;
  private readonly residual: Planned;
  private readonly shares: Planned;
  private readonly ids: number[];

  constructor(
    readonly layer: Layer,
    readonly tokens: number,
    routing: Routing,
    weights?: ReturnType<typeof weightsOf>,
  ) {
    const make = new Inputs(tokens + layer.d);
    this.weights = weights ?? weightsOf(make, layer);
    this.x = make.normal(layer.act, [tokens, layer.d]);
    this.residual = make.normal(layer.act, [tokens, layer.d]);
    this.shares = make.normal('f32', [tokens, layer.perToken]);
    this.ids = Array.from({ length: tokens * layer.perToken }, (_, pair) =>
      routing(Math.floor(pair / layer.perToken), pair % layer.perToken, make),
    );
  }

  private part(begin: number, end: number) {
    const { experts, perToken } = this.layer;
    const grouped = group(this.ids.slice(begin * perToken, end * perToken), experts);
    const count = end - begin;
    const cut = (planned: Planned) => (count === 0 ? planned : planned.rows(begin, end));
    return { ...grouped, count, pairs: count * perToken, cut };
  }

  gateUp(make: Inputs, begin = 0, end = this.tokens): PlannedArgs<'moeGateUp'> {
    const { offsets, order, pairs, cut } = this.part(begin, end);
    return {
      x: cut(this.x),
      w: this.weights.up,
      w_scale: this.weights.upScale,
      offsets: make.values('i32', [offsets.length], offsets),
      order: make.values('i32', [pairs], order),
      h: make.output(this.layer.act, [pairs, this.layer.width]),
      shared: this.layer.always ?? 0,
      fp8_activations: this.layer.fp8 ?? false,
    };
  }

  /** Hidden rows for moeDown: one for each pair of the batch, whatever its place in order. */
  hidden(make: Inputs): Planned {
    return make.normal(this.layer.act, [this.tokens * this.layer.perToken, this.layer.width]);
  }

  down(make: Inputs, hidden: Planned, residual: boolean, begin = 0, end = this.tokens): PlannedArgs<'moeDown'> {
    const { offsets, order, slots, count, pairs, cut } = this.part(begin, end);
    const { act, d, width, perToken } = this.layer;
    const rowBytes = width * (act === 'f32' ? 4 : 2);
    const h = new Uint8Array(pairs * rowBytes).fill(poisonByte(act));
    order.forEach((pair, row) => {
      const from = (begin * perToken + pair) * rowBytes;
      if (pair >= 0) h.set(hidden.bytes.subarray(from, from + rowBytes), row * rowBytes);
    });
    return {
      h: new Planned('in', act, [pairs, width], h),
      w: this.weights.down,
      w_scale: this.weights.downScale,
      offsets: make.values('i32', [offsets.length], offsets),
      order: make.values('i32', [pairs], order),
      slots: make.values('i32', [count, perToken], slots),
      weights: cut(this.shares),
      residual: residual ? cut(this.residual) : undefined,
      out: make.output(act, [count, d]),
      fp8_activations: this.layer.fp8 ?? false,
    };
  }

  /** Rows of h that belong to tokens [begin, end), in the order of that part alone, as bytes of `h` of the whole. */
  rowsOf(h: Uint8Array, begin: number, end: number): Uint8Array {
    const { perToken } = this.layer;
    const whole = this.part(0, this.tokens);
    const part = this.part(begin, end);
    const rowBytes = h.length / whole.pairs;
    const out = new Uint8Array(part.pairs * rowBytes).fill(poisonByte(this.layer.act));
    part.order.forEach((pair, row) => {
      if (pair < 0) return;
      const slot = whole.slots[begin * perToken + pair] as number;
      out.set(h.subarray(slot * rowBytes, (slot + 1) * rowBytes), row * rowBytes);
    });
    return out;
  }
}

/**
 * moeDown rounds an expert's row before it weighs it. Where sums in another order lie on the other side of the middle of
 * two bf16, a result moves by a last place of one of its parts: up to 2^-7 of, say, five times the row's root mean square.
 * That is rare, so the norm of the row is held to its usual bound.
 */
const PARTS = { out: { element: 4e-2 } };

/** Both operations on the GPU and the CPU, then parts of the batch on the GPU alone. */
async function compareBatch(batch: Batch, name: string, parts: readonly (readonly [number, number])[]): Promise<void> {
  const { layer, tokens } = batch;
  const label = `${name}: ${layer.act}${layer.fp8 ? ' in fp8' : ''} x ${layer.weight}, ${tokens} tokens, d ${layer.d}, width ${layer.width}`;
  const hidden = batch.hidden(new Inputs(tokens + 7));
  let h: Uint8Array | undefined;
  let out: Uint8Array | undefined;
  await compareVerb('moeGateUp', (make) => batch.gateUp(make), {
    label,
    judge: (actual) => {
      h = actual.h;
    },
  });
  const tolerance = layer.act === 'bf16' ? PARTS : {};
  await compareVerb('moeDown', (make) => batch.down(make, hidden, true), {
    label,
    tolerance,
    judge: (actual) => {
      out = actual.out;
    },
  });
  await compareVerb('moeDown', (make) => batch.down(make, hidden, false), {
    label: `${label}, no residual`,
    tolerance,
  });
  // Recorded calls are not judged.
  if (RECORDING) return;
  const bytes = layer.act === 'f32' ? 4 : 2;
  for (const [begin, end] of parts) {
    const what = `${label}: tokens ${begin} to ${end - 1} alone`;
    const up = await runTested('moeGateUp', (make) => batch.gateUp(make, begin, end));
    const alone = batch.rowsOf(h as Uint8Array, begin, end);
    expectSameProduct(
      `${what}: h`,
      layer.act,
      [alone.length / layer.width / bytes, layer.width],
      up.h as Uint8Array,
      alone,
    );
    const down = await runTested('moeDown', (make) => batch.down(make, hidden, true, begin, end));
    const all = out as Uint8Array;
    const rowBytes = all.length / tokens;
    const rows = all.subarray(begin * rowBytes, end * rowBytes);
    expectSameProduct(`${what}: out`, layer.act, [end - begin, layer.d], down.out as Uint8Array, rows, {
      tolerance: layer.act === 'bf16' ? PARTS.out : undefined,
    });
  }
}

/** The first, a middle and the last token, and halves. */
function someParts(tokens: number): [number, number][] {
  const half = tokens >> 1;
  const parts: [number, number][] = [
    [0, 1],
    [half, half + 1],
    [tokens - 1, tokens],
    [0, half],
    [half, tokens],
  ];
  return tokens < 2 ? [] : parts.filter(([begin, end]) => begin < end);
}

/**
 * Different experts for each token; every seventh is padding, one pair in six has its expert elsewhere. The last `always`
 * experts are always on: they take the columns from the fourth on.
 */
function spread(experts: number, always = 0): Routing {
  let taken: number[] = [];
  return (token, column, make) => {
    if (column === 0) taken = [];
    if (token % 7 === 5) return -1;
    if (always > 0 && column >= 3) return experts - always + (column - 3);
    const id = make.random.below(experts - always);
    if (taken.includes(id) || make.random.below(6) === 0) return -1;
    taken.push(id);
    return id;
  };
}

/** Types of rows and weights, and whether rows enter as fp8 activations. */
const KINDS: readonly (readonly [Act, Weight, boolean])[] = (['bf16', 'f32'] as const).flatMap((act) => [
  ...(['bf16', 'f8e4m3', 'f32'] as const).map((weight) => [act, weight, false] as const),
  [act, 'f8e4m3', true] as const,
]);

for (const [act, weight, fp8] of KINDS) {
  const rows = `${act} rows${fp8 ? ' in fp8' : ''}`;
  test(`experts, ${rows}, ${weight} weights: small and odd sizes`, async () => {
    const layers: [Layer, number[]][] = [
      [{ act, weight, fp8, d: 144, width: 80, experts: 6, perToken: 3 }, [0, 1, 6, 20, 60]],
      [{ act, weight, fp8, d: 10, width: 8, experts: 3, perToken: 2 }, [7]],
      [{ act, weight, fp8, d: 272, width: 136, experts: 5, perToken: 4 }, [50, 130, 400]],
      // Told of always-on experts that not every token has.
      [{ act, weight, fp8, d: 272, width: 136, experts: 5, perToken: 4, always: 3 }, [1, 5, 16]],
    ];
    for (const [layer, counts] of layers) {
      for (const tokens of counts) {
        await compareBatch(new Batch(layer, tokens, spread(layer.experts)), 'spread', someParts(tokens));
      }
    }
  });

  test(`experts, ${rows}, ${weight} weights: everyone to one expert, and nobody anywhere`, async () => {
    const layer: Layer = { act, weight, fp8, d: 96, width: 48, experts: 9, perToken: 2 };
    for (const tokens of [1, 9, 40, 200]) {
      await compareBatch(
        new Batch(layer, tokens, (_, column) => (column === 0 ? 4 : -1)),
        'one expert',
        someParts(tokens),
      );
      await compareBatch(new Batch(layer, tokens, () => -1), 'none', []);
    }
    // All columns of a token to one expert that moeGateUp takes for always-on: more rows than a tile of its kernel.
    const always: Layer = { act, weight, fp8, d: 272, width: 136, experts: 5, perToken: 4, always: 3 };
    for (const tokens of [5, 2]) await compareBatch(new Batch(always, tokens, () => 4), 'always-on expert', []);
  });
}

/**
 * Enough experts and rows for tiles of 160 and of 208 tokens, one to two of an expert, and for sums of several tokens at a time: of
 * eight, of four and of two.
 */
test('experts, many of them with many rows', async () => {
  const uneven: Routing = (_, __, { random }) => Math.min(random.below(66), random.below(67));
  for (const [d, width, perToken, tokens] of [
    [1024, 64, 1, 8300],
    [64, 512, 1, 8300],
    [1024, 64, 1, 11000],
    [80, 512, 1, 11000],
    [1000, 64, 2, 4200],
    [1024, 64, 3, 2800],
  ] as const) {
    const layer: Layer = { act: 'bf16', weight: 'bf16', d, width, experts: 66, perToken };
    await compareBatch(new Batch(layer, tokens, uneven), 'many', [[tokens >> 1, tokens]]);
  }
});

/** Widths of real layers with fewer experts, the last two of them always on; and how many tokens. */
const REAL: Readonly<Record<string, Omit<Layer, 'act' | 'weight'> & { tokens: readonly number[] }>> = {
  'V2-Lite and Moonlight': { d: 2048, width: 1408, experts: 8, perToken: 5, always: 2, tokens: [1, 8, 9, 33, 70, 300] },
  'GLM-4.7-Flash': { d: 2048, width: 1536, experts: 4, perToken: 5, always: 2, tokens: [8, 130] },
  V3: { d: 7168, width: 2048, experts: 3, perToken: 5, always: 2, tokens: [1, 20] },
};

for (const [name, { tokens: counts, ...shape }] of Object.entries(REAL)) {
  for (const [weight, fp8] of [
    ['bf16', false],
    ['f8e4m3', false],
    ['f8e4m3', true],
  ] as const) {
    test(`experts of ${name}, ${weight} weights${fp8 ? ', rows in fp8' : ''}`, { skip: RECORDING }, async () => {
      const layer: Layer = { ...shape, act: 'bf16', weight, fp8 };
      const weights = weightsOf(new Inputs(1), layer);
      for (const tokens of counts) {
        const parts = someParts(tokens).slice(1, 2);
        await compareBatch(new Batch(layer, tokens, spread(layer.experts, 2), weights), name, parts);
      }
    });
  }
}

/** Expert e takes about 1 / (e + 1) of the tokens' columns; the last experts often none. */
const skewed =
  (experts: number): Routing =>
  (_, column, make) => {
    const drawn = Math.floor(experts ** (make.random.below(1000) / 1000)) - 1;
    return column === 0 ? drawn : -1;
  };

for (const [weight, fp8] of [
  ['bf16', false],
  ['f8e4m3', false],
  ['f8e4m3', true],
] as const) {
  const rows = fp8 ? ', rows in fp8' : '';
  test(`experts, ${weight} weights${rows}: skewed routing, several waves of tiles`, { skip: RECORDING }, async () => {
    for (const tokens of [90, 2600]) {
      const layer: Layer = { act: 'bf16', weight, fp8, d: 6800, width: 80, experts: 9, perToken: 1 };
      await compareBatch(new Batch(layer, tokens, skewed(9)), 'skewed', [[1, 2]]);
    }
  });
}

test('experts: many pairs, so that moeDown takes its columns in several parts', async () => {
  const layer: Layer = { act: 'bf16', weight: 'f8e4m3', d: 2000, width: 64, experts: 4, perToken: 4 };
  const batch = new Batch(layer, 1500, spread(4));
  await compareBatch(batch, 'many pairs', [
    [0, 1],
    [700, 720],
  ]);
});

test('experts: senseless offsets, order and slots do no harm', async () => {
  for (const [act, weight, fp8] of [
    ['bf16', 'bf16', false],
    ['f32', 'bf16', false],
    ['bf16', 'f8e4m3', true],
  ] as const) {
    for (const tokens of [1, 12, 150]) {
      const layer: Layer = { act, weight, fp8, d: 64, width: 32, experts: 5, perToken: 3, always: 2 };
      const batch = new Batch(layer, tokens, spread(5));
      const make = new Inputs(tokens);
      const pairs = tokens * 3;
      const wild = (planned: Planned) =>
        make.values(
          'i32',
          planned.shape,
          Array.from({ length: planned.shape.reduce((a, b) => a * b, 1) }, () =>
            make.random.below(3) === 0
              ? make.random.below(2) === 0
                ? 2147480000
                : -2147480000
              : make.random.below(pairs + 3),
          ),
        );
      const gateUp = batch.gateUp(make);
      const down = batch.down(make, batch.hidden(make), true);
      const offsets = wild(gateUp.offsets as Planned);
      // The GPU ignores what makes no sense (the guard bytes around all tensors say so); the CPU refuses it.
      const judge = (call: Promise<unknown>) =>
        TESTED_DEVICE === 'cpu' ? assert.rejects(call, { code: 'ERR_INVALID_ARG' }) : call;
      const order = wild(gateUp.order as Planned);
      await judge(runTested('moeGateUp', () => ({ ...gateUp, offsets, order })));
      await judge(runTested('moeDown', () => ({ ...down, offsets, slots: wild(down.slots as Planned) })));
    }
  }
});
