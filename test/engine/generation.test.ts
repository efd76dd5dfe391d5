// What a caller sees of a generation: chunks, result, one consumer, back-pressure, abort at every stage, failures.
import * as abortListeners from '../../lib/engine/abort-listeners';
import { MAX_UNREAD_CHUNKS } from '../../lib/engine/generation';
import type { Chunk } from '../../lib/engine/result';
import { MlaError } from '../../lib/errors';
import { expectedTokens } from './fake-model';
import { byteText, EOS, makeModel, rejection, saying } from './make-model';

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await turn();
};

async function collect(chunks: AsyncIterable<Chunk>): Promise<Chunk[]> {
  const all: Chunk[] = [];
  for await (const chunk of chunks) all.push(chunk);
  return all;
}

describe('chunks and result', () => {
  test('chunks joined are the result; the end-of-text token is a token and no text', async () => {
    const { model } = makeModel({ next: saying('In the beginning', 3) });
    const generation = model.generate('abc', { maxTokens: 100 });
    const chunks = await collect(generation);
    const result = await generation.result;
    expect(chunks.map(({ text }) => text).join('')).toBe('In the beginning');
    expect(result.text).toBe('In the beginning');
    expect(chunks.flatMap(({ tokens }) => tokens)).toEqual(result.tokens);
    expect(chunks.flatMap(({ logprobs }) => logprobs)).toEqual(result.logprobs);
    expect(result.tokens).toEqual([...Buffer.from('In the beginning'), EOS]);
    expect(result.logprobs).toEqual(result.tokens.map((id) => -id / 256));
    expect(result.finishReason).toBe('stop');
    expect(result.usage).toEqual({ promptTokens: 3, cachedTokens: 0, completionTokens: 17 });
  });

  test('no chunk holds half a character, and characters come as soon as they are whole', async () => {
    const said = 'aé€😀z';
    const { model } = makeModel({ next: saying(said, 1) });
    const chunks = await collect(model.generate([0]));
    expect(chunks.map(({ text }) => text)).toEqual(['a', 'é', '€', '😀', 'z', '']);
    expect(chunks.map(({ tokens }) => tokens.length)).toEqual([1, 2, 3, 4, 1, 1]);
  });

  test('what ends the text is a token of the result and not part of the text, a stop token too', async () => {
    const { model } = makeModel({ next: saying('one.two', 1) });
    const { text, tokens, finishReason } = await model.generate([1], { stopTokens: ['.'.charCodeAt(0)] }).result;
    expect({ text, finishReason }).toEqual({ text: 'one', finishReason: 'stop' });
    expect(tokens).toEqual([...Buffer.from('one.')]);
  });

  test('half a character at the end becomes U+FFFD, in chunks and in the result', async () => {
    const { model } = makeModel({ next: saying('x😀', 1) });
    const generation = model.generate([0], { maxTokens: 3 });
    const chunks = await collect(generation);
    expect(chunks.map(({ text }) => text)).toEqual(['x', '\uFFFD']);
    expect(chunks.map(({ tokens }) => tokens.length)).toEqual([1, 2]);
    expect((await generation.result).text).toBe('x\uFFFD');
    expect((await generation.result).finishReason).toBe('length');
  });

  test('without a tokenizer every token is a chunk and the text is empty; texts are refused', async () => {
    const { model } = makeModel({ text: null });
    const generation = model.generate([5, 6], { maxTokens: 4, seed: 3, temperature: 1 });
    const chunks = await collect(generation);
    expect(chunks.map(({ tokens }) => tokens.length)).toEqual([1, 1, 1, 1]);
    const { text, tokens } = await generation.result;
    expect(text).toBe('');
    expect(tokens).toEqual(expectedTokens([5, 6], { seed: 3, maxTokens: 4, stopIds: [EOS] }));
    expect(() => model.generate('text')).toThrow(expect.objectContaining({ code: 'ERR_TOKENIZER' }));
    expect(() => model.chat([{ role: 'user', content: 'x' }])).toThrow(
      expect.objectContaining({ code: 'ERR_TOKENIZER' }),
    );
  });

  test('the result comes without iterating, and the chunks can be read afterwards', async () => {
    const { model } = makeModel({ next: saying('y'.repeat(500), 1) });
    const generation = model.generate([1], { maxTokens: 400 });
    const result = await generation.result;
    expect(result.text).toBe('y'.repeat(400));
    expect((await collect(generation)).map(({ text }) => text).join('')).toBe(result.text);
  });

  test('nothing starts before the first next() or result', async () => {
    const { model, fake } = makeModel();
    const generation = model.generate([1], { maxTokens: 2 });
    const iterator = generation[Symbol.asyncIterator]();
    await turns(5);
    expect(fake.steps).toHaveLength(0);
    await iterator.next();
    expect(fake.steps.length).toBeGreaterThan(0);
    const other = makeModel();
    await other.model.generate([1], { maxTokens: 2 }).result;
    expect(other.fake.steps).toHaveLength(2);
  });

  test('timings add up, settings say what was used', async () => {
    const { model } = makeModel({ generationDefaults: { do_sample: true, temperature: 0.6, top_p: 0.95 } });
    const { timings, settings } = await model.generate([1, 2, 3], { maxTokens: 5, topK: 40 }).result;
    expect(timings.loadMs).toBe(12);
    expect(timings.ttftMs).toBeGreaterThanOrEqual(timings.prefillMs);
    expect(timings.prefillMs).toBeGreaterThan(0);
    expect(timings.decodeMs).toBeGreaterThan(0);
    expect(timings.prefillTokensPerSecond).toBeCloseTo(3000 / timings.prefillMs, 6);
    expect(timings.decodeTokensPerSecond).toBeCloseTo(4000 / timings.decodeMs, 6);
    expect(settings).toEqual({
      temperature: 0.6,
      topK: 40,
      topP: 0.95,
      minP: 0,
      seed: expect.any(Number),
      maxTokens: 5,
      minTokens: 0,
      stopTokens: [EOS],
      stop: [],
      repetitionPenalty: 1,
      presencePenalty: 0,
      frequencyPenalty: 0,
      logitBias: {},
      topLogprobs: 0,
      priority: 0,
    });
    const one = await model.generate([1], { maxTokens: 1 }).result;
    expect(one.timings.decodeTokensPerSecond).toBeNull();
  });

  test('chat gives the template what was said', async () => {
    const { model, fake } = makeModel();
    await model.chat([{ role: 'user', content: 'hi' }], { maxTokens: 1 }).result;
    expect(fake.steps[0]?.entries).toEqual([[0, 'user:hi;'.length]]);
  });
});

