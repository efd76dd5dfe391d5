// Who is in the batch: steps shared by all, prompts in chunks, two steps in flight, places and pages that run out.
import { MlaError } from '../../lib/errors';
import { expectedTokens } from './fake-model';
import { EOS, makeModel, rejection } from './make-model';

const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await new Promise<void>((resolve) => setImmediate(resolve));
};

/** Prompts of different lengths, all different. */
const prompts = (count: number) =>
  Array.from({ length: count }, (_, i) => Array.from({ length: 1 + ((i * 37) % 90) }, (_, k) => (i * 7 + k) % 256));

test('8 generations at once share their steps, and each is as if it were alone', async () => {
  const { model, fake } = makeModel();
  const all = prompts(8);
  const results = await Promise.all(
    all.map((prompt, i) => model.generate(prompt, { maxTokens: 40 + i, seed: i, ignoreEos: true }).result),
  );
  for (const [i, { tokens }] of results.entries()) {
    expect(tokens).toEqual(expectedTokens(all[i] as number[], { maxTokens: 40 + i, seed: i }));
  }
  expect(fake.steps[0]?.entries).toHaveLength(8);
  expect(fake.steps.length).toBeLessThan(50);
  expect(fake.maxStepsInFlight).toBe(2);
  expect(fake.open.size).toBe(0);
});

test('more requests than places wait their turn, in order of arrival', async () => {
  const { model, fake } = makeModel({ maxSequences: 3 });
  const all = prompts(20);
  const ended: number[] = [];
  await Promise.all(
    all.map(async (prompt, i) => {
      const { tokens } = await model.generate(prompt, { maxTokens: 10, seed: i, ignoreEos: true }).result;
      ended.push(i);
      expect(tokens).toEqual(expectedTokens(prompt, { maxTokens: 10, seed: i }));
    }),
  );
  expect(ended).toEqual(all.map((_, i) => i));
  expect(Math.max(...fake.steps.map(({ entries }) => entries.length))).toBe(3);
});

test('prompts go in chunks that share a budget, while others decode', async () => {
  const { model, fake } = makeModel({ prefillChunk: 16 });
  const short = model.generate([1], { maxTokens: 30, ignoreEos: true });
  await short[Symbol.asyncIterator]().next();
  const before = fake.steps.length;
  const long = Array.from({ length: 50 }, (_, i) => i);
  const results = await Promise.all(
    [long, long.slice(0, 20)].map(
      (prompt) => model.generate(prompt, { maxTokens: 3, seed: 5, ignoreEos: true }).result,
    ),
  );
  expect(results[0]?.tokens).toEqual(expectedTokens(long, { maxTokens: 3, seed: 5 }));
  expect(results[1]?.tokens).toEqual(expectedTokens(long.slice(0, 20), { maxTokens: 3, seed: 5 }));
  const chunks = fake.steps.slice(before).map(({ entries }) => entries.filter(([id]) => id > 0));
  const sums = chunks.map((entries) => entries.reduce((sum, [, n]) => sum + (n === 'decode' ? 0 : n), 0));
  expect(sums.filter((sum) => sum > 0)).toEqual([16, 16, 16, 16, 6]);
  for (const { entries } of fake.steps.slice(before, before + 5)) expect(entries[0]).toEqual([0, 'decode']);
});

test('a step is enqueued ahead, and none beyond what maxTokens needs', async () => {
  const { model, fake } = makeModel();
  await model.generate([1, 2], { maxTokens: 6, ignoreEos: true }).result;
  expect(fake.steps.map(({ entries }) => entries)).toEqual([
    [[0, 2]],
    ...Array.from({ length: 5 }, () => [[0, 'decode']]),
  ]);
  expect(fake.maxStepsInFlight).toBe(2);
});

test('nothing follows a stop token, although a step was in flight behind it', async () => {
  const { model, fake } = makeModel();
  const all = expectedTokens([1], { maxTokens: 30 });
  const stop = all[7] as number;
  const { tokens, finishReason } = await model.generate([1], { maxTokens: 30, seed: 0, stopTokens: [stop] }).result;
  expect(tokens).toEqual(all.slice(0, all.indexOf(stop) + 1));
  expect(finishReason).toBe('stop');
  expect(fake.steps.length).toBe(tokens.length + 1);
  await turns(3);
  expect(await model.stats()).toMatchObject({ running: 0, waiting: 0, stepsInFlight: 0 });
});

test('end-of-text ids are on by default and off with ignoreEos', async () => {
  const next = () => EOS;
  const { model } = makeModel({ next });
  expect((await model.generate([1], { maxTokens: 5 }).result).tokens).toEqual([EOS]);
  expect((await model.generate([1], { maxTokens: 5, ignoreEos: true }).result).tokens).toHaveLength(5);
});

