// The files of examples/ run as they stand, against the built package and its small model.
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

const ROOT = join(__dirname, '..');
const FOLDER = join(ROOT, 'examples');

function run(name: string): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    // Inside its own package, node resolves "node-mla" to this checkout: the files need no change.
    execFile(process.execPath, [join(FOLDER, name)], { cwd: ROOT, timeout: 25_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code ?? -1), stdout, stderr });
    });
  });
}

/** What each example prints, as far as it is certain. */
const EXPECTED: Record<string, RegExp> = {
  'stream.mjs':
    /^ shall they give every man a ransom for his soul[\s\S]*\n-- (stop|length) after \d+ tokens, \d+ ms\n$/,
  'chat.mjs': /^> In the beginning God created\n.*[\s\S]*\n> And what came next\?\n[\s\S]*\n$/,
  'cjs.cjs': /^ *-\d+\.\d\d {2}And God said, Let there be light\n *-\d+\.\d\d {2}And light said, Let there be God\n$/,
  'worker.mjs':
    /^the worker wrote \d+ tokens while this thread was busy for \d+ ms\n.*created the heaven and the earth/,
  'abort.mjs': /^And it came to pass \|.+\nThe LORD is my shepherd \|.* \[that is enough\]\nIn the beginning \|.+\n$/s,
};

test('every example has an expectation', () => {
  const files = readdirSync(FOLDER).filter((name) => /\.[cm]?js$/.test(name));
  expect(files.sort()).toEqual(Object.keys(EXPECTED).sort());
});

test.each(Object.entries(EXPECTED))('examples/%s', async (name, expected) => {
  const { code, stdout, stderr } = await run(name);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toMatch(expected);
});

test('the likelier word order scores higher', async () => {
  const [first, second] = (await run('cjs.cjs')).stdout.trim().split('\n').map(Number.parseFloat) as [number, number];
  expect(first).toBeGreaterThan(second);
});
