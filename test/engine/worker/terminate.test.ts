// Worker threads that are terminated at random moments: nothing crashes, and whoever waited is told.
import { inWorker, runScript } from './child-script';

/** The soak run sets 500. */
const TERMINATIONS = Number(process.env.NODE_MLA_TEST_WORKER_TERMINATIONS ?? 24);

/** Uses a model in every way until something ends it; \`model\` is told as soon as it is there. */
const USE = `
async function use(options, told = () => {}) {
  const model = await load(options);
  told(model);
  for (;;) {
    const slow = model.generate('In the beginning', { ...LONG, temperature: 1 });
    await Promise.all([
      ...Array.from({ length: 6 }, () => model.generate('And God said', { maxTokens: 30, ignoreEos: true }).result),
      model.chat([{ role: 'user', content: 'Define love.' }], { maxTokens: 8 }).result,
      model.score('The LORD is my shepherd', { top: 2 }),
      model.encode('a text '.repeat(20)),
      (async () => {
        let chunks = 0;
        for await (const chunk of slow) {
          await sleep(1);
          if (++chunks === 20) break;
        }
      })(),
    ]);
  }
}
`;

/** The model's own thread is terminated under it. */
const LOST = `
async function lose(inUse) {
  const before = workers.length;
  let model = null;
  const used = use({}, (loaded) => { model = loaded; }).then(() => 'nothing', (error) => error.code);
  while (workers.length === before) await sleep(1);
  const worker = workers[workers.length - 1];
  while (inUse && model === null) await sleep(1);
  await sleep(Math.random() * 400);
  const loaded = model !== null;
  const open = loaded ? [model.generate('x', LONG).result, model.score('y'), model.stats()] : [];
  const codes = Promise.all(open.map((one) => one.then(() => 'done', (error) => error.code)));
  await worker.terminate();
  count(await used);
  for (const code of await codes) count(code === 'done' ? 'ERR_WORKER_LOST' : code);
  if (!loaded) return 'loading';
  try { model.generate('x'); count('nothing'); } catch (error) { count(error.code); }
  count(await model.stats().then(() => 'nothing', (error) => error.code));
  await model.dispose();
  return 'in use';
}`;

/** A thread of the user's own is terminated, with a model in it, or with a model's thread below it. */
const own = (thread: string) => `
async function end_${thread}() {
  const worker = new threads.Worker(${inWorker(`${USE} use({ thread: '${thread}' }).catch((error) => { throw error; });`)}, { eval: true });
  worker.on('error', (error) => count(String(error.code ?? error)));
  await new Promise((resolve) => worker.once('online', resolve));
  await sleep(Math.random() * 1200);
  await worker.terminate();
  return 'of their own, model in ${thread === 'main' ? 'it' : 'a thread below'}';
}`;

const LANES = `
const codes = {};
const count = (code) => { codes[code] = (codes[code] ?? 0) + 1; };
const ends = {};
async function lane(from, to) {
  for (let i = from; i < to; i++) {
    const stage = await [() => lose(false), () => lose(true), end_main, end_worker][i % 4]();
    ends[stage] = (ends[stage] ?? 0) + 1;
  }
}
(async () => {
  const half = Math.ceil(TERMINATIONS / 2);
  await Promise.all([lane(0, half), lane(half, TERMINATIONS)]);
  console.log(JSON.stringify({ ends, codes }));
})();`;

test('threads with models are terminated at random moments', async () => {
  const script = `const TERMINATIONS = ${TERMINATIONS};${USE}${LOST}${own('main')}${own('worker')}${LANES}`;
  const outcome = await runScript(script, 1_200_000);
  expect(outcome).toMatchObject({ code: 0, signal: null, stderr: '' });
  const { ends, codes } = JSON.parse(outcome.stdout) as Record<'ends' | 'codes', Record<string, number>>;
  expect(Object.values(ends).reduce((sum, n) => sum + n, 0)).toBe(TERMINATIONS);
  expect(Object.keys(codes)).toEqual(['ERR_WORKER_LOST']);
  console.log(
    `${TERMINATIONS} threads terminated, 0 crashes: ${JSON.stringify(ends)}; rejections ${JSON.stringify(codes)}`,
  );
}, 1_200_000);
