// model/passes.test.ts - how pieces of prompts are packed into passes, and which form of attention each takes.
import { packPasses } from '../../lib/model/step';

type Machine = Parameters<typeof packPasses>[0];
type Sequence = Parameters<typeof packPasses>[1][number]['sequence'];

const machine = {
  limits: {
    context: 8192,
    maxSequences: 8,
    pages: 1024,
    prefillRows: 512,
    contextRows: 512,
    absorbedRows: 256,
    absorbedFirst: 128,
    maxTop: 0,
  },
} as unknown as Machine;

/** New tokens of a sequence that has `cached` in the cache. */
const piece = (cached: number, tokens: number) => ({
  sequence: { length: cached } as Sequence,
  tokens: new Array<number>(tokens).fill(1),
  sample: true,
});

const passesOf = (...pieces: ReturnType<typeof piece>[]) =>
  packPasses(machine, pieces, 'auto').map(({ form, pieces }) => [form, pieces.map(({ tokens }) => tokens.length)]);

test('a new text takes the absorbed form up to absorbedFirst tokens', () => {
  expect(passesOf(piece(0, 128))).toEqual([['absorbed', [128]]]);
  expect(passesOf(piece(0, 129))).toEqual([['expanded', [129]]]);
});

test('tokens behind a cached text take it up to absorbedRows', () => {
  expect(passesOf(piece(1, 129))).toEqual([['absorbed', [129]]]);
  expect(passesOf(piece(4000, 256))).toEqual([['absorbed', [256]]]);
  expect(passesOf(piece(4000, 257))).toEqual([['expanded', [257]]]);
});

test('pieces of one form share passes, as far as rows go', () => {
  expect(passesOf(piece(100, 200), piece(300, 100), piece(0, 300), piece(0, 200))).toEqual([
    ['absorbed', [200, 56]],
    ['absorbed', [44]],
    ['expanded', [300, 200]],
  ]);
});

test('a form that is asked for is taken by all', () => {
  const forms = (form: 'absorbed' | 'expanded') => packPasses(machine, [piece(0, 300), piece(9, 3)], form);
  expect(new Set(forms('absorbed').map(({ form }) => form))).toEqual(new Set(['absorbed']));
  expect(new Set(forms('expanded').map(({ form }) => form))).toEqual(new Set(['expanded']));
});
