// Worker threads that load the package and a model, and generate, terminated at random moments of all that.
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';

const ROOT = join(__dirname, '..', '..');
const TERMINATIONS = 200;

const WORKER = `
const { parentPort } = require('node:worker_threads');
const say = (stage) => parentPort.postMessage(stage);
say('started');
const { loadModel } = require(${JSON.stringify(ROOT)});
say('required');
loadModel(undefined, { device: 'cpu', threads: 2, context: 512 }).then(async (model) => {
  say('loaded');
  for (let first = true; ; first = false) {
    for await (const { text } of model.generate('In the beginning', { maxTokens: 100, ignoreEos: true })) {
      if (first && text) say('generating');
      first = false;
    }
  }
});
`;

/** Two at a time; each lives for a random part of the time that the first one took until its first text, and a half more. */
const MAIN = `
const { Worker } = require('node:worker_threads');
const stages = {};
const begin = () => {
  const worker = new Worker(${JSON.stringify(WORKER)}, { eval: true });
  worker.stage = 'created';
  worker.on('message', (stage) => { worker.stage = stage; worker.emit(stage); });
  worker.on('error', (error) => { console.error(error); process.exit(1); });
  return worker;
};
const once = (worker, stage) => new Promise((resolve) => worker.once(stage, resolve));
async function lane(count, longest) {
  for (let i = 0; i < count; i++) {
    const worker = begin();
    await once(worker, 'online');
    await new Promise((resolve) => setTimeout(resolve, Math.random() * longest));
    stages[worker.stage] = (stages[worker.stage] ?? 0) + 1;
    await worker.terminate();
  }
}
(async () => {
  const started = performance.now();
  const first = begin();
  await once(first, 'generating');
  const longest = (performance.now() - started) * 1.5;
  await first.terminate();
  await Promise.all([lane(${TERMINATIONS / 2}, longest), lane(${TERMINATIONS / 2}, longest)]);
  console.log(JSON.stringify(stages));
})();
`;

test(`${TERMINATIONS} workers with a model are terminated at random moments, and nothing crashes`, () => {
  const output = execFileSync(process.execPath, ['-e', MAIN], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const stages = JSON.parse(output) as Record<string, number>;
  console.log(
    `terminated while ${Object.entries(stages)
      .map(([stage, count]) => `${stage}: ${count}`)
      .join(', ')}`,
  );
  expect(Object.values(stages).reduce((sum, count) => sum + count)).toBe(TERMINATIONS);
  for (const stage of ['started', 'required', 'generating'])
    expect([stage, stages[stage] ?? 0]).not.toEqual([stage, 0]);
});
