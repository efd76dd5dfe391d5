// gpu/memory.test.ts - what the plan says a model takes, `mla inspect` and loading alike, against what the GPU has lost
// afterwards: of DeepSeek-V2-Lite's shape in bf16, or its first layers where the GPU is too small for all of it.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { after, test } from 'node:test';
import { LatentModel, namedShape, planModel } from '../../lib/model';
import { closeDevices, openTested, TESTED_DEVICE } from './harness';

after(closeDevices);

/** Bytes that all processes use, as nvidia-smi sees it; null where there is none. */
function usedBytes(): number | null {
  try {
    const args = ['--query-gpu=memory.used', '--format=csv,noheader,nounits', '-i', TESTED_DEVICE.replace(/\D/g, '')];
    return Number(execFileSync('nvidia-smi', args, { encoding: 'utf8' })) * 2 ** 20;
  } catch {
    return null;
  }
}

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(3)} GiB`;

for (const context of [4096, 131072]) {
  test(`a plan for a context of ${context} is what loading takes`, async () => {
    const device = openTested();
    const free = device.info().memoryFree;
    const before = usedBytes();
    const shape = free > 45 * 2 ** 30 ? 'v2-lite' : 'v2-lite:3';
    const options = { device: TESTED_DEVICE as 'cpu', context, maxSequences: 4, dtype: 'bf16' } as const;
    const { memory } = planModel(device, device.info(), namedShape(shape), options);
    const model = await LatentModel.random(shape, options);
    try {
      assert.deepEqual(model.memory, memory);
      const taken = free - device.info().memoryFree;
      const used = usedBytes();
      const smi = before === null || used === null ? '' : `; nvidia-smi ${gib(before)} before, ${gib(used)} after`;
      const error = memory.total / taken - 1;
      console.log(
        `${shape}, context ${context}: planned ${gib(memory.total)}, taken ${gib(taken)} ` +
          `(${(100 * error).toFixed(2)} %)${smi}`,
      );
      assert.ok(Math.abs(error) < 0.03, `planned ${gib(memory.total)}, taken ${gib(taken)}`);
    } finally {
      await model.dispose();
      await device.dispose();
    }
  });
}
