// csrc/runtime over a backend with threads of its own; see runtime.cc.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { ROOT } from './child';

const BUILD = join(ROOT, '.build', 'cmake-release');

test('nothing is released early, twice or never, and every question is answered once', () => {
  const build = spawnSync('cmake', ['--build', BUILD, '--target', 'test-runtime'], { encoding: 'utf8' });
  expect(`${build.stdout}${build.stderr}`).not.toMatch(/error|FAILED/);
  expect(build.status).toBe(0);
  const { stdout, stderr, status } = spawnSync(join(BUILD, 'test-runtime'), { encoding: 'utf8' });
  expect(stderr).toBe('');
  expect(stdout).toMatch(/^\d{5,} checks, 0 failures\n$/);
  expect(status).toBe(0);
}, 240_000);
