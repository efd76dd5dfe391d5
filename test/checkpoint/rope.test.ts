// The published numbers of YaRN in this family: base theta, ramp borders, five frequencies, m^2 and the softmax scale.
import {
  inverseFrequencies,
  parseConfig,
  ropeTable,
  rotaryMagnitude,
  softmaxScale,
  yarnRange,
} from '../../lib/checkpoint';
import { fails, type Json, REAL } from './support';

const yarnOf = (factor: number, mscale: number, fast: number, original: number): Json => ({
  rope_theta: undefined,
  rope_scaling: {
    type: 'yarn',
    factor,
    original_max_position_embeddings: original,
    beta_fast: fast,
    beta_slow: 1,
    mscale,
    mscale_all_dim: mscale,
  },
});
const from = (base: string, changes: Json = {}) => parseConfig(JSON.stringify({ ...REAL[base], ...changes }));

/** Agreement to the digits that are printed in the table (at least 1e-7 relative where it prints nine). */
function expectDigits(actual: number, printed: string): void {
  const digits = printed.replace(/e.*/, '').replace(/^0\.0*|\./g, '').length;
  expect(Number(actual.toPrecision(digits))).toBe(Number(printed));
}

const pairs = [1, 11, 16, 20, 31];
const v2 = ['0.749894209', '0.0390069266', '0.0055', '7.90569415e-4', '3.33380358e-6'];
const rows = [
  { name: 'V2 (0.707)', config: from('v2'), range: [10, 23], inv: v2, m2: '1.58962617', scale: '0.114721387' },
  { name: 'V3 (1.0)', config: from('v3'), range: [10, 23], inv: v2, m2: '1.87385421', scale: '0.135233779' },
  {
    name: 'Kimi-K2, factor 32',
    config: from('kimi-k2'),
    range: [19, 20],
    inv: ['0.713111085', '0.024250967', '0.00447213595', '3.61404677e-5', '8.76441291e-7'],
    m2: '1.81326043',
    scale: '0.130860800',
  },
  {
    name: 'Kimi-K2, factor 64',
    config: from('kimi-k2', { ...yarnOf(64, 1, 1, 4096), rope_theta: 50000 }),
    range: [19, 20],
    inv: ['0.713111085', '0.024250967', '0.00447213595', '1.80702339e-5', '4.38220646e-7'],
    m2: '2.00473970',
    scale: '0.144679626',
  },
  {
    // mscale 0 on both sides: the frequencies are stretched and nothing is scaled. It is not accepted from a file
    // (programs disagree on it), so the config is made here.
    name: 'Mistral-Large-3, factor 36, no mscale',
    config: {
      ...from('v3'),
      rope: {
        theta: 10000,
        yarn: {
          factor: 36,
          original_max_position_embeddings: 8192,
          beta_fast: 32,
          beta_slow: 1,
          mscale: 0,
          mscale_all_dim: 0,
        },
      },
    },
    range: [12, 25],
    inv: ['0.749894209', '0.0421696503', '0.00700854701', '1.27031667e-3', '3.70422620e-6'],
    m2: null,
    scale: '0.0721687836',
  },
];

describe.each(rows)('$name', ({ config, range, inv, m2, scale }) => {
  test('ramp', () => {
    expect(yarnRange(config)).toEqual({ lo: range[0], hi: range[1] });
  });
  test.each(pairs.map((i, k) => [i, inv[k] as string] as const))('frequency %i is %s', (i, printed) => {
    expectDigits(inverseFrequencies(config)[i] as number, printed);
  });
  test('softmax scale', () => {
    expectDigits(softmaxScale(config), scale);
    if (m2) expectDigits(softmaxScale(config) * Math.sqrt(192), m2);
  });
  test('cos and sin are not scaled', () => {
    expect(rotaryMagnitude(config)).toBe(1);
  });
});

test('without YaRN: plain frequencies and (nope + rope)^-0.5', () => {
  const moonlight = from('moonlight');
  expect(yarnRange(moonlight)).toBeNull();
  expect([...inverseFrequencies(moonlight)]).toEqual(Array.from({ length: 32 }, (_, i) => 50000 ** (-i / 32)));
  expect(softmaxScale(moonlight)).toBe(192 ** -0.5);
  expect(softmaxScale(from('glm-4.7-flash'))).toBe(1 / 16);
});

test('mscale alone scales cos and sin, and not the softmax', () => {
  const scaling = { ...(REAL.v3?.rope_scaling as Json), mscale: 1, mscale_all_dim: undefined };
  const config = from('v3', { rope_scaling: scaling });
  expect(config.rope.yarn).toMatchObject({ mscale: 1, mscale_all_dim: 0 });
  const m = 0.1 * Math.log(40) + 1;
  expect(rotaryMagnitude(config)).toBeCloseTo(m, 14);
  expect(softmaxScale(config)).toBe(192 ** -0.5);
  expect(ropeTable(config, 1)[0]).toBe(Math.fround(m));
});

test('two mscales: their ratio scales cos and sin, the square of the second the softmax', () => {
  const scaling = { ...(REAL.v3?.rope_scaling as Json), mscale: 2, mscale_all_dim: 0.5 };
  const config = from('v3', { rope_scaling: scaling });
  const log = Math.log(40);
  expect(rotaryMagnitude(config)).toBeCloseTo((0.2 * log + 1) / (0.05 * log + 1), 14);
  expect(softmaxScale(config)).toBeCloseTo((0.05 * log + 1) ** 2 / Math.sqrt(192), 14);
});

test('equal ramp borders do not divide by zero', () => {
  const config = from('v3', { rope_scaling: { ...(REAL.v3?.rope_scaling as Json), beta_fast: 1e5, beta_slow: 1e5 } });
  expect(yarnRange(config)).toEqual({ lo: 0, hi: expect.any(Number) });
  expect([...inverseFrequencies(config)].every(Number.isFinite)).toBe(true);
});

test('the table is [positions, r / 2, 2] of cos and sin, exact to a float32', () => {
  const config = from('v3');
  const positions = 4097;
  const table = ropeTable(config, positions);
  const inverse = inverseFrequencies(config);
  expect(table.length).toBe(positions * 32 * 2);
  let worst = 0;
  for (const position of [0, 1, 2, 63, 1000, 4095, 4096]) {
    for (let i = 0; i < 32; i++) {
      const at = (position * 32 + i) * 2;
      const angle = position * (inverse[i] as number);
      worst = Math.max(
        worst,
        Math.abs((table[at] as number) - Math.cos(angle)),
        Math.abs((table[at + 1] as number) - Math.sin(angle)),
      );
    }
  }
  expect(worst).toBeLessThan(2 ** -24);
  expect([...table.subarray(0, 4)]).toEqual([1, 0, 1, 0]);
  expect(table[(32 + 0) * 2]).toBe(Math.fround(Math.cos(1)));
  // Angles held in float32 would already be off by 1e-4 here.
  expect(ropeTable(config, 0).length).toBe(0);
});

test.each([-1, 1.5, Number.NaN, 2 ** 25, '8' as never])('positions %p are refused', async (positions) => {
  await fails(() => ropeTable(from('v3'), positions), 'ERR_INVALID_ARG', /positions: expected an integer/);
});
