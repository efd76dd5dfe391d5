// latentCompress against its formula: both forms of the query, padding rows, rows without a slot.
import type { Tensor } from '../../lib/native';
import { entered, expectRows, KINDS, Laboratories, makeWeights, rowsOf } from './matrix-support';
import { cosSin, decode, dot, expectInvalid, type Laboratory, Random, rmsNorm, rope, rounded } from './reference';

let labs: Laboratories;
beforeAll(() => {
  labs = new Laboratories();
});
afterAll(() => labs.dispose());

const PAGES = 2;
const POSITIONS = 40;
const EPS = 1e-6;
const LATENT_EPS = 1e-5;

describe.each(KINDS)('%s activations, %s weights, rows %s', (act, weightType, entering) => {
  const fp8_activations = entering === 'in fp8';

  test.each([
    [act, false, 26, 72, 48, 32, 8],
    ['f32' as const, true, 26, 136, 40, 56, 16],
    ['bf16' as const, true, 3, 40, 150, 16, 4],
  ])('cache %s, q-lora %s, %i rows, d %i, nq %i, c %i, r %i', async (cacheType, lora, rows, d, nq, c, r) => {
    const random = new Random(d);
    const width = c + r;
    const n = nq + width;
    const x = random.values(act, rows * d);
    const w = makeWeights(random, weightType, act, [n, d]);
    const norm = random.values('bf16', d, 0.3, 1);
    const qNorm = random.values('f32', nq, 0.3, 1);
    const latentNorm = random.values('f32', c, 0.3, 1);
    const table = cosSin(POSITIONS, r);
    const positions = Float64Array.from({ length: rows }, (_, i) => (i % 6 === 2 ? -1 : (i * 7) % POSITIONS));
    // A padding row's slot is never looked at.
    const slots = Float64Array.from({ length: rows }, (_, i) =>
      i % 6 === 2 ? 1e6 : i % 5 === 4 ? -1 : (i * 3 + 1) % (PAGES * 64),
    );

    // The reference: y in float64 from operands rounded to the activations' type.
    const normed = rmsNorm(x, norm, EPS).map((value) => rounded(act, value));
    const a = entered(normed, d, entering);
    const y = new Float64Array(rows * n).map((_, i) => dot(a, Math.floor(i / n) * d, w.operand, (i % n) * d, d));
    const expectedQ = new Float64Array(rows * nq);
    const expectedCache = new Float64Array(PAGES * 64 * width).fill(Number.NaN);
    for (let t = 0; t < rows; t++) {
      const position = positions[t] as number;
      if (position < 0) continue;
      const row = rowsOf(y, n, t, t + 1);
      const q = row.slice(0, nq);
      expectedQ.set(lora ? rmsNorm(q, qNorm, LATENT_EPS) : q, t * nq);
      const slot = slots[t] as number;
      if (slot < 0) continue;
      expectedCache.set(rmsNorm(row.slice(nq, nq + c), latentNorm, LATENT_EPS), slot * width);
      expectedCache.set(rope(row.slice(nq + c), 1, r, r, [position], table), slot * width + c);
    }

    // The cache is the same memory for all parts of one way, and judged when the last row has gone in.
    const caches = new Map<Laboratory, Tensor>();
    let firstCache: ArrayBuffer | undefined;
    const body = async (lab: Laboratory, begin: number, end: number) => {
      const count = end - begin;
      const q = await lab.poison(act, [count, nq]);
      const cache = (begin > 0 && caches.get(lab)) || (await lab.poison(cacheType, [PAGES, 64, width]));
      caches.set(lab, cache);
      const [weight, scale] = await labs.weights(lab, w);
      await lab.run('latentCompress', {
        x: await lab.put(act, [count, d], rowsOf(x, d, begin, end)),
        norm: await labs.keep(lab, 'bf16', [d], norm),
        weight,
        weight_scale: scale,
        q_norm: lora ? await labs.keep(lab, 'f32', [nq], qNorm) : undefined,
        latent_norm: await labs.keep(lab, 'f32', [c], latentNorm),
        positions: await lab.put('i32', [count], positions.slice(begin, end)),
        slots: await lab.put('i32', [count], slots.slice(begin, end)),
        cos_sin: await labs.keep(lab, 'f32', [POSITIONS, r / 2, 2], table),
        q,
        cache,
        eps: EPS,
        latent_eps: LATENT_EPS,
        fp8_activations,
      });
      if (count === rows) {
        // A norm in float32 may round an operand to the neighbouring bf16 value.
        const tolerance = act === 'bf16' ? 4e-3 : 2e-5;
        expectRows(await lab.get(q), expectedQ, nq, act, tolerance);
        const stored = await lab.get(cache);
        for (let slot = 0; slot < PAGES * 64; slot++) {
          const expected = rowsOf(expectedCache, width, slot, slot + 1);
          expectRows(rowsOf(stored, width, slot, slot + 1), expected, width, cacheType, tolerance);
        }
      }
      if (end === rows) {
        const bytes = await lab.bytes(cache);
        firstCache ??= bytes;
        expect(Buffer.compare(Buffer.from(bytes), Buffer.from(firstCache))).toBe(0);
      }
      return lab.bytes(q);
    };
    await labs.everyWay(rows, body, true);
  });
});

describe('what the device holds is checked before anything is written', () => {
  test.each([
    ['positions', [0, 4], 'positions[1] is 4'],
    ['slots', [0, 64], 'slots[1] is 64'],
  ])('%s %j', async (name, values, text) => {
    const lab = labs.one;
    const cache = await lab.poison('f32', [1, 64, 6]);
    const args = {
      x: await lab.put('f32', [2, 2], [1, 2, 3, 4]),
      norm: await lab.put('f32', [2], [1, 1]),
      weight: await lab.put('f32', [8, 2], new Array(16).fill(1)),
      latent_norm: await lab.put('f32', [4], [1, 1, 1, 1]),
      positions: await lab.put('i32', [2], [0, 1]),
      slots: await lab.put('i32', [2], [0, 1]),
      cos_sin: await lab.put('f32', [4, 1, 2], cosSin(4, 2)),
      q: await lab.poison('f32', [2, 2]),
      cache,
      eps: EPS,
      latent_eps: EPS,
      [name]: await lab.put('i32', [2], values),
    };
    await expectInvalid(lab.run('latentCompress', args), 'latentCompress', text);
    expect(decode('f32', await lab.bytes(cache)).every(Number.isNaN)).toBe(true);
  });
});
