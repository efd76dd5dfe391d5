// gpu/mutations.test.ts - the golden data catches the known mistakes on the GPU too; test/soak/mutations.test.ts makes the
// same ones on the CPU.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { goldens } from '../model/golden';
import { judgeMutations } from '../model/mutations-table';
import { TESTED_DEVICE } from './harness';

test('every known mistake moves the golden log-probabilities', async () => {
  const { table, missed } = await judgeMutations(goldens, TESTED_DEVICE);
  console.log(table);
  assert.deepEqual(missed, []);
});
