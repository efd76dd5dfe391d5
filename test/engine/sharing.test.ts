// Texts that share the cache, as users see it: prompts that begin alike, several completions, sequences that go on, fork
// and are saved. The fake computes tokens from what stands in the shared pages, so a wrong row is a wrong text.
import type { Sequence } from '../../lib/engine/api';
import { expectedTokens } from './fake-model';
import { EOS, makeModel, rejection, saying } from './make-model';
import { turns } from './random-load';

const ids = (length: number, seed = 1) => Array.from({ length }, (_, i) => (i * 31 + seed * 17) % 256);
const OPTIONS = { maxTokens: 20, seed: 4, ignoreEos: true };
const expectTokens = (tokens: readonly number[], prompt: readonly number[], options = OPTIONS) =>
  expect(tokens).toEqual(expectedTokens(prompt, options));

describe('prompts that begin alike', () => {
  test('the second computes only what differs', async () => {
    const { model } = makeModel();
    const shared = ids(300);
    const first = await model.generate([...shared, 1], OPTIONS).result;
    expect(first.usage).toMatchObject({ promptTokens: 301, cachedTokens: 0 });
    const second = await model.generate([...shared, 2], OPTIONS).result;
    expect(second.usage).toMatchObject({ promptTokens: 301, cachedTokens: 256 });
    expectTokens(first.tokens, [...shared, 1]);
    expectTokens(second.tokens, [...shared, 2]);
    expect(await model.stats()).toMatchObject({ promptTokens: 301 + 45, cachedTokens: 256 });
  });

  test('at the same time too: the first is computed, the others wait for no more than their turn', async () => {
    const { model, fake } = makeModel({ prefillChunk: 64 });
    const shared = ids(256);
    const results = await Promise.all(
      Array.from({ length: 6 }, (_, i) => model.generate([...shared, i], { ...OPTIONS, seed: i }).result),
    );
    for (const [i, { tokens }] of results.entries()) expectTokens(tokens, [...shared, i], { ...OPTIONS, seed: i });
    expect((await model.stats()).promptTokens).toBe(257 + 5);
    expect(fake.pool.stats()).toMatchObject({ held: 0, cached: 4 });
  });

  test('a conversation finds its own beginning, what the model said included', async () => {
    const { model } = makeModel();
    const prompt = ids(50);
    const { tokens } = await model.generate(prompt, { ...OPTIONS, maxTokens: 100 }).result;
    const { usage } = await model.generate([...prompt, ...tokens, 3], OPTIONS).result;
    expect(usage).toMatchObject({ promptTokens: 151, cachedTokens: 128 });
  });

  test('not with other salts, and not without the cache', async () => {
    const { model } = makeModel();
    const shared = ids(200);
    await model.generate(shared, { ...OPTIONS, cacheSalt: 'a' }).result;
    expect((await model.generate(shared, { ...OPTIONS, cacheSalt: 'b' }).result).usage.cachedTokens).toBe(0);
    expect((await model.generate(shared, { ...OPTIONS, cacheSalt: 'a' }).result).usage.cachedTokens).toBe(192);
    const without = makeModel({ prefixCache: false });
    for (let i = 0; i < 2; i++) {
      expect((await without.model.generate(shared, OPTIONS).result).usage.cachedTokens).toBe(0);
    }
  });

  test('what is cached gives way to what runs', async () => {
    const { model, fake } = makeModel({ pages: 8, context: 512 });
    for (let i = 0; i < 10; i++) {
      const prompt = ids(250, i);
      expectTokens((await model.generate(prompt, OPTIONS).result).tokens, prompt);
    }
    expect(fake.refusals).toBe(0);
    expect(fake.pool.stats()).toMatchObject({ total: 8, held: 0 });
  });
});

