// cpu/reference-fp8-cache.test.ts - rows of an fp8 cache, byte for byte: as latentCompress writes them, as they are read
// and copied, and what is no such cache.
import type { Tensor } from '../../lib/native';
import {
  ACTS,
  type Act,
  cosSin,
  decode,
  encode,
  expectExact,
  expectInvalid,
  Laboratory,
  Random,
  rounded,
} from './reference';
import { fp8Row, fp8RowBytes, PAGE, pagedCache, pagedFp8Cache } from './reference-cache';

const lab = new Laboratory(2);
afterAll(() => lab.dispose());

const POSITIONS = 30;
const PAGES = 2;

/** Runs latentCompress on the same random inputs; the weights of the latent's norm are its own. */
async function compress(act: Act, cache: Tensor, [c, r]: readonly [number, number], latentNorm: ArrayLike<number>) {
  const random = new Random(c);
  const [rows, d, nq] = [7, 40, 24];
  const args = {
    x: await lab.put(act, [rows, d], random.values(act, rows * d)),
    norm: await lab.put('f32', [d], random.values('f32', d, 0.3, 1)),
    weight: await lab.put('f32', [nq + c + r, d], random.values('f32', (nq + c + r) * d)),
    latent_norm: await lab.put('f32', [c], latentNorm),
    positions: await lab.put('i32', [rows], [3, 0, -1, 29, 5, 6, 7]),
    slots: await lab.put('i32', [rows], [0, 63, 5, 64, -1, 127, 1]),
    cos_sin: await lab.put('f32', [POSITIONS, r / 2, 2], cosSin(POSITIONS, r)),
    q: await lab.poison(act, [rows, nq]),
    cache,
    eps: 1e-6,
    latent_eps: 1e-6,
  };
  await lab.run('latentCompress', args);
}

const DIMS = [
  [512, 64],
  [256, 64],
  [130, 6],
  [3, 2],
] as const;

describe.each(ACTS)('latentCompress with %s activations', (act) => {
  test.each(DIMS)('writes %i + %i channels as fp8 rows of what it writes as float32', async (c, r) => {
    const width = c + r;
    const rowBytes = fp8RowBytes(c, r);
    // Ordinary channels first; then zeros, the smallest and the largest there are, and what no float32 holds.
    const norm = (begin: number) => Math.floor(begin / 128) % 4;
    const ordinary = new Random(9).values('f32', c, 0.3, 1);
    const extremes = [1, 0, 2 ** -126, 2 ** 126];
    for (const weights of [ordinary, ordinary.map((x, i) => x * (extremes[norm(i)] as number))]) {
      const plain = await lab.poison('f32', [PAGES, PAGE, width]);
      const fp8 = await lab.poison('f8e4m3', [PAGES, PAGE, rowBytes]);
      await compress(act, plain, [c, r], weights);
      await compress(act, fp8, [c, r], weights);
      const values = await lab.get(plain);
      const bytes = new Uint8Array(await lab.bytes(fp8));
      for (let slot = 0; slot < PAGES * PAGE; slot++) {
        const row = values.subarray(slot * width, (slot + 1) * width);
        const written = [0, 1, 63, 64, 127].includes(slot);
        const expected = written ? fp8Row(row, c).bytes : new Uint8Array(rowBytes).fill(0xff);
        const actual = bytes.subarray(slot * rowBytes, (slot + 1) * rowBytes);
        expect([slot, Buffer.from(actual).toString('hex')]).toEqual([slot, Buffer.from(expected).toString('hex')]);
      }
    }
  });
});

test('the rows of the published shapes have 656 and 400 bytes', () => {
  expect([fp8RowBytes(512, 64), fp8RowBytes(256, 64)]).toEqual([656, 400]);
});

test('128 channels of which one is no number are read as NaN, the others as they are', async () => {
  const [c, r] = [256, 2];
  const cache = await lab.poison('f8e4m3', [PAGES, PAGE, fp8RowBytes(c, r)]);
  const weights = new Random(9).values('f32', c, 0.3, 1);
  weights[7] = Infinity;
  await compress('f32', cache, [c, r], weights);
  const args = {
    cache,
    block_table: await lab.put('i32', [1, 1], [0]),
    k_start: await lab.put('i32', [2], [0, 1]),
    k_pos: await lab.put('i32', [1], [0]),
    latent: await lab.poison('f32', [1, c]),
    rope: await lab.poison('f32', [1, r]),
  };
  await lab.run('loadLatent', args);
  const latent = await lab.get(args.latent);
  expect(latent.subarray(0, 128).every(Number.isNaN)).toBe(true);
  expect(latent.subarray(128).every((x) => Number.isFinite(x) && x !== 0)).toBe(true);
});

