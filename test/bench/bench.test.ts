// mla bench: figures that come with what they belong to, after a check that can fail.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { KERNEL_CASES } from '../../lib/bench';
import { median } from '../../lib/bench/timing';
import { relativeError } from '../../lib/bench/workbench';
import { namedShape } from '../../lib/model/named-shapes';
import { runCli } from '../cli/run-cli';

const anchors = JSON.parse(readFileSync(join(__dirname, '..', '..', 'bench', 'anchors.json'), 'utf8')) as {
  figures: { id: string; us: number; by: string }[];
};

test('every public figure of bf16 belongs to a case, and cases have names of their own', () => {
  const ids = KERNEL_CASES.map(({ id }) => id);
  expect(new Set(ids).size).toBe(ids.length);
  const missing = anchors.figures.map(({ id }) => id).filter((id) => !ids.includes(id) && !id.endsWith('fp8'));
  expect(missing).toEqual([]);
});

test('costs are those of the shapes', () => {
  const cost = (id: string) => KERNEL_CASES.find((c) => c.id === id)?.cost();
  // 16 heads, 128 sequences of 4096 rows of 576 values; its public time is 149.6 us at 4068 GB/s and 122 TFLOP/s
  expect((cost('mlaDecode h=16 b=128 l=4096 q=1')?.bytes as number) / 149.6e-6 / 1e9).toBeCloseTo(4068, -2);
  expect((cost('mlaDecode h=16 b=128 l=4096 q=1')?.flops as number) / 149.6e-6 / 1e12).toBeCloseTo(122, 0);
  expect((cost('mlaPrefill h=128 l=16384')?.flops as number) / 18.616e-3 / 1e12).toBeCloseTo(591, 0);
  expect((cost('gemm n=3072 k=2048 m=4096')?.flops as number) / 68.9e-6 / 1e12).toBeCloseTo(748, 0);
  expect((cost('moeGateUp lite tokens=4096')?.flops as number) / 473.7e-6 / 1e12).toBeCloseTo(598, 0);
});

test('an error is relative to the norm, and NaN is never small', () => {
  expect(relativeError([3, 4], [3, 4])).toBe(0);
  expect(relativeError([3, 4.5], [3, 4])).toBeCloseTo(0.1);
  expect(relativeError([3, Number.NaN], [3, 4]) <= 1).toBe(false);
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 1, 2, 3])).toBe(2.5);
});

