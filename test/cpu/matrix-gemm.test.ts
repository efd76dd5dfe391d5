// gemm and swiglu against their formulas.

import { entered, expectRows, interleaved, KINDS, Laboratories, makeWeights, rowsOf, silu } from './matrix-support';
import { dot, expectInvalid, matmul, Random } from './reference';

let labs: Laboratories;
beforeAll(() => {
  labs = new Laboratories();
});
afterAll(() => labs.dispose());

describe.each(KINDS)('%s activations, %s weights, rows %s', (act, weightType, entering) => {
  const fp8_activations = entering === 'in fp8';

  // [rows, n, k, residual, float32 result]; 2181 columns are more than one depth block, with a tail.
  test.each([
    [1, 1, 1, false, false],
    [3, 5, 7, true, false],
    [27, 75, 333, true, false],
    [50, 33, 256, false, true],
    [21, 20, 2181, true, true],
  ])('gemm of %i rows, n %i, k %i, residual %s, f32 result %s', async (rows, n, k, hasResidual, wide) => {
    const random = new Random(rows * 1000 + n);
    const x = random.values(act, rows * k);
    const w = makeWeights(random, weightType, act, [n, k]);
    const residual = random.values(act, rows * n, 5);
    const out = wide ? 'f32' : act;
    await labs.everyWay(rows, async (lab, begin, end) => {
      const count = end - begin;
      const y = await lab.poison(out, [count, n]);
      const [weight, scale] = await labs.weights(lab, w);
      await lab.run('gemm', {
        x: await lab.put(act, [count, k], rowsOf(x, k, begin, end)),
        w: weight,
        w_scale: scale,
        residual: hasResidual ? await lab.put(act, [count, n], rowsOf(residual, n, begin, end)) : undefined,
        y,
        fp8_activations,
      });
      if (count === rows) {
        const expected = matmul(entered(x, k, entering), w.operand, rows, n, k);
        if (hasResidual) {
          for (const [i, r] of residual.entries()) expected[i] = (expected[i] as number) + r;
        }
        expectRows(await lab.get(y), expected, n, out);
      }
      return lab.bytes(y);
    });
  });

  test.each([
    [23, 40, 72],
    [5, 136, 200],
  ])('swiglu of %i rows, width %i, d %i', async (rows, width, d) => {
    const random = new Random(rows);
    const x = random.values(act, rows * d);
    const w = makeWeights(random, weightType, act, [2 * width, d], true);
    await labs.everyWay(rows, async (lab, begin, end) => {
      const count = end - begin;
      const out = await lab.poison(act, [count, width]);
      const [weight, scale] = await labs.weights(lab, w);
      await lab.run('swiglu', {
        x: await lab.put(act, [count, d], rowsOf(x, d, begin, end)),
        w: weight,
        w_scale: scale,
        out,
        fp8_activations,
      });
      if (count === rows) {
        const operand = entered(x, d, entering);
        const expected = new Float64Array(rows * width).map((_, i) => {
          const channel = i % width;
          const [gate, up] = ([0, 1] as const).map((part) =>
            dot(operand, Math.floor(i / width) * d, w.operand, interleaved(channel, part) * d, d),
          ) as [number, number];
          return silu(gate) * up;
        });
        expectRows(await lab.get(out), expected, width, act, 2e-5);
      }
      return lab.bytes(out);
    });
  });
});

test('the result may take the place of the residual', async () => {
  const lab = labs.one;
  const x = await lab.put('f32', [2, 2], [1, 2, 3, 4]);
  const w = await lab.put('f32', [3, 2], [1, 0, 0, 1, 1, 1]);
  const y = await lab.put('f32', [2, 3], [10, 20, 30, 40, 50, 60]);
  await lab.run('gemm', { x, w, residual: y, y });
  expect([...(await lab.get(y))]).toEqual([11, 22, 33, 43, 54, 67]);
});

test('no rows are fine', async () => {
  const lab = labs.one;
  const w = await lab.put('bf16', [3, 2], [1, 2, 3, 4, 5, 6]);
  await lab.run('gemm', { x: await lab.put('f32', [0, 2], []), w, y: await lab.poison('f32', [0, 3]) });
});

test('NaN and infinity of an input reach their own outputs only', async () => {
  const lab = labs.one;
  const x = await lab.put('bf16', [3, 2], [1, Number.NaN, 1, 1, Infinity, 1]);
  const w = await lab.put('f8e4m3', [2, 2], [1, 0, 0, Number.NaN]);
  const y = await lab.poison('f32', [3, 2]);
  await lab.run('gemm', { x, w, w_scale: await lab.put('f32', [1, 1], [1]), y });
  expect([...(await lab.get(y))]).toEqual([Number.NaN, Number.NaN, 1, Number.NaN, Infinity, Number.NaN]);
});

test('an operation without enough workspace says how much it needs', async () => {
  const lab = labs.one;
  const stream = lab.device.stream();
  const x = await lab.put('f32', [1, 4], [1, 2, 3, 4]);
  const y = await lab.poison('f32', [1, 1]);
  stream.useWorkspace(await lab.device.allocate('u8', [16]));
  const issue = async () => {
    stream.gemm({ x, w: x, y });
    await stream.record().done;
  };
  await expectInvalid(issue(), 'workspace', '16');
});
