// The addon on the oldest processor it supports, x86-64-v2, as qemu's user-mode emulation of a Nehalem.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ROOT = join(__dirname, '..', '..');
const TOKENS = 8;

interface Passage {
  text: string;
  expected: number[];
}
const passages: Passage[] = JSON.parse(readFileSync(join(ROOT, 'models', 'kjv-10m', 'passages.json'), 'utf8'));

const emulated = (program: string, args: string[] = []) =>
  spawnSync('qemu-x86_64', ['-cpu', 'Nehalem', program, ...args], { encoding: 'utf8' });

test('the emulated processor refuses AVX2, so that the next test can fail', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mla-nehalem-'));
  try {
    const program = join(folder, 'avx2');
    writeFileSync(
      `${program}.cc`,
      `#include <immintrin.h>
      int main(int argc, char**) { return _mm256_extract_epi32(_mm256_abs_epi32(_mm256_set1_epi32(argc)), 0); }`,
    );
    execFileSync('g++', ['-mavx2', '-o', program, `${program}.cc`]);
    expect(emulated(program)).toMatchObject({ status: null, signal: 'SIGILL' });
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('the bundled model recites there', () => {
  const script = `
    const { loadModel } = require(${JSON.stringify(ROOT)});
    loadModel(undefined, { device: 'cpu', threads: 2 }).then(async (model) => {
      const texts = [];
      for (const text of process.argv.slice(1)) {
        texts.push((await model.generate(text, { maxTokens: ${TOKENS}, temperature: 0 }).result).tokens);
      }
      console.log(JSON.stringify({ path: model.info.device.path, texts }));
      await model.dispose();
    });`;
  const some = passages.slice(0, 5);
  const ended = emulated(process.execPath, ['-e', script, ...some.map(({ text }) => text)]);
  expect(ended).toMatchObject({ status: 0, signal: null, stderr: '' });
  const { path, texts } = JSON.parse(ended.stdout);
  expect(path).toBe('x86-64-v2');
  expect(texts).toEqual(some.map(({ expected }) => expected.slice(0, TOKENS)));
  console.log(
    `qemu-x86_64 -cpu Nehalem: ${path} kernels, ${texts.length} of ${some.length} passages begun as they should`,
  );
});
