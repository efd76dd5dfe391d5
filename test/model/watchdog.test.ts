// A step that never ends is noticed at its deadline, and not before; what only comes late is not mistaken for it.
import { MlaError } from '../../lib/errors';
import { Watchdog } from '../../lib/model/watchdog';

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
const never = () => new Promise<void>(() => {});

function codeOf(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => 'resolved',
    (error) => (error instanceof MlaError ? error.code : error),
  );
}

test('what never ends is given up at the deadline, within 10 %', async () => {
  const late: number[] = []; // than a timer of the same length, which busy processors delay as well
  for (const limit of [200, 500, 1000]) {
    let told = 0;
    const watchdog = new Watchdog(limit, () => told++);
    const began = performance.now();
    const timer = sleep(limit).then(() => performance.now() - began);
    const codes = await Promise.all([codeOf(watchdog.watch(never())), codeOf(watchdog.watch(never()))]);
    const ms = performance.now() - began;
    const due = await timer;
    expect(codes).toEqual(['ERR_DEVICE_LOST', 'ERR_DEVICE_LOST']);
    expect(told).toBe(1);
    expect(ms).toBeGreaterThan(0.9 * limit);
    expect(ms - due).toBeLessThan(0.1 * limit);
    late.push(Math.round(ms - due));
  }
  console.log(`deadlines of 200, 500 and 1000 ms: ${late.join(', ')} ms later than a timer`);
});

test('the deadline counts from the last end: a hundred steps one after the other may take longer in all', async () => {
  const watchdog = new Watchdog(300, () => {
    throw new Error('given up');
  });
  let before = watchdog.watch(sleep(20));
  for (let i = 0; i < 50; i++) {
    const next = watchdog.watch(before.then(() => sleep(20)));
    await before;
    before = next;
  }
  await before;
  // nothing is watched now, so nothing is overdue
  await sleep(400);
  expect(await codeOf(watchdog.watch(Promise.reject(new MlaError('ERR_STATE', 'its own failure'))))).toBe('ERR_STATE');
});

test('an event loop that was held up hears first what has ended meanwhile', async () => {
  const watchdog = new Watchdog(100, () => {
    throw new Error('given up');
  });
  const watched = watchdog.watch(sleep(50));
  const end = performance.now() + 300;
  while (performance.now() < end);
  await watched;
});

test('0 waits for ever', async () => {
  const watchdog = new Watchdog(0, () => {});
  const watched = codeOf(watchdog.watch(never()));
  expect(await Promise.race([watched, sleep(300).then(() => 'still waiting')])).toBe('still waiting');
});

test('who watches several is told once: of the first failure, or of a hang, whatever comes later', async () => {
  const watchdog = new Watchdog(50, () => {});
  const told: unknown[] = [];
  const tell = (...works: Promise<unknown>[]) =>
    watchdog.tell(
      works,
      (values) => told.push(values),
      (error) => told.push(error),
    );
  const wrong = (code: 'ERR_STATE' | 'ERR_INTERNAL') => Promise.reject(new MlaError(code, 'its own failure'));
  tell(Promise.resolve(1), wrong('ERR_STATE'), wrong('ERR_INTERNAL'), Promise.resolve(2));
  await sleep(20);
  expect(told).toMatchObject([{ code: 'ERR_STATE' }]);
  tell(sleep(150), sleep(200));
  await sleep(300);
  expect(told).toMatchObject([{ code: 'ERR_STATE' }, { code: 'ERR_DEVICE_LOST' }]);
  tell(Promise.resolve(3), Promise.resolve(4));
  await sleep(0);
  expect(told.at(-1)).toEqual([3, 4]);
});