describe('one consumer', () => {
  test('a second iterator is refused, the first goes on', async () => {
    const { model } = makeModel({ next: saying('ok', 1) });
    const generation = model.generate([1]);
    const iterator = generation[Symbol.asyncIterator]();
    expect(() => generation[Symbol.asyncIterator]()).toThrow(expect.objectContaining({ code: 'ERR_STATE' }));
    expect((await iterator.next()).value?.text).toBe('o');
  });

  test('next() called several times at once is answered in order', async () => {
    const { model } = makeModel({ next: saying('abc', 1) });
    const iterator = model.generate([1])[Symbol.asyncIterator]();
    const answers = await Promise.all(Array.from({ length: 6 }, () => iterator.next()));
    expect(answers.map(({ value }) => value?.text)).toEqual(['a', 'b', 'c', '', undefined, undefined]);
    expect(answers.map(({ done }) => done)).toEqual([false, false, false, false, true, true]);
  });
});

describe('back-pressure', () => {
  test('a consumer that stops reading pauses its own generation only, and gets everything later', async () => {
    const { model, fake } = makeModel();
    const slow = model.generate([1], { maxTokens: 500, seed: 1 });
    const iterator = slow[Symbol.asyncIterator]();
    const first = await iterator.next();
    const other = await model.generate([2], { maxTokens: 300, seed: 2 }).result;
    expect(other.tokens).toEqual(expectedTokens([2], { maxTokens: 300, seed: 2, stopIds: [EOS] }));
    const stepsOfSlow = fake.steps.filter(({ entries }) => entries.some(([id]) => id === 0)).length;
    // bytes above 127 make few whole characters, so a chunk may hold several tokens; it is bounded all the same
    expect(stepsOfSlow).toBeLessThan(300);
    expect(fake.stepsInFlight).toBe(0);
    const rest: number[] = [...(first.value?.tokens ?? [])];
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) rest.push(...next.value.tokens);
    expect(rest).toEqual(expectedTokens([1], { maxTokens: 500, seed: 1, stopIds: [EOS] }));
  });

  test('unread chunks are bounded', async () => {
    const { model, fake } = makeModel({ text: null });
    const iterator = model.generate([1], { maxTokens: 1000 })[Symbol.asyncIterator]();
    await iterator.next();
    await turns(500);
    expect(fake.steps.length).toBeLessThanOrEqual(MAX_UNREAD_CHUNKS + 3);
    expect(fake.steps.length).toBeGreaterThanOrEqual(MAX_UNREAD_CHUNKS);
  });

  test('asking for the result lifts the pause', async () => {
    const { model } = makeModel({ text: null });
    const generation = model.generate([1], { maxTokens: 1000, seed: 9 });
    await generation[Symbol.asyncIterator]().next();
    await turns(200);
    expect((await generation.result).tokens).toEqual(expectedTokens([1], { maxTokens: 1000, seed: 9, stopIds: [EOS] }));
  });

  test('stalled consumers hold no place that others wait for', async () => {
    const { model } = makeModel({ text: null, maxSequences: 2 });
    const stalled = [1, 2].map((id) => model.generate([id], { maxTokens: 1000, seed: id })[Symbol.asyncIterator]());
    await Promise.all(stalled.map((iterator) => iterator.next()));
    await turns(300);
    const third = await model.generate([3], { maxTokens: 20, seed: 3 }).result;
    expect(third.tokens).toEqual(expectedTokens([3], { maxTokens: 20, seed: 3, stopIds: [EOS] }));
    for (const [i, iterator] of stalled.entries()) {
      let count = 1;
      while (!(await iterator.next()).done) count++;
      expect(count).toBe(expectedTokens([i + 1], { maxTokens: 1000, seed: i + 1, stopIds: [EOS] }).length);
    }
  });
});

