// The engine under pressure, in short: the same loads run longer in test/soak. Each has a control, a seeded mistake that
// it must notice.
import { Engine } from '../../lib/engine/engine';
import { abortLoad, STAGES } from './abort-load';
import type { Made } from './make-model';
import { rejection } from './make-model';
import { pageLoad } from './page-load';
import { preemptionLoad } from './preemption-load';

test('3,000 random operations: every page is accounted for after each', async () => {
  const figures = await pageLoad(1, 3000);
  console.log(JSON.stringify(figures));
  expect(figures.finished).toBeGreaterThan(100);
  for (const name of ['aborted', 'forks', 'preemptions', 'reusedPages'] as const) {
    expect([name, figures[name]]).not.toEqual([name, 0]);
  }
});

/** Every hundredth release is forgotten. */
const leak = ({ fake }: Made) => {
  const { pool } = fake;
  const release = pool.release.bind(pool);
  let calls = 0;
  pool.release = (page) => {
    if (++calls % 100 !== 0) release(page);
  };
};

test('control: a page that is not released is noticed', async () => {
  expect(await rejection(pageLoad(1, 3000, leak))).toMatchObject({ message: expect.stringMatching(/references|held/) });
});

test('control: a page that is written although others hold it is noticed', async () => {
  const shareTooMuch = ({ fake }: Made) => {
    fake.pool.keepsContent = () => false;
    const references = fake.pool.references.bind(fake.pool);
    fake.pool.references = (page) => Math.min(1, references(page));
  };
  expect(await rejection(pageLoad(1, 3000, shareTooMuch))).toMatchObject({ message: expect.any(String) });
});

test('40 requests in pages for 1.2 of them: all finish as if alone', async () => {
  const figures = await preemptionLoad(40);
  console.log(JSON.stringify(figures));
  expect(figures).toMatchObject({ accepted: 40, completed: 40, failed: 0 });
  expect(figures.preemptions).toBeGreaterThan(100);
  expect(figures.overtaken).toBeLessThanOrEqual(20);
});

test('control: a request that starts again with a wrong last token is noticed', async () => {
  const engine = Engine.prototype as unknown as { evict(task: { input: readonly number[] }, place: string): void };
  const { evict } = engine;
  engine.evict = function (task, place) {
    evict.call(this, task, place);
    const last = task.input.at(-1) as number;
    if (task.input.length > 100) task.input = [...task.input.slice(0, -1), (last + 1) % 256];
  };
  try {
    expect(await rejection(preemptionLoad(20))).toMatchObject({ message: expect.stringMatching(/another text/) });
  } finally {
    engine.evict = evict;
  }
});

test.each(STAGES)('aborted 20 times, %s: pages are back at once and neighbours as they were', async (stage) => {
  const figures = await abortLoad(stage, 20);
  expect(figures.accepted).toBe(figures.completed + figures.aborted + figures.failed);
});

test('control: an abort that keeps its sequence is noticed', async () => {
  const engine = Engine.prototype as unknown as { cancel(task: object): void };
  const { cancel } = engine;
  engine.cancel = () => {};
  try {
    expect(await rejection(abortLoad('decoding', 1))).toMatchObject({ message: expect.stringMatching(/still taken/) });
  } finally {
    engine.cancel = cancel;
  }
});