describe('complete', () => {
  test('n completions of one prompt that is computed once, each with its seed', async () => {
    const { model, fake } = makeModel();
    const prompt = ids(100);
    const results = await model.complete(prompt, { ...OPTIONS, n: 5 });
    expect(results.map(({ settings }) => settings.seed)).toEqual([4, 5, 6, 7, 8]);
    for (const { tokens, settings } of results) expectTokens(tokens, prompt, { ...OPTIONS, seed: settings.seed });
    expect(results.map(({ usage }) => usage.cachedTokens)).toEqual(new Array(5).fill(99));
    expect(await model.stats()).toMatchObject({ promptTokens: 100 + 5 });
    expect(fake.pool.stats().held).toBe(0);
  });

  test('one is a whole generation', async () => {
    const { model } = makeModel({ next: saying('done', 1) });
    const [result, ...others] = await model.complete([1]);
    expect(result).toMatchObject({ text: 'done', finishReason: 'stop', stoppedBy: EOS });
    expect(others).toEqual([]);
  });

  test.each([1, 3])('an abort ends all %i', async (n) => {
    const { model, fake } = makeModel();
    const controller = new AbortController();
    const reason = new Error('enough');
    const completed = model.complete(ids(70), { ...OPTIONS, maxTokens: 500, n, signal: controller.signal });
    await turns(20);
    controller.abort(reason);
    expect(await rejection(completed)).toBe(reason);
    await turns(3);
    expect(fake.pool.stats().held).toBe(0);
    const stats = await model.stats();
    expect(stats.accepted).toBe(stats.completed + stats.aborted + stats.failed);
  });

  test('refuses a wrong n and a prompt that leaves no room', async () => {
    const { model } = makeModel({ context: 64 });
    for (const n of [0, -1, 1.5, 65, '2', null]) {
      expect(await rejection(model.complete([1], { n: n as number }))).toMatchObject({ code: 'ERR_INVALID_ARG' });
    }
    expect(await rejection(model.complete(ids(64), { n: 2 }))).toMatchObject({ code: 'ERR_CONTEXT_LENGTH' });
    expect((await model.stats()).accepted).toBe(0);
  });
});

