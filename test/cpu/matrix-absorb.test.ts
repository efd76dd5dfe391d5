// queryAbsorb and valueExpand against their formulas.

import { expectRows, Laboratories, makeWeights, rowsOf } from './matrix-support';
import { ACTS, cosSin, dot, expectInvalid, Random, rope } from './reference';

let labs: Laboratories;
beforeAll(() => {
  labs = new Laboratories();
});
afterAll(() => labs.dispose());

const POSITIONS = 50;
const PAIRS = ACTS.flatMap((act) => (['f32', 'bf16'] as const).map((weight) => [act, weight] as const));

describe.each(PAIRS)('%s activations, %s weights', (act, weightType) => {
  // The strips of 256 columns and tiles of 64 both have tails here.
  test.each([
    [22, 3, 24, 8, 72],
    [53, 2, 16, 4, 300],
  ])('queryAbsorb of %i rows, %i heads, n %i, r %i, c %i', async (rows, heads, n, r, c) => {
    const random = new Random(c);
    const width = c + r;
    const q = random.values(act, rows * heads * (n + r));
    const w = makeWeights(random, weightType, act, [heads, n, c]);
    const table = cosSin(POSITIONS, r);
    const positions = Array.from({ length: rows }, (_, t) => (t % 4 === 1 ? -1 : (t * 11) % POSITIONS));
    const rotated = rope(q, heads, n + r, r, positions, table);
    const expected = new Float64Array(rows * heads * width);
    for (let i = 0; i < rows * heads; i++) {
      if ((positions[Math.floor(i / heads)] as number) < 0) continue;
      for (let j = 0; j < c; j++) {
        let sum = 0;
        for (let z = 0; z < n; z++) {
          sum += (q[i * (n + r) + z] as number) * (w.operand[((i % heads) * n + z) * c + j] as number);
        }
        expected[i * width + j] = sum;
      }
      expected.set(rotated.subarray(i * (n + r) + n, (i + 1) * (n + r)), i * width + c);
    }
    await labs.everyWay(rows, async (lab, begin, end) => {
      const count = end - begin;
      const out = await lab.poison(act, [count, heads, width]);
      await lab.run('queryAbsorb', {
        q: await lab.put(act, [count, heads, n + r], rowsOf(q, heads * (n + r), begin, end)),
        w_uk: (await labs.weights(lab, w))[0],
        positions: await lab.put('i32', [count], positions.slice(begin, end)),
        cos_sin: await labs.keep(lab, 'f32', [POSITIONS, r / 2, 2], table),
        out,
      });
      if (count === rows) expectRows(await lab.get(out), expected, width, act);
      return lab.bytes(out);
    });
  });

  test.each([
    [22, 3, 72, 20],
    [51, 2, 40, 130],
  ])('valueExpand of %i rows, %i heads, c %i, v %i', async (rows, heads, c, v) => {
    const random = new Random(v);
    const u = random.values(act, rows * heads * c);
    const w = makeWeights(random, weightType, act, [heads, v, c]);
    const expected = new Float64Array(rows * heads * v).map((_, i) => {
      const row = Math.floor(i / v);
      return dot(u, row * c, w.operand, ((row % heads) * v + (i % v)) * c, c);
    });
    await labs.everyWay(rows, async (lab, begin, end) => {
      const count = end - begin;
      const out = await lab.poison(act, [count, heads * v]);
      await lab.run('valueExpand', {
        u: await lab.put(act, [count, heads, c], rowsOf(u, heads * c, begin, end)),
        w_uv: (await labs.weights(lab, w))[0],
        out,
      });
      if (count === rows) expectRows(await lab.get(out), expected, heads * v, act);
      return lab.bytes(out);
    });
  });
});

test('queryAbsorb refuses a position behind the table', async () => {
  const lab = labs.one;
  const args = {
    q: await lab.put('f32', [2, 1, 4], [1, 2, 3, 4, 5, 6, 7, 8]),
    w_uk: await lab.put('f32', [1, 2, 4], [1, 2, 3, 4, 5, 6, 7, 8]),
    positions: await lab.put('i32', [2], [0, 3]),
    cos_sin: await lab.put('f32', [3, 1, 2], cosSin(3, 2)),
    out: await lab.poison('f32', [2, 1, 6]),
  };
  await expectInvalid(lab.run('queryAbsorb', args), 'queryAbsorb', 'positions[1] is 3');
});
