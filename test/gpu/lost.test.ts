// gpu/lost.test.ts - a GPU that is lost stays lost for the process: by a failure made up, by a kernel that writes to
// address 0, and by one that does not end. Each in a process of its own.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { MlaError } from '../../lib/errors';
import { native } from '../../lib/native';
import { openTested, RECORDING, TESTED_DEVICE } from './harness';
import type { Told } from './lost-child';

async function codeOf(work: () => unknown): Promise<string> {
  try {
    await work();
  } catch (error) {
    if (error instanceof MlaError) return error.code;
    throw error;
  }
  return 'nothing thrown';
}

interface Ended extends Told {
  code: number | null;
  signal: NodeJS.Signals | null;
  stderr: string;
  /** milliseconds from what the child told to its end */
  leaveMs: number;
}

/** Runs lost-child to its end; one that does not end in time is killed, which no test accepts. */
function child(what: string): Promise<Ended> {
  const run = spawn(process.execPath, [join(__dirname, 'lost-child.js'), what], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 60_000,
    killSignal: 'SIGKILL',
  });
  let stdout = '';
  let stderr = '';
  let told = Number.NaN;
  run.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    told = performance.now();
  });
  run.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    run.on('error', reject);
    run.on('close', (code, signal) => {
      const leaveMs = performance.now() - told;
      if (stdout === '') reject(new Error(`${what}: exit ${code ?? signal}, nothing told; ${stderr}`));
      else resolve({ ...(JSON.parse(stdout) as Told), code, signal, stderr, leaveMs });
    });
  });
}

const FAULTS = join(__dirname, '..', '..', 'build', 'programs', 'gpu-faults.node');
const without =
  TESTED_DEVICE === 'cpu' || RECORDING || !existsSync(FAULTS)
    ? 'needs a GPU, and what scripts/gpu-bundle.cjs builds'
    : false;

for (const [what, limits] of [
  ['fault', { endMs: [0, 5000], leaveMs: 5000 }],
  // 2 s of stepTimeout; a step that was under way ends before it
  ['hang', { endMs: [1800, 2200], leaveMs: 2000 }],
] as const) {
  test(`${what}: all that is open ends, later calls are refused, the process leaves, another one serves`, {
    skip: without,
  }, async () => {
    const ended = await child(what);
    const { ends, endMs, later, laterMs, disposeMs, leaveMs } = ended;
    const ms = (value: number) => `${value.toFixed(value < 100 ? 1 : 0)} ms`;
    console.log(
      `${what}: ${ends.length} open requests ended with ${[...new Set(ends)]} within ${ms(endMs)}; the next one got ${later} in ${ms(laterMs)}; dispose ${ms(disposeMs)}; the process left ${ms(leaveMs)} later with ${ended.code ?? ended.signal}`,
    );
    assert.deepEqual([...new Set(ends)], ['ERR_DEVICE_LOST']);
    assert.ok(endMs >= limits.endMs[0] && endMs <= limits.endMs[1], `ended after ${endMs} ms`);
    assert.equal(later, 'ERR_DEVICE_LOST');
    assert.ok(laterMs < 10, `refused after ${laterMs} ms`);
    assert.ok(leaveMs < limits.leaveMs, `left after ${leaveMs} ms`);
    assert.deepEqual([ended.code, ended.signal, ended.stderr], [1, null, '']);
    const next = await child('serve');
    assert.equal(next.code, 0);
    assert.deepEqual(next.tokens, ended.tokens);
  });
}

test('a lost device rejects what is queued and refuses what follows', async () => {
  const device = openTested();
  const stream = device.stream();
  const a = await device.allocate('f32', [4]);
  native.failCommand(device, 0, true);
  stream.write(a, new Float32Array(4));
  const answers = await Promise.all([codeOf(() => stream.record().done), codeOf(() => stream.read(a))]);
  assert.deepEqual(answers, ['ERR_DEVICE_LOST', 'ERR_DEVICE_LOST']);
  assert.equal(await codeOf(() => device.allocate('f32', [4])), 'ERR_DEVICE_LOST');
  await device.dispose();
});
