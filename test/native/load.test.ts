// Loading the .node: every damaged, missing or foreign file is a typed error that says what to do; no file ends the
// process. And what the build script says when it cannot build.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ROOT, run } from './child';

const { seal } = require('../../scripts/build-native.cjs') as { seal(file: string): void };

const ADDON = readFileSync(join(ROOT, 'build', 'Release', 'node_mla.node'));
const REGIONS = 48;

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'node-mla-load-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** A folder with this file as its build. */
function prebuild(name: string, content: Uint8Array | undefined, sealed = false): string {
  const root = join(folder, name);
  mkdirSync(join(root, 'build', 'Release'), { recursive: true });
  if (content !== undefined) writeFileSync(join(root, 'build', 'Release', 'node_mla.node'), content);
  if (sealed) seal(join(root, 'build', 'Release', 'node_mla.node'));
  return root;
}

/** What loading each of these gives, in one process: so a failure also leaves the process able to go on. */
async function load(roots: Record<string, string>): Promise<Record<string, string>> {
  const ended = await run(`
    const results = {};
    for (const [name, root] of Object.entries(${JSON.stringify(roots)})) {
      process.env.NODE_MLA_PREBUILD = root;
      try {
        native.openDevice('cpu');
        results[name] = 'loaded';
      } catch (error) {
        results[name] = error.name + ' ' + error.code + ' ' + error.message;
      }
    }
    console.log(JSON.stringify(results));
    process.exit(0);`);
  expect(ended).toMatchObject({ code: 0, signal: null, stderr: '' });
  return JSON.parse(ended.stdout) as Record<string, string>;
}

test('a flipped byte anywhere is noticed before the file is mapped', async () => {
  const roots: Record<string, string> = {};
  for (let i = 0; i < REGIONS; i++) {
    const copy = Uint8Array.from(ADDON);
    const at = Math.min(ADDON.length - 1, Math.floor(((i + 0.5) * ADDON.length) / REGIONS));
    copy[at] = (copy[at] as number) ^ 0x40;
    roots[`byte ${at}`] = prebuild(`flip-${i}`, copy);
  }
  const results = await load(roots);
  for (const result of Object.values(results))
    expect(result).toMatch(/^MlaError ERR_NATIVE_LOAD .* is damaged: .*npm run build:native/);
  expect(Object.keys(results)).toHaveLength(REGIONS);
  console.log(`${REGIONS} regions of ${ADDON.length} bytes flipped, ${REGIONS} refused`);
});

test('truncated, empty and foreign files', async () => {
  const { sharedObjects } = process.report.getReport() as unknown as { sharedObjects: string[] };
  const libm = sharedObjects.find((file) => file.includes('libm.so'));
  const results = await load({
    empty: prebuild('empty', new Uint8Array(0)),
    text: prebuild('text', Buffer.from('not a library\n'.repeat(1000))),
    half: prebuild('half', ADDON.subarray(0, ADDON.length >> 1)),
    'last byte': prebuild('last', ADDON.subarray(0, -1)),
    unsealed: prebuild('unsealed', ADDON.subarray(0, -40)),
    'sealed text': prebuild('sealed-text', Buffer.from('not a library\n'.repeat(1000)), true),
    'sealed half': prebuild('sealed-half', ADDON.subarray(0, 64), true),
    // e_machine of the ELF header: another processor.
    'other processor': prebuild(
      'machine',
      Uint8Array.from(ADDON, (byte, i) => (i === 18 ? 0xb7 : byte)),
      true,
    ),
    'no addon': prebuild('no-addon', readFileSync(libm as string), true),
    missing: prebuild('missing', undefined),
  });
  expect(results).toEqual({
    empty: expect.stringMatching(/ERR_NATIVE_LOAD .*incomplete/),
    text: expect.stringMatching(/ERR_NATIVE_LOAD .*incomplete/),
    half: expect.stringMatching(/ERR_NATIVE_LOAD .*incomplete/),
    'last byte': expect.stringMatching(/ERR_NATIVE_LOAD .*incomplete/),
    unsealed: expect.stringMatching(/ERR_NATIVE_LOAD .*incomplete/),
    'sealed text': expect.stringMatching(/ERR_NATIVE_LOAD .*cannot be loaded: .*invalid ELF header/),
    'sealed half': expect.stringMatching(/ERR_NATIVE_LOAD .*cannot be loaded/),
    'other processor': expect.stringMatching(/ERR_NATIVE_LOAD .*cannot be loaded/),
    'no addon': expect.stringMatching(/ERR_NATIVE_LOAD .*cannot be loaded: .*did not self-register/),
    missing: expect.stringMatching(/ERR_NATIVE_LOAD There is no native addon for/),
  });
});

test('a failure to load is not remembered', async () => {
  const results = await load({
    damaged: prebuild('damaged', ADDON.subarray(0, 1000)),
    whole: ROOT,
    'damaged again': prebuild('damaged', ADDON.subarray(0, 1000)),
  });
  expect(results).toEqual({
    damaged: expect.stringContaining('ERR_NATIVE_LOAD'),
    whole: 'loaded',
    'damaged again': 'loaded',
  });
});

test('an installed package names the command for installed packages', async () => {
  const installed = join(folder, 'app', 'node_modules', 'node-mla');
  cpSync(join(ROOT, 'dist'), join(installed, 'dist'), { recursive: true });
  cpSync(join(ROOT, 'package.json'), join(installed, 'package.json'));
  symlinkSync(join(ROOT, 'node_modules', 'node-gyp-build'), join(installed, '..', 'node-gyp-build'));
  const ended = await run(`
    try {
      require(${JSON.stringify(join(installed, 'dist', 'native'))}).build();
    } catch (error) {
      console.log(error.code, error.message);
    }`);
  expect(ended.stdout).toMatch(/^ERR_NATIVE_LOAD There is no native addon .* Run "npm rebuild node-mla"/);
});

test('requiring the package loads nothing native', async () => {
  const ended =
    await run(`console.log(process.report.getReport().sharedObjects.filter((f) => /node_mla/.test(f)).length);
    native.build();
    console.log(process.report.getReport().sharedObjects.filter((f) => /node_mla/.test(f)).length);`);
  expect(ended).toMatchObject({ stdout: '0\n1\n', stderr: '', code: 0 });
});

test.each([
  ['Fast', {}, /expected Release or Debug, got "Fast"/],
  ['Release', { NODE_MLA_CUDA: 'maybe' }, /NODE_MLA_CUDA must be auto, ON or OFF; got "maybe"/],
  ['Release', { PATH: '/nonexistent', CXX: '' }, /no C\+\+ compiler was found/],
])('build-native.cjs %s with %j says what is wrong', (config, env, expected) => {
  const ended = spawnSync(process.execPath, [join(ROOT, 'scripts', 'build-native.cjs'), config], {
    env: { ...process.env, ...env },
    encoding: 'utf8',
  });
  expect(ended.stderr).toMatch(expected);
  expect(ended.status).toBe(1);
});
