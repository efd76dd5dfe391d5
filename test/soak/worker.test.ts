// Models in worker threads, many times: terminated at random moments, in processes that end, made and disposed.
import { runScript } from '../engine/worker/child-script';

const ROUNDS = 60;
const WARM_UP = 20;
/** One leaked thread's heap, or one model's weights, would be more. */
const GROWTH_MIB = 8;

process.env.NODE_MLA_TEST_WORKER_TERMINATIONS = '500';
process.env.NODE_MLA_TEST_EXITS = '3';
describe('random ends', () => {
  require('../engine/worker/terminate.test');
});
describe('ends of processes', () => {
  require('../engine/worker/exits.test');
});

test(`${ROUNDS} models in workers, one after the other, leave no memory behind`, async () => {
  const { code, stdout, stderr } = await runScript(
    `
    const { readFileSync, readdirSync } = require('node:fs');
    require('node:v8').setFlagsFromString('--expose-gc');
    const gc = require('node:vm').runInNewContext('gc');
    const mib = () => {
      gc();
      return Number(/VmRSS:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) / 1024;
    };
    const rest = () => ({ files: readdirSync('/proc/self/fd').length, threads: readdirSync('/proc/self/task').length });
    (async () => {
      const sizes = [];
      let before;
      for (let i = 0; i < ${ROUNDS + WARM_UP}; i++) {
        const model = await load();
        await model.chat([{ role: 'user', content: 'Define love.' }], { maxTokens: 4 }).result;
        await model.dispose();
        sizes.push(mib());
        if (i === ${WARM_UP}) before = rest();
      }
      console.log(JSON.stringify({ sizes, before, after: rest() }));
    })();`,
    1_000_000,
  );
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { sizes, before, after } = JSON.parse(stdout) as {
    sizes: number[];
    before: { files: number; threads: number };
    after: { files: number; threads: number };
  };
  const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1] as number;
  const first = median(sizes.slice(WARM_UP, 2 * WARM_UP));
  const last = median(sizes.slice(-WARM_UP));
  console.log(
    `resident memory after ${WARM_UP} models ${first.toFixed(1)} MiB, after ${sizes.length} ${last.toFixed(1)} MiB`,
  );
  expect(after).toEqual(before);
  expect(last - first).toBeLessThan(GROWTH_MIB);
}, 1_000_000);
