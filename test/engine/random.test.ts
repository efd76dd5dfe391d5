// Random load, seeded: requests that finish, abort, leave, dawdle and score, on too few places and pages, with and
// without failing steps. Each ends exactly once and as it should, and nothing is left behind.
import { MlaError } from '../../lib/errors';
import { expectedTokens } from './fake-model';
import { makeModel } from './make-model';
import { randomBelow, turns } from './random-load';

type End = 'whole' | 'aborted' | 'left' | 'failed' | 'scored';

async function load(seed: number, requests: number, failing: boolean) {
  const random = randomBelow(seed);
  const { model, fake } = makeModel({ text: null, context: 512, maxSequences: 4, pages: 12, prefillChunk: 48 });
  const turn = fake.gate;
  const broken = new MlaError('ERR_BACKEND', 'a bad step');
  if (failing) {
    fake.gate = async (index) => {
      await turn(index);
      if (index % 61 === 60) throw broken;
    };
  }
  const abortReason = new Error('aborted');

  const one = async (i: number): Promise<End> => {
    const prompt = Array.from({ length: 1 + random(150) }, () => random(256));
    const options = { maxTokens: 1 + random(200), seed: i, ignoreEos: true };
    const expected = expectedTokens(prompt, options);
    const behaviour = random(6);
    await turns(random(400));
    if (behaviour === 0) {
      const { tokens } = await model.score(prompt);
      expect(tokens).toEqual(prompt);
      return 'scored';
    }
    const controller = new AbortController();
    const generation = model.generate(prompt, { ...options, signal: controller.signal });
    const received: number[] = [];
    try {
      if (behaviour === 1) {
        void turns(random(200)).then(() => controller.abort(abortReason));
        received.push(...(await generation.result).tokens);
      } else if (behaviour <= 3) {
        received.push(...(await generation.result).tokens);
      } else {
        const leaveAt = behaviour === 4 ? random(100) : Number.POSITIVE_INFINITY;
        const pause = 1 + random(6);
        for await (const { tokens } of generation) {
          received.push(...tokens);
          if (received.length > leaveAt) break;
          await turns(random(pause));
        }
      }
    } catch (error) {
      expect(expected.slice(0, received.length)).toEqual(received);
      if (error === abortReason) return 'aborted';
      expect(error).toBe(broken);
      expect(failing).toBe(true);
      return 'failed';
    }
    if (received.length < expected.length) {
      expect(expected.slice(0, received.length)).toEqual(received);
      return 'left';
    }
    expect(received).toEqual(expected);
    return 'whole';
  };

  const ends = await Promise.all(Array.from({ length: requests }, (_, i) => one(i)));
  await turns(4);
  expect(await model.stats()).toMatchObject({ running: 0, waiting: 0, stepsInFlight: 0 });
  expect({ open: fake.open.size, pages: fake.pagesHeld }).toEqual({ open: 0, pages: 0 });
  expect(fake.maxStepsInFlight).toBeLessThanOrEqual(2);
  const count = (end: End) => ends.filter((other) => other === end).length;
  return { ends, count, fake };
}

test.each([1, 2, 3, 4])('seed %i: every request ends once, whole unless it was told to stop', async (seed) => {
  const { count, fake } = await load(seed, 150, false);
  expect(count('whole') + count('aborted') + count('left') + count('scored')).toBe(150);
  expect(count('whole')).toBeGreaterThan(50);
  for (const end of ['aborted', 'left', 'scored'] as const) expect(count(end)).toBeGreaterThan(3);
  expect(fake.refusals).toBeGreaterThan(5); // pages did run out
});

test.each([5, 6])('seed %i, with failing steps: nobody gets wrong tokens', async (seed) => {
  const { count } = await load(seed, 150, true);
  expect(count('failed')).toBeGreaterThan(10);
  expect(count('whole')).toBeGreaterThan(10);
});
