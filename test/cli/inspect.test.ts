// mla inspect: the same figures whether a model lies in a folder, has a name, or is a Hub's; and what does not fit.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/model';
import { native } from '../../lib/native';
import { FakeHub } from '../hub/server';
import { golden, runCli } from './run-cli';

const inspect = async (...args: string[]) => {
  const { code, stdout, stderr } = await runCli(['inspect', '--device', 'cpu', '--json', ...args]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout);
};

test('what it says of memory is what loading takes', async () => {
  const report = await inspect(golden('v3'), '-c', '300', '--sequences', '3');
  const model = await LatentModel.load(golden('v3'), { device: 'cpu', context: 300, maxSequences: 3 });
  try {
    expect(report.memory).toEqual(model.memory);
    // The cache's last page and the allocations' alignment are all that can differ.
    expect(Math.abs(model.stats().allocatedBytes / report.memory.total - 1)).toBeLessThan(0.01);
  } finally {
    await model.dispose();
  }
});

test('a published shape has the parameters its authors state', async () => {
  const report = await inspect('--shape', 'v2-lite', '-c', '4096');
  expect(report.parameters.total).toBe(15_706_484_224);
  expect(report.parameters.active / 1e9).toBeCloseTo(2.66, 2);
  expect(report.cacheBytesPerToken).toBe(27 * 576 * 4); // float32 on the CPU
  expect(report.weightBytes.f32).toBeGreaterThan(1.99 * report.weightBytes.bf16);
  expect(report.parameters.attention + report.parameters.routed).toBeLessThan(report.parameters.total);
});

test('an fp8 cache: 656 bytes a token and layer instead of 1,152, and what loading takes', async () => {
  expect(await inspect('--shape', 'v2-lite', '--cache-dtype', 'bf16')).toMatchObject({ cacheBytesPerToken: 27 * 1152 });
  const report = await inspect('--shape', 'v2-lite', '--cache-dtype', 'fp8');
  expect(report).toMatchObject({ cacheBytesPerToken: 27 * 656, cacheDtype: 'fp8' });
  expect(report.memory.cache).toBe(8 * 4096 * 27 * 656);
  const of = { device: 'cpu', context: 300, maxSequences: 3, cacheDtype: 'fp8' } as const;
  const model = await LatentModel.load(golden('v2'), of); // of rank 256
  try {
    const planned = await inspect(golden('v2'), '-c', '300', '--sequences', '3', '--cache-dtype', 'fp8');
    expect(planned.memory).toEqual(model.memory);
    expect(planned.memory.cachePerToken).toBe(400 * planned.layers);
  } finally {
    await model.dispose();
  }
});

test('fp8 activations: shown, refused where no weight is fp8, and no matter to the sizes of other weights', async () => {
  const shape = ['--shape', 'v2-lite', '--activation-dtype', 'fp8'];
  const report = await inspect(...shape, '--dtype', 'fp8');
  const plain = await inspect('--shape', 'v2-lite', '--dtype', 'fp8');
  expect([report.activationDtype, plain.activationDtype]).toEqual(['fp8', 'f32']);
  expect(report.weightBytes.f32).toBe(plain.weightBytes.f32);
  const { code, stderr } = await runCli(['inspect', '--device', 'cpu', ...shape]);
  expect([code, stderr]).toEqual([2, expect.stringMatching(/activationDtype: 'fp8' is for weights in fp8/)]);
});

test('the longest context and the largest batch are the last that fit', async () => {
  const shape = ['--shape', 'tiny', '-c', '512'];
  const report = await inspect(...shape);
  expect(report).toMatchObject({ longestContext: 163840, mostSequences: 1024, fits: true, modelContext: 163840 });
});

test('the text says the same', async () => {
  const { code, stdout } = await runCli(['inspect', '--device', 'cpu', '--shape', 'v2-lite']);
  expect(code).toBe(0);
  expect(stdout).toMatch(/^v2-lite: deepseek_v2, 27 layers of width 2048, 16 heads, latent rank 512 \+ 64, 64 experts/);
  expect(stdout).toMatch(/parameters +15\.71 B, of which a token passes through 2\.66 B/);
  expect(stdout).toMatch(/cache +62,208 bytes per token \(f32\)/);
  for (const line of stdout.split('\n')) expect(line).toBe(line.trimEnd());
});