describe('abort', () => {
  const reason = new Error('enough');

  test('before the start: no work, iterator and result reject with the reason', async () => {
    const { model, fake } = makeModel();
    const generation = model.generate([1], { signal: AbortSignal.abort(reason) });
    expect(await rejection(generation[Symbol.asyncIterator]().next())).toBe(reason);
    expect(await rejection(generation.result)).toBe(reason);
    expect(fake.steps).toHaveLength(0);
  });

  test('while the prompt is encoded', async () => {
    let encoded: (ids: number[]) => void = () => {};
    const text = { ...byteText, encodePrompt: () => new Promise<number[]>((resolve) => (encoded = resolve)) };
    const { model, fake } = makeModel({ text });
    const controller = new AbortController();
    const { result } = model.generate('x', { signal: controller.signal });
    controller.abort(reason);
    expect(await rejection(result)).toBe(reason);
    encoded([1]);
    await turns(3);
    expect(fake.steps).toHaveLength(0);
  });

  test('while it waits for a place', async () => {
    const { model, fake } = makeModel({ maxSequences: 1 });
    const running = model.generate([1], { maxTokens: 50, seed: 1 }).result;
    const controller = new AbortController();
    const { result } = model.generate([2], { signal: controller.signal });
    await turns(3);
    controller.abort(reason);
    expect(await rejection(result)).toBe(reason);
    expect((await running).tokens).toEqual(expectedTokens([1], { maxTokens: 50, seed: 1, stopIds: [EOS] }));
    expect(fake.steps.every(({ entries }) => entries.length === 1)).toBe(true);
    expect(await model.stats()).toMatchObject({ running: 0, waiting: 0, stepsInFlight: 0 });
  });

  test.each([
    ['during the prompt', 1],
    ['at the first token', 5],
    ['in the middle', 40],
  ])('%s: the place is free at once, others are as without it', async (_, after) => {
    const { model, fake } = makeModel({ prefillChunk: 8 });
    const controller = new AbortController();
    const other = model.generate([7], { maxTokens: 80, seed: 7 }).result;
    const prompt = Array.from({ length: 30 }, (_, i) => i);
    const generation = model.generate(prompt, { maxTokens: 200, signal: controller.signal });
    const { result } = generation;
    await turns(after);
    expect(fake.open.size).toBe(2);
    controller.abort(reason);
    expect(fake.open.size).toBe(1);
    expect(await rejection(result)).toBe(reason);
    expect(await rejection(generation[Symbol.asyncIterator]().next())).toBe(reason);
    expect((await other).tokens).toEqual(expectedTokens([7], { maxTokens: 80, seed: 7, stopIds: [EOS] }));
    expect(fake.pagesHeld).toBe(0);
  });

  test('after the end it changes nothing', async () => {
    const { model } = makeModel();
    const controller = new AbortController();
    const generation = model.generate([1], { maxTokens: 3, signal: controller.signal });
    const result = await generation.result;
    controller.abort(reason);
    expect(await generation.result).toBe(result);
    expect((await collect(generation)).flatMap(({ tokens }) => tokens)).toEqual(result.tokens);
  });

  test('one signal ends many, with one listener on it', async () => {
    const { model, fake } = makeModel();
    const controller = new AbortController();
    const listen = jest.spyOn(controller.signal, 'addEventListener');
    const { signal } = controller;
    await model.generate([1], { maxTokens: 2, signal }).result;
    const all = Array.from({ length: 20 }, (_, i) => model.generate([i], { signal }).result);
    await turns(1); // these have the places, so the scores wait
    const scored = Array.from({ length: 20 }, () => model.score([1, 2], { signal }));
    await turns(2);
    controller.abort(reason);
    for (const promise of [...all, ...scored]) expect(await rejection(promise)).toBe(reason);
    expect(listen.mock.calls.length).toBeLessThanOrEqual(1);
    expect(fake.open.size).toBe(0);
  });

  test('leaving the loop aborts; the result then rejects with ERR_ABORTED', async () => {
    const { model, fake } = makeModel();
    const generation = model.generate([1], { maxTokens: 500 });
    for await (const _ of generation) break;
    expect(fake.open.size).toBe(0);
    const error = await rejection(generation.result);
    expect(error).toBeInstanceOf(MlaError);
    expect(error).toMatchObject({ code: 'ERR_ABORTED' });
  });

  test('leaving while next() waits ends that next() without an error', async () => {
    const { model } = makeModel();
    const iterator = model.generate([1])[Symbol.asyncIterator]();
    const pending = iterator.next();
    await iterator.return?.();
    expect(await pending).toEqual({ done: true, value: undefined });
  });

  test('whatever the end, the signal is let go', async () => {
    let held = 0;
    const spy = jest.spyOn(abortListeners, 'onAbort').mockImplementation(() => {
      let mine = 1;
      held++;
      return () => {
        held -= mine;
        mine = 0;
      };
    });
    try {
      const { model, fake } = makeModel();
      const { signal } = new AbortController();
      await model.generate([1], { maxTokens: 2, signal }).result;
      for await (const _ of model.generate([1], { signal })) break;
      await model.score([1], { signal });
      fake.gate = async () => {
        throw new Error('lost');
      };
      await rejection(model.generate([1], { signal }).result);
      expect(spy).toHaveBeenCalledTimes(4);
      expect(held).toBe(0);
    } finally {
      spy.mockRestore();
    }
  });

  test('return() before next() leaves without having started', async () => {
    const { model, fake } = makeModel();
    const generation = model.generate([1]);
    const iterator = generation[Symbol.asyncIterator]();
    expect(await iterator.return?.()).toEqual({ done: true, value: undefined });
    expect(await iterator.next()).toEqual({ done: true, value: undefined });
    expect(await rejection(generation.result)).toMatchObject({ code: 'ERR_ABORTED' });
    expect(fake.steps).toHaveLength(0);
  });
});