describe('when pages run out', () => {
  test('the youngest gives way and all finish with the same tokens', async () => {
    const { model, fake } = makeModel({ pages: 8, context: 512, maxSequences: 8 });
    const all = prompts(12);
    const results = await Promise.all(
      all.map((prompt, i) => model.generate(prompt, { maxTokens: 150, seed: i, ignoreEos: true }).result),
    );
    for (const [i, { tokens }] of results.entries()) {
      expect(tokens).toEqual(expectedTokens(all[i] as number[], { maxTokens: 150, seed: i }));
    }
    expect(fake.refusals).toBeGreaterThan(3);
    expect(fake.open.size).toBe(0);
  });

  test('a request that cannot fit alone fails with ERR_NO_PAGES, the next one runs', async () => {
    const { model } = makeModel({ pages: 2, context: 512 });
    const long = Array.from({ length: 200 }, () => 1);
    expect(await rejection(model.generate(long).result)).toMatchObject({ code: 'ERR_NO_PAGES' });
    expect((await model.generate([1], { maxTokens: 5, ignoreEos: true }).result).tokens).toHaveLength(5);
  });
});

describe('when a step fails', () => {
  test('its requests fail, those outside it start again and finish as they should', async () => {
    const { model, fake } = makeModel({ prefillChunk: 8 });
    const turn = fake.gate;
    const paused = model.generate([9], { maxTokens: 200, seed: 9, ignoreEos: true });
    const iterator = paused[Symbol.asyncIterator]();
    const first = await iterator.next();
    await turns(200); // far behind now, so in no step
    const failAt = fake.steps.length + 5;
    fake.gate = async (index) => {
      await turn(index);
      if (index === failAt) throw new MlaError('ERR_BACKEND', 'one bad step');
    };
    const error = await rejection(model.generate([1], { maxTokens: 50, ignoreEos: true }).result);
    expect(error).toMatchObject({ code: 'ERR_BACKEND' });
    const rest = [...(first.value?.tokens ?? [])];
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) rest.push(...next.value.tokens);
    expect(rest).toEqual(expectedTokens([9], { maxTokens: 200, seed: 9 }));
    const after = await model.generate([2], { maxTokens: 10, seed: 2, ignoreEos: true }).result;
    expect(after.tokens).toEqual(expectedTokens([2], { maxTokens: 10, seed: 2 }));
  });

  test('a step that throws fails its requests and no later ones', async () => {
    const { model, fake } = makeModel();
    fake.refuse = (index) => {
      if (index === 4) {
        fake.refuse = () => {};
        throw new MlaError('ERR_BACKEND', 'refused');
      }
    };
    expect(await rejection(model.generate([1], { ignoreEos: true }).result)).toMatchObject({ code: 'ERR_BACKEND' });
    expect((await model.generate([2], { maxTokens: 4, ignoreEos: true }).result).tokens).toHaveLength(4);
    expect(fake.open.size).toBe(0);
  });
});

describe('score', () => {
  test('shifts nothing: index 0 is null, alternatives stand with the token they compete with', async () => {
    const { model } = makeModel();
    const { tokens, logprobs, top, logits } = await model.score('abc', { top: 2, logits: true });
    expect(tokens).toEqual([...Buffer.from('abc')]);
    expect(logprobs).toEqual([null, -1, -2]);
    expect(top[0]).toBeNull();
    expect(top[2]).toEqual([
      { id: 0, logprob: -1 },
      { id: 1, logprob: -2 },
    ]);
    expect(logits).toHaveLength(300);
    expect((await model.score([1])).logits).toBeNull();
  });

  test('takes a place in turn and gives it back', async () => {
    const { model } = makeModel({ maxSequences: 1 });
    const order: string[] = [];
    const first = model.generate([1], { maxTokens: 5, ignoreEos: true }).result.then(() => order.push('first'));
    await turns(1);
    await Promise.all([first, model.score([1, 2]).then(() => order.push('score'))]);
    expect(order).toEqual(['first', 'score']);
    expect(await model.stats()).toMatchObject({ running: 0, waiting: 0, stepsInFlight: 0 });
  });

  test('refuses what does not fit, and an abort while waiting rejects with the reason', async () => {
    const { model } = makeModel({ maxSequences: 1, context: 64 });
    expect(await rejection(model.score(Array.from({ length: 65 }, () => 1)))).toMatchObject({
      code: 'ERR_CONTEXT_LENGTH',
    });
    expect(await rejection(model.score([]))).toMatchObject({ code: 'ERR_INVALID_ARG' });
    const running = model.generate([1], { maxTokens: 20, ignoreEos: true }).result;
    await turns(1);
    const controller = new AbortController();
    const scored = model.score([1, 2], { signal: controller.signal });
    await turns(2);
    controller.abort(new Error('enough'));
    expect(await rejection(scored)).toMatchObject({ message: 'enough' });
    await running;
  });
});

test('10,000 steps leave nothing behind in the engine', async () => {
  const { model, fake } = makeModel({ maxSequences: 4 });
  fake.gate = async () => {};
  for (let i = 0; i < 50; i++) {
    await Promise.all(
      prompts(8).map((prompt, k) => {
        const controller = new AbortController();
        const { result } = model.generate(prompt, { maxTokens: 100, seed: k, signal: controller.signal });
        if (k % 3 === 0) setImmediate(() => controller.abort());
        return result.catch(() => {});
      }),
    );
    expect(fake.open.size).toBe(0);
    expect(await model.stats()).toMatchObject({ running: 0, waiting: 0, stepsInFlight: 0 });
  }
  expect(fake.steps.length).toBeGreaterThan(5_000);
});
