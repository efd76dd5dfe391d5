// Rows as fp8 activations: what a product with the identity gives is what entered it. The expected numbers come from
// another library's e4m3 (test/golden/make_fp8_rows.py).
import { expectExact, expectInvalid, Laboratory, Random, rounded } from './reference';
import { fp8GoldenRows, fp8Rows } from './reference-cache';

let lab: Laboratory;
beforeAll(() => {
  lab = new Laboratory(2);
});
afterAll(() => lab.dispose());

const identity = (k: number) => new Float64Array(k * k).map((_, i) => (i % (k + 1) === 0 ? 1 : 0));
const ones = (k: number) => new Float64Array(Math.ceil(k / 128) ** 2).fill(1);

/** What enters the product: rows of k values, in float32. */
async function entered(act: 'f32' | 'bf16', x: Float64Array, k: number): Promise<Float64Array> {
  const rows = x.length / k;
  const blocks = Math.ceil(k / 128);
  const y = await lab.poison('f32', [rows, k]);
  await lab.run('gemm', {
    x: await lab.put(act, [rows, k], x),
    w: await lab.put('f8e4m3', [k, k], identity(k)),
    w_scale: await lab.put('f32', [blocks, blocks], ones(k)),
    y,
    fp8_activations: true,
  });
  return lab.get(y);
}

describe.each(fp8GoldenRows())('$name', ({ dtype, k, x: row, y }) => {
  const x = Float64Array.from(row);
  test('as another library rounds it', async () => {
    expectExact(fp8Rows(x, k), y);
    expectExact(await entered('f32', x, k), y);
    if (dtype === 'bf16') expectExact(await entered('bf16', x, k), y);
  });

  test('the result is bf16, and rounding it again changes nothing', async () => {
    const once = await entered('f32', x, k);
    expectExact(
      once.map((value) => rounded('bf16', value)),
      once,
    );
    expectExact(await entered('bf16', once, k), once);
  });
});

test('rows and blocks have scales of their own, for every number of rows', async () => {
  const random = new Random(5);
  const k = 300;
  const x = random.values('bf16', 60 * k).map((value, i) => value * 2 ** ((i >> 5) % 13));
  const all = await entered('bf16', x, k);
  expectExact(all, fp8Rows(x, k));
  for (const [begin, end] of [
    [0, 1],
    [7, 9],
    [20, 39],
    [59, 60],
  ] as const)
    expectExact(await entered('bf16', x.subarray(begin * k, end * k), k), all.subarray(begin * k, end * k));
});

test('what is no finite number spoils its own block, and no other row', async () => {
  const random = new Random(6);
  const k = 256;
  for (const wrong of [Number.NaN, Infinity, -Infinity]) {
    const x = random.values('bf16', 3 * k);
    x[k + 130] = wrong;
    const entering = fp8Rows(x, k);
    expect(entering.findIndex(Number.isNaN)).toBe(k + 128);
    expect(entering.filter(Number.isNaN)).toHaveLength(128);
    // Times the zeros of the identity, NaN reaches the whole row.
    const y = await entered('bf16', x, k);
    expect(y.subarray(k, 2 * k).every(Number.isNaN)).toBe(true);
    for (const row of [0, 2])
      expectExact(y.subarray(row * k, (row + 1) * k), entering.subarray(row * k, (row + 1) * k));
  }
});

test('weights in another type meet no fp8 activations', async () => {
  const x = await lab.put('bf16', [1, 8], new Float64Array(8));
  const w = await lab.put('bf16', [8, 8], new Float64Array(64));
  const y = await lab.poison('bf16', [1, 8]);
  const issue = async () => lab.run('gemm', { x, w, y, fp8_activations: true });
  await expectInvalid(issue(), 'gemm', 'fp8_activations must be false because w is bf16 [8, 8]');
});
