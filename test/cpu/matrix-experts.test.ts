// moeGateUp and moeDown against their formulas, on routings with padding rows and experts that live elsewhere.
import type { Tensor } from '../../lib/native';
import { entered, expectRows, interleaved, KINDS, Laboratories, makeWeights, rowsOf, silu } from './matrix-support';
import { dot, expectInvalid, type Laboratory, Random, rounded } from './reference';

let labs: Laboratories;
beforeAll(() => {
  labs = new Laboratories();
});
afterAll(() => labs.dispose());

/** offsets, order and slots of the experts that rows name; -1 names none. */
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

/** Every seventh row is padding, one pair in five belongs to another device. */
function routing(random: Random, rows: number, perRow: number, experts: number): number[] {
  return Array.from({ length: rows * perRow }, (_, pair) =>
    Math.floor(pair / perRow) % 7 === 3 || random.below(5) === 0 ? -1 : random.below(experts),
  );
}

describe.each(KINDS)('%s activations, %s weights, rows %s', (act, weightType, entering) => {
  const fp8_activations = entering === 'in fp8';

  test.each([
    [58, 40, 24, 4, 3],
    [5, 72, 136, 3, 2],
  ])('%i rows, d %i, width %i, %i experts, %i per row', async (rows, d, width, experts, perRow) => {
    const random = new Random(rows + width);
    const ids = routing(random, rows, perRow, experts);
    const x = random.values(act, rows * d);
    const up = makeWeights(random, weightType, act, [experts, 2 * width, d], true);
    const down = makeWeights(random, weightType, act, [experts, d, width]);
    const weights = random.values('f32', rows * perRow);
    const residual = random.values(act, rows * d);

    await labs.everyWay(rows, async (lab, begin, end) => {
      const count = end - begin;
      const mine = ids.slice(begin * perRow, end * perRow);
      const { offsets, order, slots, used } = group(mine, experts);
      const pairs = count * perRow;
      const place = {
        offsets: await lab.put('i32', [experts + 1], offsets),
        order: await lab.put('i32', [pairs], order),
      };
      const h = await lab.poison(act, [pairs, width]);
      const out = await lab.poison(act, [count, d]);
      const [upWeight, upScale] = await labs.weights(lab, up);
      const [downWeight, downScale] = await labs.weights(lab, down);
      await lab.run('moeGateUp', {
        x: await lab.put(act, [count, d], rowsOf(x, d, begin, end)),
        w: upWeight,
        w_scale: upScale,
        ...place,
        h,
        fp8_activations,
      });
      await lab.run('moeDown', {
        h,
        w: downWeight,
        w_scale: downScale,
        ...place,
        slots: await lab.put('i32', [count, perRow], slots),
        weights: await lab.put('f32', [count, perRow], rowsOf(weights, perRow, begin, end)),
        residual: await lab.put(act, [count, d], rowsOf(residual, d, begin, end)),
        out,
        fp8_activations,
      });
      if (count === rows) {
        const operand = entered(x, d, entering);
        const hidden = await lab.get(h);
        const wanted = new Float64Array(pairs * width).fill(Number.NaN);
        for (let i = 0; i < used * width; i++) {
          const pair = order[Math.floor(i / width)] as number;
          const row = Math.floor(pair / perRow) * d;
          const matrix = (mine[pair] as number) * 2 * width;
          const [gate, rise] = ([0, 1] as const).map((part) =>
            dot(operand, row, up.operand, (matrix + interleaved(i % width, part)) * d, d),
          ) as [number, number];
          wanted[i] = silu(gate) * rise;
        }
        expectRows(hidden.subarray(0, used * width), wanted.subarray(0, used * width), width, act, 2e-5);
        expect(hidden.subarray(used * width).every(Number.isNaN)).toBe(true);
        // The second half is judged by the h that was stored. An expert's row is rounded before it is weighed: where the
        // float32 sum may lie on either side of the middle of two neighbours, either will do.
        const stored = entered(hidden.slice(0, used * width), width, entering);
        const slack = new Float64Array(count * d);
        const expected = residual.map((r, i) => {
          const row = Math.floor(i / d);
          let sum = 0;
          for (let j = 0; j < perRow; j++) {
            const slot = slots[row * perRow + j] as number;
            if (slot < 0) continue;
            const matrix = (mine[row * perRow + j] as number) * d;
            const product = dot(stored, slot * width, down.operand, (matrix + (i % d)) * width, width);
            const weight = weights[row * perRow + j] as number;
            const [less, more] = [-1e-5, 1e-5].map((e) => rounded(act, product + e)) as [number, number];
            slack[i] = (slack[i] as number) + Math.abs(weight) * (act === 'bf16' ? more - less : 0);
            sum += weight * rounded(act, product);
          }
          return r + sum;
        });
        expectRows(await lab.get(out), expected, d, act, 1e-5, slack);
      }
      return lab.bytes(out);
    });
  });
});

