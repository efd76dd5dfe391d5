// A step that does not end in time, on the CPU: a limit of a millisecond makes every long prompt one. All that is open
// ends with ERR_DEVICE_LOST, later calls at once, and neither dispose nor the end of the process waits for anything.
import { type Outcome, runScript } from './worker/child-script';

const script = (thread: string, end: string) => `(async () => {
  const model = await load({ thread: '${thread}', stepTimeout: 1, maxSequences: 8 });
  const prompt = Array.from({ length: 400 }, (_, i) => 1 + i);
  const code = (work) => work.then(() => 'none', (error) => error.code);
  const began = performance.now();
  const all = Array.from({ length: 12 }, () => code(model.generate(prompt, { maxTokens: 4 }).result));
  const codes = await Promise.all([...all, code(model.score(prompt))]);
  const heard = performance.now();
  const later = await code(model.generate([1, 2, 3], { maxTokens: 4 }).result);
  const refused = performance.now();
  const { accepted, failed } = await model.stats();
  console.log(JSON.stringify({ codes, later, hearMs: heard - began, refuseMs: refused - heard, accepted, failed }));
  act();
  ${end}
})();`;

test.each([
  ['main', 'await model.dispose();'],
  ['worker', 'await model.dispose();'],
  ['main', 'process.exit(0);'],
  ['main', ''],
])('a hung step, %s thread, then "%s"', async (thread, end) => {
  const outcome: Outcome = await runScript(script(thread, end));
  expect(outcome).toMatchObject({ code: 0, signal: null, stderr: '' });
  const { codes, later, hearMs, refuseMs, accepted, failed } = JSON.parse(outcome.stdout);
  expect(new Set(codes)).toEqual(new Set(['ERR_DEVICE_LOST']));
  expect(later).toBe('ERR_DEVICE_LOST');
  expect(accepted).toBe(failed);
  expect(outcome.ms).toBeLessThan(2000);
  console.log(
    `${thread}, "${end}": ${codes.length} ended after ${hearMs.toFixed(0)} ms, the next was refused in ${refuseMs.toFixed(1)} ms, the process left in ${outcome.ms} ms`,
  );
});

test('control: the same limit does not hurt steps that keep it', async () => {
  const outcome = await runScript(
    `(async () => {
      const model = await load({ thread: 'main', stepTimeout: 60000 });
      const { tokens } = await model.generate([1, 2, 3], { maxTokens: 4, ignoreEos: true }).result;
      await model.dispose();
      console.log(tokens.length);
    })();`,
  );
  expect(outcome).toMatchObject({ code: 0, stdout: '4\n', stderr: '' });
});
