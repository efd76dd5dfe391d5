// The programs of test/native-cpp: what cannot be reached through the addon, because it picks one instruction set and
// hides its threads. They are built in the addon's own build folder, from its objects.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
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

/** Symbols that the linker may merge with those of other objects, of all kernels of one instruction set. */
function mergeable(isa: string): string[] {
  const folder = path.join(BUILD, 'csrc/cpu/CMakeFiles', `mla_cpu_${isa}.dir/kernels`);
  const objects = readdirSync(folder).filter((name) => name.endsWith('.o'));
  expect(objects.length).toBeGreaterThan(10);
  const output = execFileSync('nm', ['--defined-only', '--no-demangle', ...objects], { cwd: folder, encoding: 'utf8' });
  return [...output.matchAll(/^[0-9a-f]+ [VWuw] (.*)$/gm)].map((match) => match[1] as string);
}

test.each(['avx2', 'avx512'])('%s kernels share no code with what other processors run', (isa) => {
  // A template or inline function outside the instruction set's namespace would be one function for all of them.
  const namespace = `3mla3cpu${isa.length}${isa}`;
  expect(mergeable(isa).filter((symbol) => !symbol.includes(namespace))).toEqual([]);
});
