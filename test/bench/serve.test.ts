import { percentiles, poisson } from '../../lib/bench';
import { BUNDLED_MODEL } from '../../lib/engine';
import { runCli } from '../cli/run-cli';

describe('arrivals', () => {
  test('are as many per second as asked for, at distances that are exponential', () => {
    const at = poisson(20_000, 50, 3);
    expect(at[0]).toBe(0);
    const gaps = at.slice(1).map((moment, i) => moment - (at[i] as number));
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(0);
    const mean = gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length;
    const deviation = Math.sqrt(gaps.reduce((sum, gap) => sum + (gap - mean) ** 2, 0) / gaps.length);
    expect(mean).toBeCloseTo(20, 0); // 1000 / 50, and its error is 20 / sqrt(20000) = 0.14
    expect(deviation / mean).toBeCloseTo(1, 1);
    const short = gaps.filter((gap) => gap < mean * Math.LN2).length / gaps.length;
    expect(short).toBeCloseTo(0.5, 1); // the median of an exponential is its mean times ln 2
  });

  test('are the same with the same seed', () => {
    expect(poisson(50, 1, 9)).toEqual(poisson(50, 1, 9));
    expect(poisson(50, 1, 9)).not.toEqual(poisson(50, 1, 10));
  });
});

test('percentiles by nearest rank', () => {
  const values = Array.from({ length: 200 }, (_, i) => 200 - i);
  expect(percentiles(values)).toEqual({ mean: 100.5, p50: 100, p90: 180, p99: 198, max: 200 });
  expect(percentiles([7])).toEqual({ mean: 7, p50: 7, p90: 7, p99: 7, max: 7 });
});

test('mla bench serve: loads in order, every figure there, a table for people', async () => {
  const flags = ['bench', 'serve', '-m', BUNDLED_MODEL, '--device', 'cpu', '--threads', '2'];
  const sizes = ['--requests', '6', '--prompt', '16', '--shared', '8', '--output', '8', '--parallel', '2'];
  const json = await runCli([...flags, ...sizes, '--rate', 'static,max,200%,40', '--json']);
  expect(json).toMatchObject({ code: 0, stderr: '' });
  const { results: all, pairs, command, date } = JSON.parse(json.stdout);
  expect([typeof command, typeof date]).toEqual(['string', 'string']);
  const [fixed, ...results] = all;
  expect(all.map(({ load }: { load: string }) => load)).toEqual(['static', 'max', '200%', '40/s']);
  // Batches of two: the second and the third begin when the ones before have ended.
  expect(fixed.queue.p50).toBeGreaterThan(fixed.perToken.p50 * 7);
  expect(pairs).toEqual([]);
  expect(results[1].arrivalsPerSecond).toBeCloseTo(2 * results[0].requestsPerSecond);
  for (const one of all) {
    expect(one.ofStatic).toBeCloseTo(one.tokensPerSecond / fixed.tokensPerSecond);
    // 8 of 16 prompt tokens are the same in all: less than a page, so nothing is found, nor may an earlier load help
    expect(one.cachedShare).toBe(0);
    expect(one.tokensPerSecond).toBeCloseTo(one.requestsPerSecond * 8, 3);
    for (const times of ['firstToken', 'perToken', 'betweenTokens', 'whole', 'queue']) {
      expect(one[times].p50).toBeLessThanOrEqual(one[times].p99);
      expect(one[times].p99).toBeGreaterThan(0);
    }
    expect(one.firstToken.p50).toBeLessThan(one.whole.p50);
  }
  // Six at once and two places: the others had to wait.
  expect(results[0].queue.max).toBeGreaterThan(results[0].queue.p50 / 2);
  const table = await runCli([...flags, ...sizes, '--rate', 'static,max', '--system', '256']);
  expect(table.code).toBe(0);
  expect(table.stdout.trimEnd().split('\n')).toHaveLength(9);
  expect(table.stdout).toMatch(/max: \d+ % of the tokens per second of the static batch\n/);
  const gains = [...table.stdout.matchAll(/of the next with the same 256 after .* ms, ([\d.]+) times shorter/g)];
  // 256 + 16 tokens to compute, then 16; 256 + 64, then 64
  expect(gains).toHaveLength(2);
  for (const [, times] of gains) expect(Number(times)).toBeGreaterThan(1.5);
  // Rows may be wider: milliseconds on a machine that does something else have no limit.
  const rows = /^(static|max) /;
  for (const line of table.stdout.split('\n')) if (!rows.test(line)) expect(line.length).toBeLessThanOrEqual(100);

  const wrong: [string[], RegExp][] = [
    [['--rate', '50%'], /needs "max" before it/],
    [['--rate', 'fast'], /Expected a list of static, max/],
    [['--rate', '0'], /Expected a list of static, max/],
    [['--shared', '16', '--prompt', '16'], /--shared must be below --prompt/],
  ];
  for (const [args, stderr] of wrong)
    expect(await runCli([...flags, ...args])).toMatchObject({ code: 2, stderr: expect.stringMatching(stderr) });
}, 120_000);
