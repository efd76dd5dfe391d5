// gpu/closeness.test.ts - the comparison itself: what it must let pass and what it must not.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encode, rounded } from '../cpu/reference';
import { compareClose, compareExact, DEFAULT_TOLERANCE } from './closeness';
import { Inputs } from './inputs';

const shape = [4, 256];
const values = () => Float64Array.from(new Inputs(1).random.values('bf16', 1024));

/** The complaint about `change(values)` where `values` are expected. */
function complaint(change: (values: Float64Array) => void, dtype: 'bf16' | 'f32' = 'bf16'): string | undefined {
  const changed = values();
  change(changed);
  return compareClose(dtype, shape, encode(dtype, changed), encode(dtype, values()), DEFAULT_TOLERANCE[dtype])
    .complaint;
}

test('equal values, and single values rounded to the neighbour, pass', () => {
  assert.equal(
    complaint(() => {}),
    undefined,
  );
  assert.equal(
    complaint((x) => {
      x[300] = rounded('bf16', (x[300] as number) * (1 + 2 ** -8));
    }),
    undefined,
  );
});

test('a value that is off, missing or not finite is found where it stands', () => {
  const bad: ((x: Float64Array) => void)[] = [
    (x) => {
      x[517] = (x[517] as number) + 0.05;
    },
    (x) => {
      x[517] = Number.NaN;
    },
    (x) => {
      x[517] = Number.POSITIVE_INFINITY;
    },
    (x) => {
      x[517] = 0.3;
    },
  ];
  for (const change of bad) assert.match(complaint(change) ?? '', /\[2, 5\] of \[4, 256\]/);
});

test('an error too small for any single value is found in the norm of its row', () => {
  const scaled = (x: Float64Array) => {
    for (let i = 768; i < 1024; i++) x[i] = (x[i] as number) * (1 + 4e-5);
  };
  assert.match(complaint(scaled, 'f32') ?? '', /row 3 of 4/);
});

test('rows in the wrong order and a row of zeros are found', () => {
  assert.ok(complaint((x) => x.copyWithin(0, 256, 512)) !== undefined);
  assert.ok(complaint((x) => x.fill(0, 256, 512)) !== undefined);
});

test('NaN where NaN is expected passes; infinities need their sign', () => {
  const expected = Float64Array.of(Number.NaN, Number.NEGATIVE_INFINITY, 1, 2);
  const bytes = encode('f32', expected);
  const tolerance = DEFAULT_TOLERANCE.f32;
  assert.equal(compareClose('f32', [1, 4], bytes, bytes, tolerance).complaint, undefined);
  expected[1] = Number.POSITIVE_INFINITY;
  assert.match(compareClose('f32', [1, 4], encode('f32', expected), bytes, tolerance).complaint ?? '', /\[0, 1\]/);
});

test('integers must be equal', () => {
  const [a, b] = [encode('i32', [1, 2, 3, 4]), encode('i32', [1, 2, 4, 3])];
  assert.equal(compareExact('i32', [2, 2], a, a).complaint, undefined);
  assert.match(compareExact('i32', [2, 2], a, b).complaint ?? '', /2 of 4 .* \[1, 0\] of \[2, 2\]: 3, expected 4/);
});
