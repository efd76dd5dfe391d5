// mla bench compare: what is noise and what is not, and what it refuses.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compare, readRecords } from '../../lib/bench';
import { Dice } from '../../lib/bench/workbench';
import { runCli } from '../cli/run-cli';

const IDS = Array.from({ length: 40 }, (_, i) => `op n=${i}`);
const timeOf = (i: number) => 5 * 1.3 ** (i % 20);

/** Normal numbers by the sum of twelve uniform ones. */
function normal(dice: Dice): number {
  let sum = -6;
  for (let i = 0; i < 12; i++) sum += dice.below(1 << 20) / (1 << 20);
  return sum;
}

/** One run: each case has an offset of its own in each run, and samples around it. */
function run(seed: number, slow: (i: number) => number = () => 1, device = 'GPU', extra: object = {}): string {
  const dice = new Dice(seed);
  const results = IDS.map((id, i) => {
    const middle = timeOf(i) * slow(i) * (1 + 0.008 * normal(dice));
    return {
      id,
      us: middle,
      samples: Array.from({ length: 20 }, () => middle * (1 + 0.005 * normal(dice))),
      failure: null,
    };
  });
  return JSON.stringify({ commit: 'c', device: { name: device }, results, ...extra });
}

const judge = (before: string, after: string) => compare(readRecords(before, 'before'), readRecords(after, 'after'));
const slower = (before: string, after: string) =>
  judge(before, after)
    .cases.filter(({ verdict }) => verdict === 'slower')
    .map(({ id }) => id);

test('two runs of one build are the same, whatever the seed', () => {
  for (let seed = 1; seed <= 50; seed++) expect(slower(run(seed), run(seed + 1000))).toEqual([]);
});

test('one case of forty that is 10 % slower is found, and that one alone', () => {
  for (let seed = 1; seed <= 50; seed++) {
    expect(
      slower(
        run(seed),
        run(seed + 1000, (i) => (i === 7 ? 1.1 : 1)),
      ),
    ).toEqual(['op n=7']);
  }
});

test('more runs find less: 7 % with three runs on each side', () => {
  const three = (seed: number, slow?: (i: number) => number) =>
    [0, 1, 2].map((i) => run(seed + i * 100, slow)).join('\n');
  for (let seed = 1; seed <= 20; seed++) {
    expect(slower(three(seed), three(seed + 1000))).toEqual([]);
    expect(
      slower(
        three(seed),
        three(seed + 1000, (i) => (i === 7 ? 1.07 : 1)),
      ),
    ).toEqual(['op n=7']);
  }
});

test('a case that jumps about between runs needs more to count', () => {
  const jumpy = (times: number[]) =>
    times
      .map((us) => JSON.stringify({ device: { name: 'GPU' }, results: [{ id: 'op', samples: [us, us, us] }] }))
      .join('\n');
  const report = judge(jumpy([100, 110, 95, 104]), jumpy([112, 113, 111]));
  expect(report.cases[0]).toMatchObject({ verdict: 'same' });
  expect(report.cases[0]?.band).toBeGreaterThan(0.1);
  expect(judge(jumpy([100, 100, 100]), jumpy([112, 113, 111])).cases[0]?.verdict).toBe('slower');
});

test('rates are turned round: fewer tokens per second are slower', () => {
  const rates = (repetitions: number[]) =>
    JSON.stringify({ results: [{ id: 'tiny decode b=1', repetitions, device: { name: 'GPU' } }] });
  const [found] = judge(rates([100, 101, 99]), rates([80, 81, 79])).cases;
  expect(found).toMatchObject({ unit: 'tokens/s', before: 100, after: 80, verdict: 'slower' });
  expect(found?.ratio).toBeCloseTo(1.25);
  expect(judge(rates([80, 81, 79]), rates([100, 101, 99])).cases[0]?.verdict).toBe('faster');
});

test('a case that fails now, and cases of one side only, are named', () => {
  const record = (results: object[]) => JSON.stringify({ device: { name: 'GPU' }, results });
  const report = judge(
    record([
      { id: 'a', samples: [1] },
      { id: 'b', samples: [1] },
      { id: 'c', samples: [1] },
    ]),
    record([
      { id: 'a', samples: [1] },
      { id: 'b', samples: [], failure: 'wrong result' },
      { id: 'd', samples: [1] },
    ]),
  );
  expect(report).toMatchObject({ onlyBefore: ['c'], onlyAfter: ['d'], broken: [{ id: 'b', failure: 'wrong result' }] });
});

test('other drivers and clocks are said, not judged', () => {
  const state = (driver: string, clockSm: number) => ({ gpu: { driver, clockSm } });
  const { notes } = judge(
    run(1, undefined, 'GPU', state('580.1', 1980)),
    run(2, undefined, 'GPU', state('590.2', 1500)),
  );
  expect(notes).toEqual([
    'different drivers: 580.1 before, 590.2 after',
    'different clocks: 1980 MHz before, 1500 MHz after',
  ]);
});

test.each([
  ['', /no figure/],
  ['{"results":[]}', /no figure/],
  ['nothing\n', /line 1 is no record/],
  ['[1]', /line 1 is no record/],
  [`${run(1)}\n${run(2, undefined, 'other')}`, /found figures of GPU and of other/],
  ['{"results":[{"id":"a","samples":[1]}]}', /no named device/],
  ['{"device":{"name":"G"},"results":[{"id":"a","samples":[null]}]}', /a has no list of positive samples/],
  ['{"device":{"name":"G"},"results":[{"samples":[1]}]}', /no id/],
])('refused: %.30j', (text, message) => expect(() => readRecords(text, 'file')).toThrow(message));

test('figures of different GPUs do not compare', () => {
  expect(() => judge(run(1), run(2, undefined, 'other'))).toThrow(/GPU and of other do not compare/);
});

describe('on the command line', () => {
  let dir = '';
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'node-mla-compare-'));
    writeFileSync(join(dir, 'a.jsonl'), `${run(1)}\n`);
    writeFileSync(join(dir, 'b.jsonl'), `${run(2)}\n`);
    writeFileSync(
      join(dir, 'slow.jsonl'),
      run(2, (i) => (i === 3 ? 1.1 : 1)),
    );
  });
  afterAll(() => rmSync(dir, { recursive: true }));

  test('the same build is exit code 0 and a Markdown table', async () => {
    const { code, stdout, stderr } = await runCli(['bench', 'compare', join(dir, 'a.jsonl'), join(dir, 'b.jsonl')]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^GPU: 40 cases[\s\S]*\| case +\| +before \|[\s\S]*\n\| -+ \| -+: \|/);
    expect(stdout.split('\n').filter((line) => line.startsWith('| op'))).toHaveLength(40);
  });

  test('a slower one is exit code 1, first in the table and one sentence', async () => {
    const ran = await runCli(['bench', 'compare', join(dir, 'a.jsonl'), join(dir, 'slow.jsonl')]);
    expect(ran).toMatchObject({ code: 1, stderr: 'mla: 1 of 40 cases are slower beyond noise.\n' });
    expect(ran.stdout.split('\n')[4]).toMatch(/^\| op n=3 .* SLOWER \|$/);
  });

  test('a file that is not there is a failure of one line', async () => {
    const { code, stderr } = await runCli(['bench', 'compare', join(dir, 'a.jsonl'), join(dir, 'none')]);
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: expect.stringMatching(/cannot be read \(ENOENT\)\. \(ERR_FILE\)\n$/),
    });
  });
});
