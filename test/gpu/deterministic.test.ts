// gpu/deterministic.test.ts - `deterministic: true` on the GPU, with the kernels that full-sized models run on: the bits of
// a request do not depend on its company. Without it some do, or the test says nothing.
//
// The same for single operations: NODE_MLA_TEST_DEVICE=cuda:0:deterministic with the matrix, matrix-experts and router
// tests, which then hold parts of a batch to the bits of the whole.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { promptOf } from '../../lib/bench/model-bench';
import { type LoadOptions, modelOf } from '../../lib/engine';
import { LatentModel } from '../../lib/model';
import { companyLoad } from '../engine/company-load';
import { RECORDING, TESTED_DEVICE } from './harness';

/** A dense layer and one with experts, of real width. */
const SHAPE = 'v2-lite:2';
const REQUESTS = TESTED_DEVICE === 'cpu' ? 4 : 100;
const DEVICES = TESTED_DEVICE === 'cpu' ? ['cpu'] : [TESTED_DEVICE, `${TESTED_DEVICE}:portable`];

for (const device of DEVICES) {
  const open = async (options: LoadOptions) => {
    const model = await LatentModel.random(SHAPE, { ...options, device: device as 'cpu' });
    return modelOf(model, null, SHAPE, options.prefillChunk);
  };
  const book = [...promptOf(1000, 102400, 4)];

  test(`${device}, deterministic: requests in company have the bits that they have alone`, {
    skip: RECORDING,
  }, async () => {
    const figures = await companyLoad(open, book, REQUESTS, true);
    console.log(`${device}: ${JSON.stringify(figures)}`);
    assert.deepEqual([figures.otherTokens, figures.otherBits], [0, 0]);
    if (TESTED_DEVICE !== 'cpu') assert.ok(figures.preemptions > 0 && figures.cachedTokens > 0);
  });

  test(`${device}, control: without the option some have others`, { skip: RECORDING }, async () => {
    const figures = await companyLoad(open, book, REQUESTS, false);
    console.log(`${device}: ${JSON.stringify(figures)}`);
    if (TESTED_DEVICE !== 'cpu') assert.ok(figures.otherBits > 0);
  });
}