/** One row, three experts of width 8 whose outputs are 1. */
async function small(lab: Laboratory, changes: Record<string, Tensor>) {
  const ones = new Array(3 * 8 * 8).fill(1 / 8);
  return {
    h: await lab.put('f32', [3, 8], new Array(24).fill(1)),
    w: await lab.put('f32', [3, 8, 8], ones),
    offsets: await lab.put('i32', [4], [0, 1, 2, 3]),
    order: await lab.put('i32', [3], [1, 2, 0]),
    slots: await lab.put('i32', [1, 3], [2, 0, 1]),
    weights: await lab.put('f32', [1, 3], [1, 1, 1]),
    out: await lab.poison('f32', [1, 8]),
    ...changes,
  };
}

test('the weighted sum ascends over the row, wherever its experts lie', async () => {
  // 2^24 + 1 is 2^24 in float32: the 1 is lost in this order and in no other.
  const lab = labs.one;
  const args = await small(lab, { weights: await lab.put('f32', [1, 3], [2 ** 24, 1, -(2 ** 24)]) });
  await lab.run('moeDown', args);
  expect([...(await lab.get(args.out))]).toEqual(new Array(8).fill(0));
});

test('without a residual the partial sum stands alone; in place it is added to out', async () => {
  const lab = labs.one;
  const args = await small(lab, { weights: await lab.put('f32', [1, 3], [2, 3, 4]) });
  await lab.run('moeDown', args);
  expect([...(await lab.get(args.out))]).toEqual(new Array(8).fill(9));
  await lab.run('moeDown', { ...args, residual: args.out });
  expect([...(await lab.get(args.out))]).toEqual(new Array(8).fill(18));
});

test('a step without pairs gives the residual', async () => {
  const lab = labs.one;
  const args = await small(lab, {
    offsets: await lab.put('i32', [4], [0, 0, 0, 0]),
    slots: await lab.put('i32', [1, 3], [-1, -1, -1]),
    residual: await lab.put('f32', [1, 8], [1, 2, 3, 4, 5, 6, 7, 8]),
  });
  await lab.run('moeDown', args);
  expect([...(await lab.get(args.out))]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
});

describe('what the device holds is checked before it is used', () => {
  test.each([
    ['offsets', [0, 2, 1, 3], 'offsets[2] is 1'],
    ['offsets', [0, 1, 2, 4], 'offsets[3] is 4'],
    ['offsets', [1, 1, 2, 3], 'offsets[0] is 1'],
    ['slots', [2, 0, 3], 'slots[2] is 3'],
  ])('moeDown: %s %j', async (name, values, text) => {
    const lab = labs.one;
    const shape = name === 'slots' ? [1, 3] : [4];
    const args = await small(lab, { [name]: await lab.put('i32', shape, values) });
    await expectInvalid(lab.run('moeDown', args), 'moeDown', text);
  });

  test.each([
    [[0, 1, 2, 3], [0, 3, 1], 'order[1] is 3'],
    [[0, 1, 2, 3], [0, -1, 1], 'order[1] is -1'],
    [[0, 1, 0, 3], [0, 1, 2], 'offsets[2] is 0'],
  ])('moeGateUp: offsets %j, order %j', async (offsets, order, text) => {
    const lab = labs.one;
    const args = {
      x: await lab.put('f32', [1, 8], new Array(8).fill(1)),
      w: await lab.put('f32', [3, 16, 8], new Array(384).fill(1)),
      offsets: await lab.put('i32', [4], offsets),
      order: await lab.put('i32', [3], order),
      h: await lab.poison('f32', [3, 8]),
    };
    await expectInvalid(lab.run('moeGateUp', args), 'moeGateUp', text);
  });
});
