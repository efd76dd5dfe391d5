// mla doctor: what it finds is what is there, and each problem is one sentence that says what to do.
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { native } from '../../lib/native';
import { ROOT, runCli } from './run-cli';

let dir = '';
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'node-mla-doctor-'));
  copyFileSync(join(ROOT, 'package.json'), join(dir, 'package.json'));
});
afterAll(() => rmSync(dir, { recursive: true }));

test('a machine as it should be', async () => {
  const { code, stdout, stderr } = await runCli(['doctor', '--json'], { env: { HF_HOME: dir } });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const found = JSON.parse(stdout);
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  expect(found).toMatchObject({ version, node: process.version, problems: [], cache: join(dir, 'hub') });
  expect(found.addon).toMatchObject({ ...native.build(), origin: 'built here' });
  expect(found.devices[0]).toMatchObject({ device: 'cpu', info: { kind: 'cpu' }, failure: null });
  const gpus = found.devices.filter(({ device }: { device: string }) => device.startsWith('cuda'));
  expect(gpus).toHaveLength(native.gpus().gpus.length);
});

test('its text has a line for each of them', async () => {
  const { code, stdout } = await runCli(['doctor']);
  expect(code).toBe(0);
  expect(stdout).toMatch(/^node-mla +\d+\.\d+\.\d+.*, Node\.js v\d+.*, linux x64, glibc 2\.\d+\n/);
  expect(stdout).toMatch(/\naddon +.*node_mla\.node \(built here\)\n/);
  expect(stdout).toMatch(/\ncpu +.*threads.*free\n +kernels: /);
  expect(stdout).toMatch(/No problem found\.\n$/);
});

test('an addon that is not there, or is damaged, is one sentence with the command that helps', async () => {
  const missing = await runCli(['doctor'], { env: { NODE_MLA_PREBUILD: dir } });
  expect(missing).toMatchObject({ code: 1, stderr: 'mla: 1 problem found.\n' });
  expect(missing.stdout).toMatch(/\nproblem: There is no native addon for linux-x64 .*Run "npm run build:native"/);
  mkdirSync(join(dir, 'build', 'Release'), { recursive: true });
  writeFileSync(join(dir, 'build', 'Release', 'node_mla.node'), readFileSync(native.build().file).subarray(0, 10_000));
  const damaged = await runCli(['doctor', '--json'], { env: { NODE_MLA_PREBUILD: dir } });
  expect(damaged.code).toBe(1);
  const { problems } = JSON.parse(damaged.stdout);
  expect(problems).toEqual([
    expect.stringMatching(/is incomplete: its checksum is missing\. Run "npm run build:native"/),
  ]);
});
