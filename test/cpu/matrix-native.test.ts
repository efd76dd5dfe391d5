// The programs of test/native-cpp: what cannot be reached through the addon, because it picks one instruction set and
// hides its threads. They are built in the addon's own build folder, from its objects.
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';

const BUILD = path.join(__dirname, '../../.build/cmake-release');

const PROGRAMS = ['cpu-matrix', 'cpu-attention', 'thread-pool'];

beforeAll(() => {
  if (!existsSync(path.join(BUILD, 'CMakeCache.txt'))) {
    throw new Error(`${BUILD} is missing; run "npm run build:native" first`);
  }
  execFileSync('cmake', ['--build', BUILD, '--target', ...PROGRAMS.map((name) => `test-${name}`)], { stdio: 'pipe' });
}, 300_000);

test.each(PROGRAMS)(
  '%s',
  (name) => {
    const output = execFileSync(path.join(BUILD, 'csrc/cpu', `test-${name}`), { encoding: 'utf8' });
    expect(output).toMatch(/^[1-9]\d* \w+, 0 failures\n$/);
  },
  120_000,
);
