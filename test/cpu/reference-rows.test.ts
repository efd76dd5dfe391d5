// cpu/reference-rows.test.ts - gatherRows, rmsNorm, addRmsNorm and rope against float64.
import {
  ACTS,
  cosSin,
  EPSILON,
  expectInvalid,
  expectRounded,
  expectWithin,
  Laboratory,
  Random,
  rmsNorm,
  rope,
  rounded,
} from './reference';

const lab = new Laboratory();
afterAll(() => lab.dispose());

describe('gatherRows', () => {
  const pairs = ACTS.flatMap((table) => ACTS.map((act) => [table, act] as const));

  it.each(pairs)('copies rows of a %s table to %s, zeros for negative ids', async (table, act) => {
    for (const d of [1, 15, 16, 37, 300]) {
      const values = new Random(d).values(table, 9 * d);
      const ids = [8, 0, -1, 3, 3, -2147483648, 7];
      const out = await lab.poison(act, [ids.length, d]);
      await lab.run('gatherRows', {
        table: await lab.put(table, [9, d], values),
        ids: await lab.put('i32', [ids.length], ids),
        out,
      });
      const expected = ids.flatMap((id) =>
        Array.from({ length: d }, (_, i) => (id < 0 ? 0 : rounded(act, values[id * d + i] as number))),
      );
      expect(Array.from(await lab.get(out))).toEqual(expected);
    }
  });

  it('takes no rows, and names an id beyond the table', async () => {
    const table = await lab.put('f32', [2, 3], [1, 2, 3, 4, 5, 6]);
    await lab.run('gatherRows', {
      table,
      ids: await lab.put('i32', [0], []),
      out: await lab.poison('f32', [0, 3]),
    });
    const args = { table, ids: await lab.put('i32', [2], [1, 2]), out: await lab.poison('f32', [2, 3]) };
    await expectInvalid(lab.run('gatherRows', args), 'gatherRows', 'ids[1] is 2');
  });
});

describe.each(ACTS)('norms of %s rows', (act) => {
  it.each(ACTS)('agree with float64, weight %s', async (weightType) => {
    for (const [rows, d] of [
      [1, 1],
      [3, 7],
      [5, 16],
      [2, 100],
      [40, 513],
    ] as const) {
      const random = new Random(rows * d);
      const x = random.values(act, rows * d, 3);
      const delta = random.values(act, rows * d);
      const weight = random.values(weightType, d);
      const w = await lab.put(weightType, [d], weight);
      const out = await lab.poison(act, [rows, d]);
      const residual = await lab.put(act, [rows, d], x);
      await lab.run('rmsNorm', { x: residual, weight: w, out, eps: 1e-6 });
      expectRounded(await lab.get(out), rmsNorm(x, weight, 1e-6), act);

      await lab.run('addRmsNorm', {
        x: residual,
        delta: await lab.put(act, [rows, d], delta),
        weight: w,
        out,
        eps: 1e-5,
      });
      const sum = x.map((value, i) => rounded(act, value + (delta[i] as number)));
      expect(Array.from(await lab.get(residual))).toEqual(Array.from(sum));
      expectRounded(await lab.get(out), rmsNorm(sum, weight, 1e-5), act);
    }
  });

  it('keeps a row of zeros zero and takes no rows', async () => {
    const weight = await lab.put('f32', [8], new Float64Array(8).fill(2));
    const out = await lab.poison(act, [1, 8]);
    await lab.run('rmsNorm', { x: await lab.put(act, [1, 8], new Float64Array(8)), weight, out, eps: 1e-6 });
    expect(Array.from(await lab.get(out))).toEqual(new Array(8).fill(0));
    const empty = await lab.poison(act, [0, 8]);
    await lab.run('rmsNorm', { x: await lab.poison(act, [0, 8]), weight, out: empty, eps: 1e-6 });
  });
});

describe('rope', () => {
  it.each(ACTS)('rotates the last channels of %s heads by pairs', async (act) => {
    for (const [heads, nope, r] of [
      [1, 0, 2],
      [3, 5, 6],
      [4, 128, 64],
    ] as const) {
      const positions = [0, 99, -1, 5, 5];
      const width = nope + r;
      const table = cosSin(100, r);
      const x = new Random(heads).values(act, positions.length * heads * width);
      const q = await lab.put(act, [positions.length, heads, width], x);
      await lab.run('rope', {
        q,
        positions: await lab.put('i32', [positions.length], positions),
        cos_sin: await lab.put('f32', [100, r / 2, 2], table),
      });
      const expected = rope(x, heads, width, r, positions, table);
      const actual = await lab.get(q);
      // The two products of a channel may cancel: float32 errors are relative to them, the last rounding to the sum.
      expectWithin(actual, expected, (i, e) => {
        const other = (i % width) % 2 === nope % 2 ? i + 1 : i - 1;
        return EPSILON[act] * Math.abs(e) + 2 ** -22 * (Math.abs(x[i] as number) + Math.abs(x[other] as number));
      });
      x.forEach((value, i) => {
        if (i % width < nope || Math.floor(i / (heads * width)) === 2) expect(actual[i]).toBe(value);
      });
    }
  });

  it('rotates adjacent channels: the first pair by the position itself', async () => {
    const q = await lab.put('f32', [1, 1, 4], [1, 0, 0, 1]);
    const table = cosSin(4, 4);
    await lab.run('rope', {
      q,
      positions: await lab.put('i32', [1], [3]),
      cos_sin: await lab.put('f32', [4, 2, 2], table),
    });
    const expected = [Math.cos(3), Math.sin(3), -Math.sin(0.03), Math.cos(0.03)];
    expectRounded(await lab.get(q), expected, 'f32');
  });

  it('names a position beyond the table', async () => {
    const args = {
      q: await lab.put('f32', [2, 1, 2], [1, 2, 3, 4]),
      positions: await lab.put('i32', [2], [0, 4]),
      cos_sin: await lab.put('f32', [4, 1, 2], cosSin(4, 2)),
    };
    await expectInvalid(lab.run('rope', args), 'rope', 'positions[1] is 4');
    expect(Array.from(await lab.get(args.q))).toEqual([1, 2, 3, 4]);
  });
});
