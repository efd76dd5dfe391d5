// The engine on the model of the package, on the CPU: the event loop stays free, memory stays, texts stay the same.
import { loadModel } from '../../lib/engine';
import { bundledBook, companyLoad } from '../engine/company-load';
import { growth, loopDelay, sameTexts, withModel } from '../engine/real-load';

const MIB = 2 ** 20;

test('the event loop waits less than 50 ms (p99) while 16 texts are made', async () => {
  const delay = await loopDelay(200);
  console.log(`event loop delay: ${JSON.stringify(delay)} ms`);
  expect(delay.p99).toBeLessThan(50);
});

test('control: work of 60 ms on the event loop is seen', async () => {
  const block = () => {
    const end = performance.now() + 60;
    while (performance.now() < end);
  };
  expect((await loopDelay(400, block)).p99).toBeGreaterThan(50); // far longer than the 100 ms between two of them
});

test('500 prompts: alone, in company and streamed, the same texts', async () => {
  console.log(JSON.stringify(await sameTexts(500)));
});

test('500 requests, deterministic: in company, after hits and preemptions, the bits that they have alone', async () => {
  const figures = await companyLoad(
    (options) => loadModel(undefined, { device: 'cpu', ...options }),
    bundledBook(),
    500,
    true,
  );
  console.log(JSON.stringify(figures));
  expect(figures).toMatchObject({ requests: 500, otherTokens: 0, otherBits: 0 });
  expect(figures.cachedTokens).toBeGreaterThan(5000);
  expect(figures.preemptions).toBeGreaterThan(50);
});

test('10,000 sequences leave less than 8 MiB', async () => {
  await withModel({}, async (model) => {
    const left = await growth(10_000, 10_000, async (i) => {
      const sequence = await model.createSequence();
      if (i % 10 === 0) await sequence.append([1 + (i % 50), 2, 3]);
      const fork = await sequence.fork();
      await sequence.dispose();
      await fork.dispose();
    });
    console.log(`10,000 sequences: ${(left / MIB).toFixed(2)} MiB`);
    expect(left).toBeLessThan(8 * MIB);
    expect((await model.stats()).pages.held).toBe(0);
  });
});

test('control: sequences whose pages and tokens stay are seen', async () => {
  const kept: unknown[] = [];
  const left = await growth(10_000, 100, async () => {
    kept.push(new Array(300).fill(kept.length));
  });
  expect(left).toBeGreaterThan(8 * MIB);
});

test('200 models leave less than 8 MiB', async () => {
  const left = await growth(200, 20, async () => {
    const model = await loadModel(undefined, { device: 'cpu', context: 128, maxSequences: 1, threads: 1 });
    await model.generate([1, 2], { maxTokens: 1 }).result;
    await model.dispose();
  });
  console.log(`200 models: ${(left / MIB).toFixed(2)} MiB`);
  expect(left).toBeLessThan(8 * MIB);
});
