// Workers that end and processes that exit while native work is under way. All of it in child processes: a crash here
// would take jest along.
import { NATIVE, run, twoAtATime } from './child';

/** The soak run sets more. */
const TERMINATIONS = Number(process.env.NODE_MLA_TEST_TERMINATIONS ?? 200);
const EXITS = 8;
const LIMIT_MS = 110_000;

/** Keeps a device busy with everything that can be under way: operations, graphs, transfers, allocations, events. */
const LOAD = `
async function load(native) {
  const device = native.openDevice('cpu', { threads: 2 });
  const stream = device.stream();
  const other = device.stream();
  const big = await device.allocate('f32', [1 << 16]);
  const small = await device.allocate('f32', [64]);
  const graph = stream.capture(() => {
    for (let i = 0; i < 8; i++) stream.fillRandom({ out: small, seed: i, mean: 0, stddev: 1 });
  });
  for (let i = 0; ; i++) {
    stream.fillRandom({ out: big, seed: i, mean: 0, stddev: 1 });
    graph.replay();
    other.wait(stream.record());
    other.write(small, new Float32Array(64));
    stream.read(big).catch(() => {});
    device.allocate('f32', [1 << 12]).then((tensor) => tensor.dispose(), () => {});
    if (i % 4 === 3) await Promise.all([stream.record().done, other.record().done]);
  }
}
`;

const TERMINATE = `
const { Worker } = require('node:worker_threads');
const body = ${JSON.stringify(`${LOAD}\nload(require(${JSON.stringify(NATIVE)}));`)};
let failed = 0;
async function lane(count) {
  for (let i = 0; i < count; i++) {
    const worker = new Worker(body, { eval: true });
    worker.on('error', (error) => {
      failed++;
      console.error(error);
    });
    await new Promise((resolve) => worker.once('online', resolve));
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 60));
    await worker.terminate();
  }
}
async function terminate(count) {
  await Promise.all([lane(count >> 1), lane(count - (count >> 1))]);
  console.log('terminated ' + count + ', failed ' + failed);
  process.exit(failed);
}
`;

test.each([
  ['the worker only', ''],
  ['the main thread too', `${LOAD} load(native);`],
])(
  'busy workers are terminated at random moments; the addon is loaded in %s',
  async (_, main) => {
    const count = Math.ceil(TERMINATIONS / 2);
    const ended = await run(`${main} ${TERMINATE} terminate(${count});`, {}, [], LIMIT_MS);
    expect(ended).toMatchObject({ stderr: '', stdout: `terminated ${count}, failed 0\n`, code: 0, signal: null });
    console.log(ended.stdout.trim());
  },
  LIMIT_MS + 10_000,
);

test('a worker that ends by itself leaves nothing running', async () => {
  const body = `
    (async () => {
      const native = require(${JSON.stringify(NATIVE)});
      const device = native.openDevice('cpu', { threads: 2 });
      const tensor = await device.allocate('f32', [1 << 16]);
      device.stream().fillRandom({ out: tensor, seed: 1, mean: 0, stddev: 1 });
    })();`;
  const ended = await run(`
    const { Worker } = require('node:worker_threads');
    const threads = () => require('node:fs').readdirSync('/proc/self/task').length;
    const once = () => new Promise((resolve) => new Worker(${JSON.stringify(body)}, { eval: true }).on('exit', resolve));
    (async () => {
      await once();
      const before = threads();
      for (let i = 0; i < 10; i++) await once();
      console.log(threads() - before);
    })();`);
  expect(ended).toMatchObject({ stdout: '0\n', stderr: '', code: 0 });
});

test.each([
  ['process.exit', 'process.exit(7);', { code: 7, signal: null }],
  ['an uncaught error', 'throw new Error("on purpose");', { code: 1, signal: null }],
  ['an unhandled rejection', 'Promise.reject(new Error("x"));', { code: 1, signal: null }],
  ['SIGTERM', 'process.kill(process.pid, "SIGTERM");', { code: null, signal: 'SIGTERM' }],
  ['SIGINT', 'process.kill(process.pid, "SIGINT");', { code: null, signal: 'SIGINT' }],
])('%s during native work ends the process at once', async (name, script, expected) => {
  const say = 'require("node:fs").writeSync(1, String(Date.now()));';
  const took = await twoAtATime(EXITS, async () => {
    const ended = await run(`${LOAD} load(native); setTimeout(() => { ${say} ${script} }, Math.random() * 100);`);
    expect(ended).toMatchObject(expected);
    return Date.now() - Number(ended.stdout);
  });
  console.log(`${name}: ${EXITS} times, gone after ${Math.max(...took)} ms at most`);
  expect(Math.max(...took)).toBeLessThan(2000);
});

test('a process with an idle device ends by itself, and one with pending promises waits for them', async () => {
  const idle = await run(`
    const device = native.openDevice('cpu');
    device.allocate('f32', [1 << 20]).then((tensor) => {
      for (let i = 0; i < 1000; i++) device.stream().fillRandom({ out: tensor, seed: i, mean: 0, stddev: 1 });
      console.log('issued');
    });`);
  expect(idle).toMatchObject({ stdout: 'issued\n', stderr: '', code: 0, signal: null });
  const waiting = await run(`
    const device = native.openDevice('cpu');
    (async () => {
      const tensor = await device.allocate('f32', [1 << 20]);
      const stream = device.stream();
      for (let i = 0; i < 10; i++) stream.fillRandom({ out: tensor, seed: i, mean: 0, stddev: 1 });
      await stream.record().done;
      console.log('done');
    })();`);
  expect(waiting).toMatchObject({ stdout: 'done\n', stderr: '', code: 0, signal: null });
});

test('an idle device takes no processor time', async () => {
  const ended = await run(`
    const device = native.openDevice('cpu');
    (async () => {
      const tensor = await device.allocate('f32', [1 << 10]);
      const stream = device.stream();
      stream.fillRandom({ out: tensor, seed: 1, mean: 0, stddev: 1 });
      await stream.record().done;
      await new Promise((resolve) => setTimeout(resolve, 50));
      const before = process.cpuUsage();
      await new Promise((resolve) => setTimeout(resolve, 500));
      const { user, system } = process.cpuUsage(before);
      console.log((user + system) / 500_000);
    })();`);
  expect(ended).toMatchObject({ stderr: '', code: 0 });
  expect(Number(ended.stdout)).toBeLessThan(0.1);
});
