// What each request asks of sampling and stopping, on the fake: how long, where it ends, what is told of the choices, and
// who goes first.
import type { Chunk } from '../../lib/engine/result';
import { expectedTokens } from './fake-model';
import { EOS, makeModel, saying } from './make-model';
import { turns } from './random-load';

const CODE = (character: string) => character.charCodeAt(0);

describe('stop strings', () => {
  test('end the text before them, whether streamed or not, also across characters and chunks', async () => {
    const said = 'Gr\u00fc\u00dfe \u{1f600} END and more';
    for (const stop of ['END', ['xyz', ' END'], '\u{1f600}', 'e \u{1f600} E', 'r\u00fc', ['more', 'END a']]) {
      const { model, fake } = makeModel({ next: saying(said, 1) });
      const chunks: Chunk[] = [];
      const generation = model.generate([0], { stop });
      for await (const chunk of generation) chunks.push(chunk);
      const result = await generation.result;
      const all = Array.isArray(stop) ? stop : [stop];
      const ends = Math.min(...all.map((one) => (said.indexOf(one) < 0 ? 1e9 : said.indexOf(one) + one.length)));
      const found = all.find((one) => said.indexOf(one) + one.length === ends) as string;
      expect(result).toMatchObject({
        text: said.slice(0, said.indexOf(found)),
        finishReason: 'stop',
        stoppedBy: found,
      });
      expect(chunks.map(({ text }) => text).join('')).toBe(result.text);
      expect(chunks.flatMap(({ tokens }) => tokens)).toEqual(result.tokens);
      // the tokens are those up to the end of the stop string
      expect(result.tokens).toEqual([...Buffer.from(said.slice(0, ends))]);
      expect(fake.open.size).toBe(0);
    }
  });

  test('what only might have been one is part of the text', async () => {
    const { model } = makeModel({ next: saying('hand', 1) });
    const { text, stoppedBy } = await model.generate([0], { stop: 'handle' }).result;
    expect({ text, stoppedBy }).toEqual({ text: 'hand', stoppedBy: EOS });
  });

  test('others go on as if nothing had been', async () => {
    const { model } = makeModel({ next: (tokens, s) => (s.seed === 1 ? CODE('x') : (tokens.length * 7) % 128) });
    const other = model.generate([5], { maxTokens: 60, seed: 2, ignoreEos: true }).result;
    expect((await model.generate([5], { stop: 'xxx', seed: 1, maxTokens: 50 }).result).text).toBe('');
    expect((await other).tokens).toEqual(Array.from({ length: 60 }, (_, i) => ((i + 1) * 7) % 128));
  });
});

describe('minTokens', () => {
  test('no end-of-text token, stop token or stop string ends the text before', async () => {
    for (const options of [{}, { stopTokens: [CODE('b')] }, { stop: 'b' }]) {
      const { model } = makeModel({
        next: (tokens) => (tokens.length < 4 ? CODE('a') : options.stop ? CODE('b') : EOS),
      });
      const early = await model.generate([1], { maxTokens: 20, ...options }).result;
      expect(early.tokens.length).toBe(4);
      const late = await model.generate([1], { maxTokens: 20, minTokens: 9, ...options }).result;
      expect(late.tokens.length).toBeGreaterThanOrEqual(9);
      expect(late.tokens.length).toBeLessThan(12);
      expect(late.finishReason).toBe('stop');
    }
  });

  test('is at most maxTokens', () => {
    const { model } = makeModel();
    expect(() => model.generate([1], { minTokens: 5, maxTokens: 4 })).toThrow(/minTokens/);
  });
});

test('topLogprobs come with each token, in chunks and result; only for who asks', async () => {
  const { model } = makeModel();
  const generation = model.generate([1], { maxTokens: 6, topLogprobs: 3, ignoreEos: true });
  const other = model.generate([2], { maxTokens: 6, ignoreEos: true }).result;
  const chunks: Chunk[] = [];
  for await (const chunk of generation) chunks.push(chunk);
  const { tokens, top } = await generation.result;
  expect(top).toEqual(tokens.map((id) => [0, 1, 2].map((k) => ({ id: (id + k) % 256, logprob: -k - 1 }))));
  expect(chunks.flatMap((chunk) => chunk.top)).toEqual(top);
  expect((await other).top).toEqual([]);
});

describe('priority', () => {
  const load = async (priorities: readonly number[], options = {}) => {
    const { model, fake } = makeModel({ maxSequences: 1, ...options });
    const ended: number[] = [];
    await Promise.all(
      priorities.map(async (priority, i) => {
        const prompt = [i % 250];
        const { tokens } = await model.generate(prompt, { maxTokens: 3, seed: i, ignoreEos: true, priority }).result;
        expect(tokens).toEqual(expectedTokens(prompt, { maxTokens: 3, seed: i }));
        ended.push(i);
      }),
    );
    return { ended, fake };
  };

  test('goes before others that wait, in order among equals', async () => {
    const { ended } = await load([0, 0, 5, 0, 5, -1]);
    expect(ended).toEqual([2, 4, 0, 1, 3, 5]);
  });

  test('overtakes 64 per unit and no more, so nobody waits for ever', async () => {
    const { ended } = await load([0, ...new Array(150).fill(1)]);
    expect(ended.indexOf(0)).toBe(63);
  });

  test('keeps its pages when others must give theirs', async () => {
    const { model, fake } = makeModel({ pages: 4, context: 256 });
    const started = Array.from({ length: 4 }, (_, i) => {
      const options = { maxTokens: 150, seed: i, ignoreEos: true, priority: i === 3 ? 1 : 0 };
      return model.generate([i], options).result.then(() => i);
    });
    await turns(3);
    expect(await Promise.race(started)).toBe(3);
    await Promise.all(started);
    expect(fake.refusals).toBeGreaterThan(0);
  });
});

test('the ledger adds up, and timings have the time in the queue', async () => {
  const { model } = makeModel({ maxSequences: 2 });
  const controller = new AbortController();
  const all = Array.from(
    { length: 6 },
    (_, i) => model.generate([i], { maxTokens: 40, ...(i % 3 === 0 && { signal: controller.signal }) }).result,
  );
  await turns(4);
  controller.abort(new Error('enough'));
  const settled = await Promise.allSettled(all);
  const stats = await model.stats();
  expect(stats).toMatchObject({ accepted: 6, aborted: 2, completed: 4, failed: 0, running: 0, waiting: 0 });
  expect(stats.pages.free + stats.pages.cached + stats.pages.held).toBe(stats.pages.total);
  const done = settled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
  for (const { timings } of done) {
    expect(timings.queueMs).toBeGreaterThanOrEqual(0);
    expect(timings.ttftMs).toBeCloseTo(timings.queueMs + timings.prefillMs, 6);
  }
  expect(stats.completionTokens).toBeGreaterThanOrEqual(done.reduce((sum, { tokens }) => sum + tokens.length, 0));
});
