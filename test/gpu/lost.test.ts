// gpu/lost.test.ts - a GPU that is lost stays lost for the process; so this test has a process of its own.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MlaError } from '../../lib/errors';
import { native } from '../../lib/native';
import { openTested } from './harness';

async function codeOf(work: () => unknown): Promise<string> {
  try {
    await work();
  } catch (error) {
    if (error instanceof MlaError) return error.code;
    throw error;
  }
  return 'nothing thrown';
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