test.each([
  'gemm n=576 k=2048 m=1',
  'mhaDecode h=16 b=1 l=4096',
  'mlaDecode h=16 b=1 l=1024 q=1',
  'mlaDecode fp8 h=16 b=1 l=4096 q=1',
])('%s is checked and timed', async (id) => {
  const how = id.startsWith('gemm') ? ['--deterministic'] : [];
  const flags = ['--device', 'cpu', '--cold', '4', '--samples', '3', ...how, '--filter', id, '--json'];
  const { code, stdout, stderr } = await runCli(['bench', 'kernels', ...flags]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { command, date, device, deterministic, ceilings, results } = JSON.parse(stdout);
  expect(deterministic).toBe(how.length > 0);
  expect(command).toBe(['mla', 'bench', 'kernels', ...flags].join(' '));
  expect(Date.parse(date)).toBeGreaterThan(0);
  expect(device.kind).toBe('cpu');
  expect(ceilings.bytesPerSecond).toBeGreaterThan(1e8);
  expect(results).toHaveLength(1);
  const [result] = results;
  // No public library has an fp8 latent cache to compare with.
  expect(result).toMatchObject({ id, failure: null, public: /fp8|mha/.test(id) ? null : { comparable: false } });
  expect(result.samples).toHaveLength(3);
  expect(result.error).toBeGreaterThan(0);
  expect(result.error).toBeLessThan(result.bound);
  expect(result.us).toBe(median(result.samples));
});

test.each([
  [
    'decode',
    ['--batch', '1,3', '--depth', '5,70', '--steps', '4'],
    ['decode b=1 depth=5', 'decode b=3 depth=5', 'decode b=1 depth=70', 'decode b=3 depth=70'],
  ],
  [
    'prefill',
    ['--batch', '1,2', '--length', '5,130'],
    ['prefill length=5', 'prefill length=130', 'prefill b=2 length=5', 'prefill b=2 length=130'],
  ],
  [
    'prefill',
    ['--batch', '1,2', '--length', '5,200', '--depth', '70', '--attention', 'absorbed'],
    ['length=5', 'length=200', 'b=2 length=5', 'b=2 length=200'].map((id) => `prefill ${id} depth=70 absorbed`),
  ],
])('bench %s of a random model', async (what, flags, ids) => {
  const args = ['bench', what, '--shape', 'tiny', '--device', 'cpu', '--repetitions', '2', '--json', ...flags];
  const { code, stdout, stderr } = await runCli(args);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { results } = JSON.parse(stdout);
  const how = flags.includes('--depth') && what === 'prefill' ? ' depth=70 absorbed' : '';
  expect(results.map(({ id }: { id: string }) => id)).toEqual(ids.map((id) => `tiny ${id}`));
  for (const { tokensPerSecond, repetitions, hostUs, expertsHit, sweep } of results) {
    expect(repetitions).toHaveLength(2);
    expect(tokensPerSecond).toBeGreaterThan(0);
    if (what === 'decode') {
      expect(hostUs).toBeGreaterThan(0);
      // One token hits as many experts as it has choices, three hit some of them together.
      const { n_routed_experts: all, num_experts_per_tok: choices } = namedShape('tiny').config;
      if (sweep.batch === 1) expect(expertsHit).toBe(choices);
      else expect(expertsHit).toBeGreaterThan(choices);
      expect(expertsHit).toBeLessThanOrEqual(Math.min(all, sweep.batch * choices));
    } else {
      expect({ hostUs, expertsHit }).toEqual({ hostUs: null, expertsHit: null });
    }
    expect(sweep).toMatchObject({ bench: what, model: `tiny${how}` });
  }
  const { sweep } = results[3];
  expect(ids[3]).toBe(`${what} b=${sweep.batch} ${what === 'decode' ? 'depth' : 'length'}=${sweep.tokens}${how}`);
});

test('without --json the figures are a Markdown table, a row as soon as it is there', async () => {
  const args = ['bench', 'decode', '--shape', 'tiny', '--device', 'cpu', '--batch', '1,2,4,8', '--steps', '16'];
  let pieces = 0;
  const { code, stdout } = await runCli(args, { onStdout: () => pieces++ });
  expect(code).toBe(0);
  expect(stdout.split('\n').slice(0, 3)).toEqual([
    expect.stringMatching(/^\| case +\| +tokens\/s \| +lowest \| +highest \| host us \| experts \| public \|$/),
    expect.stringMatching(/^\| -+ \| -+: \| -+: \| -+: \| -+: \| -+: \| -+: \|$/),
    expect.stringMatching(
      /^\| tiny decode b=1 depth=128 +\| +[\d.]+ \| +[\d.]+ \| +[\d.]+ \| +\d+ \| +[\d.]+ \| +- \|$/,
    ),
  ]);
  expect(stdout).toMatch(/\n\| tiny decode b=8 depth=128 [^\n]*\n$/);
  expect(pieces).toBeGreaterThan(1);
});

test('bench step counts the launches of the whole step and of each kind of operation', async () => {
  const flags = ['--shape', 'tiny', '--device', 'cpu', '--batch', '2', '--depth', '70', '--json'];
  const { code, stdout, stderr } = await runCli(['bench', 'step', ...flags]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { launches, layers, parts, perLayer } = JSON.parse(stdout);
  const sum = (what: 'calls' | 'launches') =>
    parts.reduce((total: number, part: { calls: number; launches: number }) => total + part[what], 0);
  expect(layers).toBeGreaterThan(1);
  expect(launches).toBeGreaterThan(4 * layers);
  expect(sum('launches')).toBe(launches);
  // On the CPU a launch is an operation.
  expect(sum('calls')).toBe(launches);
  const [dense, moe] = perLayer;
  expect([dense.name, moe.name]).toEqual(['dense layer', 'MoE layer']);
  // All layers are alike but for their second half; what stands outside of them has a name of its own.
  const outside = ['gatherRows', 'decodePlan', 'sample'];
  const inside = parts.filter(({ name }: { name: string }) => !outside.includes(name));
  const calls = inside.reduce((total: number, part: { calls: number }) => total + part.calls, 0);
  const head = 2; // rmsNorm and a product
  expect((layers - 1) * moe.calls + dense.calls + head).toBe(calls);
});

test.each([
  [['bench', 'decode'], /either --shape or --model/],
  [['bench', 'decode', '--shape', 'tiny', '-m', 'x'], /either --shape or --model/],
  [['bench', 'decode', '--shape', 'v9', '--device', 'cpu'], /shape: expected one of v2-lite/],
  [['bench', 'decode', '--shape', 'tiny', '--batch', '1,0'], /integer from 1/],
  [['bench', 'kernels', '--device', 'cpu', '--filter', 'nothing'], /filter: expected/],
  [['bench', 'kernels', '--device', 'auto'], /--device is cpu, cuda:N or cuda:N:portable/],
])('%j is wrong usage', async (args, message) => {
  const { code, stderr, stdout } = await runCli(args);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
  expect(stderr).toMatch(message);
});