test('every code with the least and the largest scale is read exactly, in bf16 too', async () => {
  const codes = Array.from({ length: 256 }, (_, i) => i).filter((code) => (code & 0x7f) !== 0x7f);
  const values = decode('f8e4m3', Uint8Array.from(codes).buffer);
  const [c, r] = [128, 2];
  for (const exponent of [-60, -1, 0, 60]) {
    const rows = Array.from({ length: 2 }, (_, i) => values.subarray(i * 127, (i + 1) * 127));
    const bytes = new Uint8Array(PAGE * fp8RowBytes(c, r)).fill(0xff);
    rows.forEach((row, i) => {
      const at = i * fp8RowBytes(c, r);
      bytes.set(encode('f8e4m3', [...row, 1]), at);
      bytes.set(encode('f32', [2 ** exponent]), at + c);
      bytes.set(encode('bf16', [-1.5, 2 ** -120]), at + 144);
    });
    const cache = (await lab.put('u8', [1, PAGE, fp8RowBytes(c, r)], bytes)).view('f8e4m3', [
      1,
      PAGE,
      fp8RowBytes(c, r),
    ]);
    for (const act of ACTS) {
      const args = {
        cache,
        block_table: await lab.put('i32', [1, 1], [0]),
        k_start: await lab.put('i32', [2], [0, 2]),
        k_pos: await lab.put('i32', [1], [0]),
        latent: await lab.poison(act, [2, c]),
        rope: await lab.poison(act, [2, r]),
      };
      await lab.run('loadLatent', args);
      const latent = await lab.get(args.latent);
      rows.forEach((row, i) => {
        const expected = Array.from(row, (x) => x * 2 ** exponent);
        expect(expected.map((x) => rounded('bf16', x))).toEqual(expected);
        expectExact(latent.subarray(i * c, i * c + 127), expected);
      });
      expectExact(await lab.get(args.rope), [-1.5, 2 ** -120, -1.5, 2 ** -120]);
    }
  }
});

test.each(ACTS)('mlaDecode, %s: an fp8 cache gives the bits of one that holds the same numbers', async (act) => {
  for (const [c, r] of [
    [512, 64],
    [40, 8],
  ] as const) {
    const [heads, lengths] = [3, [130, 1, 64, 257]];
    const fp8 = await pagedFp8Cache(lab, new Random(c), [c, r], lengths);
    // The same places, from the same seed, with the numbers that the fp8 rows are read as.
    const plain = await pagedCache(lab, new Random(c), 'bf16', c + r, lengths);
    const values = new Float64Array(plain.cache.shape.reduce((a, b) => a * b)).fill(Number.NaN);
    fp8.rows.forEach((rows, b) => {
      for (let j = 0; j < (lengths[b] as number); j++) {
        const page = fp8.entries[b * fp8.tablePages + Math.floor(j / PAGE)] as number;
        values.set(rows.subarray(j * (c + r), (j + 1) * (c + r)), (page * PAGE + (j % PAGE)) * (c + r));
      }
    });
    const same = { ...fp8, cache: await lab.put('bf16', plain.cache.shape, values) };
    const q = await lab.put(act, [4, heads, c + r], new Random(4).values(act, 4 * heads * (c + r)));
    const run = async (cache: Tensor, table: Tensor) => {
      const args = {
        q,
        q_start: await lab.put('i32', [5], [0, 1, 2, 3, 4]),
        cache,
        block_table: table,
        lengths: await lab.put('i32', [4], lengths),
        plan: await lab.poison('i32', [lab.device.decodePlanInts(4, heads)]),
        out: await lab.poison(act, [4, heads, c]),
        lse: await lab.poison('f32', [4, heads]),
        scale: 0.1,
      };
      await lab.run('mlaDecode', args);
      return [await lab.get(args.out), await lab.get(args.lse)] as const;
    };
    const [out, lse] = await run(fp8.cache, fp8.table);
    const [sameOut, sameLse] = await run(same.cache, same.table);
    expectExact(out, sameOut);
    expectExact(lse, sameLse);
    expect(out.some((x) => x !== 0)).toBe(true);
  }
});

test('copyPages moves rows as they are', async () => {
  const rowBytes = fp8RowBytes(256, 64);
  const content = Uint8Array.from({ length: 2 * 3 * PAGE * rowBytes }, (_, i) => (i * 31) % 251);
  const bytes = await lab.put('u8', [2, 3, PAGE, rowBytes], content);
  const cache = bytes.view('f8e4m3', bytes.shape);
  await lab.run('copyPages', { pairs: await lab.put('i32', [2, 2], [0, 2, -1, 1]), cache });
  const pageBytes = PAGE * rowBytes;
  const expected = content.slice();
  for (const layer of [0, 3]) expected.copyWithin((layer + 2) * pageBytes, layer * pageBytes, (layer + 1) * pageBytes);
  expect(Buffer.compare(Buffer.from(await lab.bytes(bytes)), Buffer.from(expected))).toBe(0);
});

test('rows of another size, and a cache that begins in between, are refused by name', async () => {
  const [c, r] = [256, 64];
  const bytes = await lab.device.allocate('u8', [PAGE * 416]);
  const args = async (cache: Tensor) => ({
    cache,
    block_table: await lab.put('i32', [1, 1], [0]),
    k_start: await lab.put('i32', [2], [0, 1]),
    k_pos: await lab.put('i32', [1], [0]),
    latent: await lab.poison('f32', [1, c]),
    rope: await lab.poison('f32', [1, r]),
  });
  for (const width of [320, 384, 399, 401, 416]) {
    const cache = bytes.view('f8e4m3', [1, PAGE, width]);
    await expectInvalid(
      lab.run('loadLatent', await args(cache)),
      'loadLatent: cache must be [pages, 64, 400] (f32, bf16 or f8e4m3) because latent is f32 [1, 256]',
      `got f8e4m3 [1, 64, ${width}]`,
    );
  }
  const shifted = bytes.view('f8e4m3', [1, PAGE, 400], 8);
  await expectInvalid(lab.run('loadLatent', await args(shifted)), 'cache must begin at a multiple of 16 bytes');
  const pairs = await lab.put('i32', [1, 2], [0, 0]);
  const slab = bytes.view('f8e4m3', [1, 1, PAGE, 400], 4);
  await expectInvalid(lab.run('copyPages', { pairs, cache: slab }), 'cache must begin at a multiple of 16 bytes');
});