test('a GPU by name: planned by its own kernels where they are in the binary, else refused', async () => {
  const { code, stdout, stderr } = await runCli(['inspect', '--shape', 'v3', '--gpu', 'h200', '--json']);
  if (!native.build().cuda) {
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/no CUDA kernels.*\(ERR_UNSUPPORTED\)/);
    return;
  }
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(JSON.parse(stdout)).toMatchObject({ fits: false, longestContext: 0, cacheBytesPerToken: 61 * 576 * 2 });
});

describe('a model of the Hub', () => {
  let hub: FakeHub;
  let home = '';
  let env: Record<string, string> = {};
  const files = new Map(readdirSync(golden('v3')).map((name) => [name, readFileSync(join(golden('v3'), name))]));

  beforeEach(async () => {
    hub = new FakeHub(files);
    home = mkdtempSync(join(tmpdir(), 'node-mla-home-'));
    env = { HF_ENDPOINT: await hub.start(), HF_HOME: home, HF_TOKEN: '' };
  });

  afterEach(async () => {
    await hub.stop();
    rmSync(home, { recursive: true });
  });

  test('is known by its headers: the report is that of the folder', async () => {
    const args = ['inspect', '--device', 'cpu', '--json', '-c', '256'];
    const remote = await runCli([...args, 'org/name'], { env });
    expect(remote).toMatchObject({ code: 0, stderr: expect.stringMatching(/^reading headers of org\/name at c{12}/) });
    const local = await inspect(golden('v3'), '-c', '256');
    const { device: _, ...report } = JSON.parse(remote.stdout);
    const { device: __, ...expected } = local;
    expect(report).toEqual({ ...expected, model: 'org/name' });
    const ranges = hub.asked.filter(({ path }) => path.endsWith('.safetensors'));
    expect(ranges.length).toBeGreaterThan(0);
    for (const { range } of ranges) expect(range).toMatch(/^bytes=0-262143$/);
  });

  test('is downloaded with a command, and found by its name afterwards', async () => {
    const missing = await runCli(['generate', '-m', 'org/name', '--tokens', '1,2,3', '-n', '2'], { env });
    expect(missing).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/"mla download org\/name" brings it there/),
    });
    const got = await runCli(['download', 'org/name'], { env });
    expect(got.code).toBe(0);
    expect(got.stdout).toMatch(/models--org--name\/snapshots\/c{40}\n$/);
    expect(got.stderr).toMatch(/^5 files, \d+ MiB, of which \d+ MiB came now/);
    const flags = ['--device', 'cpu', '--tokens', '1,2,3', '-n', '4', '--temp', '0', '--ignore-eos'];
    const cached = await runCli(['generate', '-m', 'org/name', ...flags], { env });
    const folder = await runCli(['generate', '-m', golden('v3'), ...flags]);
    expect(cached).toMatchObject({ code: 0, stdout: folder.stdout });
  });

  test('that is not there is a failure of one line', async () => {
    for (const command of ['inspect', 'download']) {
      const { code, stdout, stderr } = await runCli([command, 'org/other'], { env });
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
      expect(stderr).toMatch(/^mla: org\/other@main: .* answered 404.*\(ERR_HUB\)\n$/);
    }
  });
});

test.each([
  [['inspect', 'x', '--shape', 'tiny'], /Give one of MODEL/],
  [['inspect', '--shape', 'tiny', '--gpu', 'h200', '--device', 'cpu'], /--gpu does not go with --device/],
  [['inspect', '--shape', 'v9', '--device', 'cpu'], /shape: expected one of/],
  [['inspect', '--shape', 'tiny', '--gpu', 'gtx-1080'], /Allowed choices are h200/],
  [['download', 'name'], /"name" is no model of the Hub/],
  [['download', 'org/name', '--revision', '../x'], /is no model of the Hub/],
])('%j is wrong usage', async (args, message) => {
  const { code, stdout, stderr } = await runCli(args);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
  expect(stderr).toMatch(message);
});
