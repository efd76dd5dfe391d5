// What the first minute with the package promises, on two processors: text within a second, hundreds of tokens a second.
import { spawn } from 'node:child_process';
import { join } from 'node:path';

const MAIN = join(__dirname, '..', '..', 'dist', 'cli', 'main.js');
const RUNS = 5;
const MIN_TOKENS_PER_SECOND = 300;
const MAX_FIRST_TEXT_MS = 1000;

/** One run with two threads: when the first text was there, counted from the start of the process, and the statistics. */
function generate(json: boolean): Promise<{ firstTextMs: number; stdout: string }> {
  const flags = ['-p', 'In the beginning', '-n', '256', '--ignore-eos', '--device', 'cpu', '--threads', '2'];
  const started = performance.now();
  const child = spawn(process.execPath, [MAIN, 'generate', ...flags, ...(json ? ['--json'] : [])], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let firstTextMs = Number.POSITIVE_INFINITY;
  let stdout = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    if (stdout === '') firstTextMs = performance.now() - started;
    stdout += text;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => (code === 0 ? resolve({ firstTextMs, stdout }) : reject(new Error(`exit ${code}`))));
  });
}

test('the bundled model on two threads: first text and tokens per second', async () => {
  const first: number[] = [];
  const rates: number[] = [];
  for (let i = 0; i < RUNS; i++) {
    first.push((await generate(false)).firstTextMs);
    rates.push(JSON.parse((await generate(true)).stdout).timings.decodeTokensPerSecond);
  }
  const show = (values: number[]) => values.map((value) => value.toFixed(0)).join(', ');
  console.log(`first text after ${show(first)} ms; decode ${show(rates)} tokens/s`);
  // The best run counts: whatever else the machine does can only slow one down.
  expect(Math.min(...first)).toBeLessThan(MAX_FIRST_TEXT_MS);
  expect(Math.max(...rates)).toBeGreaterThanOrEqual(MIN_TOKENS_PER_SECOND);
});
