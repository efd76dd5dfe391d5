// What callers give us to call may throw: their error reaches them, and nothing else changes.
import { runScript } from './worker/child-script';

const SCRIPT = `
const failures = [];
let hooks = 0;
const same = (what, got, expected) => {
  hooks++;
  if (got !== expected) failures.push(what + ': ' + String(got));
};
const thrownBy = async (work) => {
  try {
    await work();
  } catch (error) {
    return error;
  }
  return 'nothing';
};
const mine = new Error('mine');
const boom = () => { throw mine; };
(async () => {
  for (const thread of ['main', 'worker']) {
    for (const phase of ['open', 'weights', 'ready']) {
      const onProgress = (progress) => progress.phase === phase && boom();
      same(thread + ' onProgress ' + phase, await thrownBy(() => load({ thread, onProgress })), mine);
    }
    const model = await load({ thread });
    const short = { maxTokens: 8, temperature: 0, ignoreEos: true };
    const expected = (await model.generate('In the', short).result).text;
    const left = async (loop) => {
      const beside = model.generate('In the', short).result;
      same(thread + ' ' + loop.name, await thrownBy(loop), mine);
      same(thread + ' beside ' + loop.name, (await beside).text, expected);
    };
    await left(async function loopBody() {
      for await (const _ of model.generate('And God', LONG)) boom();
    });
    await left(async function chatLoopBody() {
      for await (const _ of model.chat([{ role: 'user', content: 'Define love.' }], LONG)) boom();
    });
    await left(async function sequenceLoopBody() {
      const sequence = await model.createSequence();
      try {
        for await (const _ of sequence.generate('And God', LONG)) boom();
      } finally {
        await sequence.dispose();
      }
    });
    const aborting = new AbortController();
    await left(async function reasonOfTheSignal() {
      setTimeout(() => aborting.abort(mine), 5);
      await model.generate('And God', { ...LONG, signal: aborting.signal }).result;
    });
    // What throws when it is read is refused as an argument, with the error as the cause.
    const getter = (name) => Object.defineProperty({}, name, { enumerable: true, get: boom });
    const calls = {
      'generate option': () => model.generate('x', getter('maxTokens')),
      'complete option': () => model.complete('x', getter('n')),
      'score option': () => model.score('x', getter('top')),
      'chat option': () => model.chat([{ role: 'user', content: 'x' }], getter('seed')).result,
    };
    for (const [name, call] of Object.entries(calls)) {
      const error = await thrownBy(call);
      same(thread + ' ' + name, error.code, 'ERR_INVALID_ARG');
    }
    same(thread + ' load option', (await thrownBy(() => loadModel(undefined, getter('device')))).code, 'ERR_INVALID_ARG');
    const { accepted, completed, aborted, failed, pages } = await model.stats();
    same(thread + ' ledger', completed + aborted + failed, accepted);
    same(thread + ' pages', pages.held, 0);
    await model.dispose();
  }
  console.log(JSON.stringify({ hooks, failures }));
})();`;

test('errors thrown by callbacks, loops and getters of callers', async () => {
  const { code, signal, stdout, stderr } = await runScript(SCRIPT);
  expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' });
  const { hooks, failures } = JSON.parse(stdout) as { hooks: number; failures: string[] };
  console.log(`${hooks - failures.length} of ${hooks} as they should be, in both threads`);
  expect(failures).toEqual([]);
  expect(hooks).toBeGreaterThan(35);
}, 60_000);

test('control: an error of a caller that nobody catches ends the process', async () => {
  const { code, stderr } = await runScript(
    `load({ thread: 'main' }).then(async (model) => { for await (const _ of model.generate('x', LONG)) throw new Error('mine'); });`,
  );
  expect({ code, told: stderr.includes('mine') }).toEqual({ code: 1, told: true });
});