describe('sequences', () => {
  const settle = async (sequence: Sequence, prompt: readonly number[], options = OPTIONS) =>
    (await sequence.generate(prompt, options).result).tokens;

  test('go on where they were', async () => {
    const { model, fake } = makeModel();
    const sequence = await model.createSequence();
    let all: number[] = [];
    for (let turn = 0; turn < 4; turn++) {
      const prompt = ids(40, turn);
      const { tokens, usage } = await sequence.generate(prompt, OPTIONS).result;
      expectTokens(tokens, [...all, ...prompt]);
      // all but the token sampled last was in the cache
      expect(usage.cachedTokens).toBe(Math.max(0, all.length - 1));
      all = [...all, ...prompt, ...tokens];
      expect(sequence.tokens).toEqual(all);
      expect(sequence.cachedTokens).toBe(all.length - 1);
    }
    expect(fake.pool.stats().held).toBeGreaterThan(0);
    await sequence.dispose();
    expect(fake.pool.stats().held).toBe(0);
  });

  test('append brings a text into the cache; texts go on without BOS', async () => {
    const { model } = makeModel();
    const sequence = await model.createSequence();
    await sequence.append('abc');
    expect(sequence.cachedTokens).toBe(3);
    await sequence.append('def');
    expect(sequence.tokens).toEqual([...Buffer.from('abcdef')]);
    expectTokens(await settle(sequence, []), [...Buffer.from('abcdef')]);
  });

  test('a fork shares pages and goes its own way', async () => {
    const { model, fake } = makeModel();
    const sequence = await model.createSequence();
    const prompt = ids(100);
    await sequence.append(prompt);
    const before = fake.pool.stats().held;
    const forks = await Promise.all(Array.from({ length: 4 }, () => sequence.fork()));
    expect(fake.pool.stats().held).toBe(before);
    const texts = await Promise.all(forks.map((fork, i) => settle(fork, [i], { ...OPTIONS, seed: i })));
    for (const [i, tokens] of texts.entries()) expectTokens(tokens, [...prompt, i], { ...OPTIONS, seed: i });
    expectTokens(await settle(sequence, [9]), [...prompt, 9]);
    for (const one of [sequence, ...forks]) await one.dispose();
    expect(fake.pool.stats().held).toBe(0);
  });

  test('an abort or a failure leaves them as they were', async () => {
    const { model, fake } = makeModel();
    const sequence = await model.createSequence();
    await sequence.append(ids(70));
    const [tokens, cached, held] = [sequence.tokens, sequence.cachedTokens, fake.pool.stats().held];
    for await (const _ of sequence.generate([1], { ...OPTIONS, maxTokens: 300 })) break;
    const controller = new AbortController();
    const { result } = sequence.generate([1], { ...OPTIONS, maxTokens: 300, signal: controller.signal });
    await turns(10);
    controller.abort(new Error('stop'));
    expect(await rejection(result)).toMatchObject({ message: 'stop' });
    await turns(3);
    expect([sequence.tokens, sequence.cachedTokens, fake.pool.stats().held]).toEqual([tokens, cached, held]);
    expectTokens(await settle(sequence, [1]), [...tokens, 1]);
  });

  test('one generation at a time, and none after dispose', async () => {
    const { model } = makeModel();
    const sequence = await model.createSequence();
    const running = sequence.generate([1], { ...OPTIONS, maxTokens: 100 }).result;
    await turns(5);
    for (const busy of [sequence.generate([2]).result, sequence.append([2]), sequence.fork(), sequence.save('x')]) {
      expect(await rejection(busy)).toMatchObject({ code: 'ERR_STATE' });
    }
    await running;
    const last = sequence.generate([3], { ...OPTIONS, maxTokens: 200 }).result;
    await turns(5);
    await sequence.dispose();
    expect(await rejection(last)).toMatchObject({ code: 'ERR_DISPOSED' });
    expect(sequence.disposed).toBe(true);
    expect(() => sequence.generate([1])).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    for (const late of [sequence.append([2]), sequence.fork(), sequence.save('x')]) {
      expect(await rejection(late)).toMatchObject({ code: 'ERR_DISPOSED' });
    }
  });

  test('are saved and restored with their rows', async () => {
    const { model, fake } = makeModel();
    const sequence = await model.createSequence();
    await sequence.append(ids(100));
    await settle(sequence, []);
    await sequence.save('there');
    const { tokens, cachedTokens } = sequence;
    await sequence.dispose();
    const restored = await model.restore('there');
    expect([restored.tokens, restored.cachedTokens]).toEqual([tokens, cachedTokens]);
    const { usage, tokens: more } = await restored.generate([5], OPTIONS).result;
    expect(usage.cachedTokens).toBe(cachedTokens);
    expectTokens(more, [...tokens, 5]);
    await restored.dispose();
    expect(fake.pool.stats().held).toBe(0);
  });

  test('wrong arguments are refused and change nothing', async () => {
    const { model } = makeModel();
    const sequence = await model.createSequence();
    expect(await rejection(sequence.append([300]))).toMatchObject({ code: 'ERR_INVALID_ARG' });
    await sequence.append([]); // nothing is appended, and that is all
    expect(await rejection(sequence.generate([]).result)).toMatchObject({ code: 'ERR_INVALID_ARG' });
    expect(await rejection(sequence.append([1], { signal: 1 as never }))).toMatchObject({ code: 'ERR_INVALID_ARG' });
    expect(await rejection(sequence.save(''))).toMatchObject({ code: 'ERR_INVALID_ARG' });
    expect(await rejection(model.restore(5 as never))).toMatchObject({ code: 'ERR_INVALID_ARG' });
    for (const options of [{ maxTokens: 0 }, { signal: 1 }, null, 7, []]) {
      expect(() => sequence.generate([1], options as object)).toThrow(
        expect.objectContaining({ code: 'ERR_INVALID_ARG' }),
      );
    }
    expect(await rejection(sequence.append(ids(5000)))).toMatchObject({ code: 'ERR_CONTEXT_LENGTH' });
    expect(sequence.tokens).toEqual([]);
    await sequence.append([1]);
    expect(sequence.tokens).toEqual([1]);
  });
});
