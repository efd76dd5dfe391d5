// Long runs of the engine on the model without mathematics: what test/engine/pressure.test.ts does in short, with its
// controls. Every run prints what it did.
import { abortLoad, STAGES } from '../engine/abort-load';
import { pageLoad } from '../engine/page-load';
import { preemptionLoad } from '../engine/preemption-load';

test('100,000 random operations over 10 seeds: every page is accounted for after each', async () => {
  let preemptions = 0;
  for (let seed = 1; seed <= 10; seed++) {
    const figures = await pageLoad(seed, 10_000);
    console.log(`seed ${seed}: ${JSON.stringify(figures)}`);
    preemptions += figures.preemptions;
  }
  expect(preemptions).toBeGreaterThan(1000);
});

test('200 requests in pages for 1.2 of them: at least 1000 preemptions, all finish as if alone', async () => {
  const figures = await preemptionLoad(200);
  console.log(JSON.stringify(figures));
  expect(figures).toMatchObject({ accepted: 200, completed: 200, aborted: 0, failed: 0 });
  expect(figures.preemptions).toBeGreaterThanOrEqual(1000);
  expect(figures.overtaken).toBeLessThanOrEqual(20);
});

test.each(STAGES)('aborted 1000 times, %s: pages are back at once and neighbours as they were', async (stage) => {
  const figures = await abortLoad(stage, 1000);
  console.log(JSON.stringify(figures));
  expect(figures.accepted).toBe(figures.completed + figures.aborted + figures.failed);
});
