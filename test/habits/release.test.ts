// What workflows call exists and does what it says: versions that agree, figures that are compared.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { native } from '../../lib/native';
import { withTree } from './seed-tree';

const ROOT = resolve(__dirname, '../..');
const { checkRelease } = require('../../scripts/check-release.cjs') as {
  checkRelease(root: string, tag: string | undefined): string[];
};

describe('workflows', () => {
  const folder = join(ROOT, '.github', 'workflows');
  const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));

  test.each(readdirSync(folder))('%s calls only what exists', (name) => {
    const text = readFileSync(join(folder, name), 'utf8');
    const commands = [...text.matchAll(/- run: (.*)/g)].map(([, command]) => command as string);
    expect(commands.length).toBeGreaterThan(0);
    for (const command of commands) {
      const [, script] = /^npm run ([\w:]+)/.exec(command) ?? [];
      if (script !== undefined) expect(Object.keys(scripts)).toContain(script);
      const [, file] = /^(?:sudo )?(?:bash|node) (\S+)/.exec(command) ?? [];
      if (file !== undefined) expect(existsSync(join(ROOT, file))).toBe(true);
      expect(script ?? file ?? command).toMatch(/^[\w:]+$|^\.ci\/run$|^scripts\/|^npm (ci|pkg|publish)\b|^npx mla /);
    }
  });

  test('cover the Node versions that the package promises', () => {
    expect(readFileSync(join(folder, 'check.yml'), 'utf8')).toContain("node: ['20.19', '22', '24']");
  });
});

describe('a release', () => {
  const tree = (changelog: string, version = '1.2.3') => ({
    'package.json': JSON.stringify({ version: '1.2.3' }),
    'package-lock.json': JSON.stringify({ version }),
    'CHANGELOG.md': `# Changelog\n\n## ${changelog}\n\n- x\n\n## 1.2.2 (2025-01-01)\n`,
  });
  const problems = (files: Record<string, string>, tag?: string) => withTree(files, (root) => checkRelease(root, tag));

  test('whose versions agree is fine', () => {
    expect(problems(tree('1.2.3 (2026-11-26)'), 'v1.2.3')).toEqual([]);
  });

  test('is refused where they do not', () => {
    expect(problems(tree('1.2.3 (unreleased)'), 'v1.2.3')).toEqual([
      expect.stringMatching(/CHANGELOG\.md begins with/),
    ]);
    expect(problems(tree('1.2.4 (2026-11-26)', '1.2.2'), 'v1.2.4')).toHaveLength(2);
    expect(problems(tree('1.2.3 (2026-11-26)'), '1.2.3')).toEqual([expect.stringMatching(/a tag like v1\.2\.3/)]);
    expect(problems(tree('1.2.3 (2026-11-26)'))).toHaveLength(1);
  });
});

describe('npm run bench:gpu', () => {
  let dir = '';
  const gpu = 'Imaginary GPU 9';
  const measured = join(ROOT, '.build', 'bench', 'imaginary-gpu-9.jsonl');

  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'node-mla-bench-'));
    // Stands in for mla: figures are made up, comparing is real.
    writeFileSync(
      join(dir, 'cli.cjs'),
      `if (process.argv[3] === 'compare') {
        require(${JSON.stringify(join(ROOT, 'dist', 'cli', 'main.js'))});
      } else {
        const us = 10 * (process.env.SLOWER ? 1.2 : 1) + Math.random() / 100;
        const results = [{ id: process.argv[3] + ' x', samples: [us, us, us] }];
        console.log(JSON.stringify({ device: { name: ${JSON.stringify(gpu)} }, results }));
      }`,
    );
  });

  afterAll(() => {
    rmSync(dir, { recursive: true });
    rmSync(measured, { force: true });
  });

  const run = (args: string[], env: Record<string, string> = {}) =>
    spawnSync(
      process.execPath,
      [join(ROOT, 'scripts', 'gpu-bench.cjs'), '--cli', join(dir, 'cli.cjs'), '--results', dir, ...args],
      { encoding: 'utf8', env: { ...process.env, ...env } },
    );

  test('without figures to compare with it fails; it records them; then it judges', () => {
    const first = run(['--runs', '1']);
    expect(first).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/there are no figures in .*imaginary-gpu-9/),
    });
    expect(run(['--record', '--runs', '2'])).toMatchObject({ status: 0 });
    const recorded = readFileSync(join(dir, 'imaginary-gpu-9.jsonl'), 'utf8').trim().split('\n');
    expect(recorded).toHaveLength(6); // three benches, two runs
    const summary = join(dir, 'summary.md');
    const same = run(['--runs', '1'], { GITHUB_STEP_SUMMARY: summary });
    expect(same).toMatchObject({ status: 0, stdout: expect.stringMatching(/^Imaginary GPU 9: 3 cases/) });
    expect(readFileSync(summary, 'utf8')).toBe(same.stdout);
    const slower = run(['--runs', '1'], { SLOWER: '1' });
    expect(slower).toMatchObject({ status: 1, stderr: expect.stringMatching(/3 of 3 cases are slower beyond noise/) });
  });

  test('refuses what it does not understand', () => {
    for (const args of [['--runs', '0'], ['--runs'], ['--fast']]) expect(run(args).status).toBe(1);
  });
});

describe('npm run prebuildify', () => {
  const { inspect, tryLoad } = require('../../scripts/prebuildify.cjs') as {
    inspect(file: string): void;
    tryLoad(file: string, cuda: boolean): void;
  };
  const { file, cuda } = native.build();
  beforeEach(() => {
    jest.spyOn(console, 'log').mockImplementation(() => {});
  });
  afterEach(() => jest.restoreAllMocks());

  test('accepts what loads and needs no more than the README promises', () => {
    inspect(file);
    tryLoad(file, cuda);
    expect(console.log).toHaveBeenCalledWith(expect.stringMatching(/needs .*libc\.so\.6.* and GLIBC_2\.\d\d at most/));
  });

  test('refuses a binary that wants more, lacks architectures, or does not load', () => {
    const node = process.execPath; // wants libstdc++
    expect(() => inspect(node)).toThrow(/needs libstdc\+\+\.so\.6|needs libdl|needs libpthread/);
    if (!cuda)
      expect(() => tryLoad(file, true)).toThrow(
        /has no code for 80-real, 90-real, 90a-real, 100-real, 120-real, 120-virtual/,
      );
    expect(() => tryLoad(join(ROOT, 'package-lock.json.node'), false)).toThrow(/does not load/);
  });
});
