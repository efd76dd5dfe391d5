// Models in worker threads, many times: terminated at random moments, in processes that end, made and disposed.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
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

test('control: an addon whose thread nobody joins ends the process', () => {
  const dir = mkdtempSync(join(tmpdir(), 'mla-unjoined-'));
  try {
    const addon = join(dir, 'unjoined.node');
    const include: string = require('node-api-headers').include_dir;
    execFileSync('g++', ['-shared', '-fPIC', '-O1', '-I', include, '-o', addon, join(__dirname, 'unjoined.cc')]);
    const script = `
      const { Worker } = require('node:worker_threads');
      const code = ${JSON.stringify(`require(${JSON.stringify(addon)}); setInterval(() => {}, 1000)`)};
      (async () => {
        for (let i = 0; i < 20; i++) {
          const worker = new Worker(code, { eval: true });
          await new Promise((resolve) => worker.once('online', resolve));
          await new Promise((resolve) => setTimeout(resolve, Math.random() * 60));
          await worker.terminate();
        }
      })();`;
    const signals = Array.from({ length: 5 }, () => spawnSync(process.execPath, ['-e', script]).signal);
    console.log(`5 processes with 20 terminations each, without protection: ${signals.join(', ')}`);
    expect(signals.filter((signal) => signal === 'SIGSEGV' || signal === 'SIGABRT').length).toBeGreaterThan(0);
  } finally {
    rmSync(dir, { recursive: true });
  }
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
