// How a process with a model ends, whatever the model is doing then: soon, with the code that was meant, without a core.
import { twoAtATime } from '../../native/child';
import { type Outcome, runScript } from './child-script';

/** The soak run sets how often each end is tried at each stage; without it every other one of them is, once. */
const ROUNDS = Number(process.env.NODE_MLA_TEST_EXITS ?? 0.5);
const LIMIT_MS = 5000;

/** What the model is doing. `done` is a promise of the end of it, which only 'natural end' waits for. */
const STAGES: Record<string, string> = {
  idle: `const model = await load(); await model.generate('In the', { maxTokens: 2 }).result; const done = null;`,
  loading: `
    const done = load().then(() => { process.stdout.write('loaded\\n'); }, lost);
    await sleep(Math.random() * 300);`,
  generating: `
    const model = await load();
    const all = Array.from({ length: 8 }, () => model.generate('In the beginning', LONG).result.catch(lost));
    const done = Promise.all(all);
    await sleep(20 + Math.random() * 100);`,
  'streaming with a slow consumer': `
    const model = await load();
    const done = (async () => {
      for await (const chunk of model.generate('In the beginning', LONG)) {
        await sleep(20);
        if (--wanted === 0) break;
      }
    })().catch(lost);
    await sleep(20 + Math.random() * 100);`,
};

/** What happens then, and how the process has to end. */
const ENDS: Record<string, { action: string; expected: Partial<Outcome> }> = {
  'process.exit': { action: 'act(); process.exit(7);', expected: { code: 7, signal: null } },
  'an uncaught throw': {
    action: 'act(); setImmediate(() => { throw new Error("on purpose"); });',
    expected: { code: 1, signal: null },
  },
  'an unhandled rejection': {
    action: 'act(); setImmediate(() => { Promise.reject(new Error("on purpose")); });',
    expected: { code: 1, signal: null },
  },
  SIGINT: { action: 'act(); process.kill(process.pid, "SIGINT");', expected: { code: null, signal: 'SIGINT' } },
  SIGTERM: { action: 'act(); process.kill(process.pid, "SIGTERM");', expected: { code: null, signal: 'SIGTERM' } },
  'the end of the worker': {
    action: 'act(); wanted = Infinity; await Promise.all(workers.map((worker) => worker.terminate())); await done;',
    expected: { code: 0, signal: null, stderr: '' },
  },
  'its natural end': { action: 'await done; act();', expected: { code: 0, signal: null, stderr: '' } },
};

const LOST = `
let wanted = 50; // chunks; what has come before a worker's end is handed out before its loss, and may be as many
function lost(error) {
  if (error.code !== 'ERR_WORKER_LOST') throw error;
  process.stdout.write('lost\\n');
}`;

const cases = Object.keys(STAGES).flatMap((stage) => Object.keys(ENDS).map((end) => [stage, end] as const));

const rounds = (some: typeof cases): typeof cases =>
  ROUNDS < 1 ? some.filter((_, i) => i % 2 === 0) : Array.from({ length: ROUNDS }, () => some).flat();

test('a model in a worker: every end at every stage', async () => {
  const all = rounds(cases);
  let slowest = 0;
  await twoAtATime(all.length, async (i) => {
    const [stage, end] = all[i] as (typeof cases)[number];
    const { action, expected } = ENDS[end] as (typeof ENDS)[string];
    const outcome = await runScript(`${LOST} (async () => { ${STAGES[stage]} ${action} })();`);
    const { ms } = outcome;
    expect({ stage, end, ...outcome }).toMatchObject({ stage, end, ...expected });
    expect({ stage, end, inTime: ms < LIMIT_MS, ms }).toMatchObject({ inTime: true });
    // Whoever waited was told. Nobody did for a model that was idle, or whose load had ended before.
    const [told, loaded] = [outcome.stdout.includes('lost\n'), outcome.stdout.includes('loaded\n')];
    const waited = stage !== 'idle' && !loaded;
    expect({ stage, end, told }).toEqual({ stage, end, told: end === 'the end of the worker' && waited });
    slowest = Math.max(slowest, ms);
  });
  console.log(`${all.length} ends of a process, none by a crash; the slowest took ${slowest} ms`);
}, 1_200_000);

test('the same with the model in the main thread', async () => {
  const all = rounds(cases.filter(([, end]) => end !== 'the end of the worker'));
  let slowest = 0;
  await twoAtATime(all.length, async (i) => {
    const [stage, end] = all[i] as (typeof cases)[number];
    const { action, expected } = ENDS[end] as (typeof ENDS)[string];
    const script = (STAGES[stage] as string).replaceAll('load()', "load({ thread: 'main' })");
    const outcome = await runScript(`${LOST} (async () => { ${script} ${action} })();`);
    expect({ stage, end, ...outcome }).toMatchObject({ stage, end, ...expected });
    expect({ stage, end, inTime: outcome.ms < LIMIT_MS }).toMatchObject({ inTime: true });
    slowest = Math.max(slowest, outcome.ms);
  });
  console.log(`${all.length} ends of a process, none by a crash; the slowest took ${slowest} ms`);
}, 1_200_000);

test('a crash would be seen', async () => {
  const outcome = await runScript(`(async () => { ${STAGES.generating} act(); process.abort(); })(); ${LOST}`);
  expect(outcome).toMatchObject({ code: null, signal: 'SIGABRT' });
});