describe('failures', () => {
  test('a failed step reaches iterator and result with the same error', async () => {
    const { model, fake } = makeModel();
    const broken = new MlaError('ERR_DEVICE_LOST', 'gone');
    fake.gate = async (index) => {
      await turn();
      if (index >= 3) throw broken;
    };
    const generation = model.generate([1], { maxTokens: 50 });
    expect(await rejection(collect(generation))).toBe(broken);
    expect(await rejection(generation.result)).toBe(broken);
    expect(fake.open.size).toBe(0);
  });

  test('a failure of the tokenizer fails that generation alone', async () => {
    const stream = { push: () => { throw new Error('no such token'); }, end: () => '' }; // biome-ignore format: short
    const { model, fake } = makeModel({ text: { ...byteText, stream: () => stream } });
    expect(await rejection(model.generate([1], { maxTokens: 5 }).result)).toMatchObject({ message: 'no such token' });
    expect(fake.open.size).toBe(0);
  });

  test('an unobserved failure is no unhandled rejection', async () => {
    const seen: unknown[] = [];
    const listener = (error: unknown) => seen.push(error);
    process.on('unhandledRejection', listener);
    try {
      const { model, fake } = makeModel();
      fake.gate = async () => {
        throw new Error('lost');
      };
      void model.generate([1]).result;
      const iterator = model.generate([2])[Symbol.asyncIterator]();
      const first = iterator.next();
      void model.generate([3], { signal: AbortSignal.abort() }).result;
      await rejection(first);
      await turns(10);
      expect(seen).toEqual([]);
    } finally {
      process.off('unhandledRejection', listener);
    }
  });

  test('dispose waits for a text that is being scored', async () => {
    const { model, fake } = makeModel();
    const scored = model.score([1, 2]);
    await Promise.resolve();
    await Promise.resolve();
    await model.dispose();
    expect(fake.busyAtDispose).toBe(0);
    await scored.catch(() => {});
  });

  test('dispose ends what runs and what waits with ERR_DISPOSED, and refuses new work', async () => {
    const { model, fake } = makeModel({ maxSequences: 1 });
    const all = [1, 2].map((id) => model.generate([id], { maxTokens: 1000 }).result);
    await turns(1);
    const scored = model.score([1, 2]);
    const unstarted = model.generate([3]);
    await turns(2);
    const done = model.dispose();
    for (const promise of [...all, scored]) expect(await rejection(promise)).toMatchObject({ code: 'ERR_DISPOSED' });
    await Promise.all([done, model.dispose(), model[Symbol.asyncDispose]()]);
    expect(fake.disposed).toBe(true);
    expect(fake.busyAtDispose).toBe(0);
    expect(fake.stepsInFlight).toBe(0);
    expect(() => model.generate([1])).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    expect(await rejection(unstarted.result)).toMatchObject({ code: 'ERR_DISPOSED' });
    expect(await rejection(model.score([1]))).toMatchObject({ code: 'ERR_DISPOSED' });
  });
});
