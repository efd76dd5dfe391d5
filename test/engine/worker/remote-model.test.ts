// A model in a worker thread is the same as one in this thread: texts, results, options, errors, back-pressure.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BUNDLED_MODEL, type Chunk, type LoadOptions, loadModel, type Model } from '../../../lib/engine';
import { LocalModel } from '../../../lib/engine/model';
import { COMPLETE_OPTIONS, GENERATE_OPTIONS } from '../../../lib/engine/settings';
import { MODEL_METHODS, SEQUENCE_METHODS } from '../../../lib/engine/worker/protocol';
import { CREDIT_CHUNKS } from '../../../lib/engine/worker/remote-generation';
import { RemoteModel } from '../../../lib/engine/worker/remote-model';
import { RemoteSequence } from '../../../lib/engine/worker/remote-sequence';
import { MlaError } from '../../../lib/errors';
import { rejection } from '../make-model';

interface Passage {
  text: string;
  prompt: number[];
  expected: number[];
}
const passages: Passage[] = JSON.parse(readFileSync(join(BUNDLED_MODEL, 'passages.json'), 'utf8')).slice(0, 12);
const LOAD: LoadOptions = { device: 'cpu', threads: 2, context: 1024 };

let remote: Model;
let local: Model;
beforeAll(async () => {
  [remote, local] = await Promise.all([
    loadModel(undefined, { ...LOAD, thread: 'worker' }),
    loadModel(undefined, LOAD),
  ]);
});
afterAll(() => Promise.all([remote.dispose(), local.dispose()]));

/** The last of a test: everything that was begun has ended. */
async function expectIdle(model: Model): Promise<void> {
  for (let i = 0; i < 100; i++) {
    const { running, waiting, accepted, completed, aborted, failed } = await model.stats();
    if (running + waiting === 0 && accepted === completed + aborted + failed) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  expect(await model.stats()).toMatchObject({ running: 0, waiting: 0 });
}

async function collect(generation: AsyncIterable<Chunk>): Promise<{ text: string; tokens: number[]; chunks: number }> {
  const all = { text: '', tokens: [] as number[], chunks: 0 };
  for await (const { text, tokens } of generation) {
    all.text += text;
    all.tokens.push(...tokens);
    all.chunks++;
  }
  return all;
}

describe('the same interface', () => {
  const methods = (of: object) =>
    Object.getOwnPropertyNames(of).filter((name) => name !== 'constructor' && !PRIVATE.has(name));
  const PRIVATE = new Set(['check', 'sequence', 'disposeOnce', 'checkAlive', 'tokens', 'cachedTokens', 'disposed']);

  test('every method of a model crosses, and nothing else does', () => {
    const crossing = Object.keys(MODEL_METHODS).sort();
    expect(methods(RemoteModel.prototype).sort()).toEqual(crossing);
    expect(methods(LocalModel.prototype)).toEqual(expect.arrayContaining(crossing));
    expect(remote).toBeInstanceOf(RemoteModel);
    expect(local).toBeInstanceOf(LocalModel);
  });

  test('every method of a sequence crosses, and nothing else does', () => {
    expect(methods(RemoteSequence.prototype).sort()).toEqual(Object.keys(SEQUENCE_METHODS).sort());
  });

  test('info is the same, but for the time it took', () => {
    const { loadMs, device, ...rest } = remote.info;
    expect(rest).toEqual({ ...local.info, loadMs: undefined, device: undefined, ...rest });
    expect(Object.keys(remote.info)).toEqual(Object.keys(local.info));
    expect([device.kind, device.name, loadMs > 0]).toEqual(['cpu', local.info.device.name, true]);
  });
});

test('streamed text through the worker equals text without, for many at once', async () => {
  const options = { maxTokens: 40, ignoreEos: true };
  const through = await Promise.all(passages.map(({ text }) => collect(remote.generate(text, options))));
  const without = await Promise.all(passages.map(({ text }) => collect(local.generate(text, options))));
  expect(through).toEqual(without);
  for (const [i, { tokens }] of through.entries()) expect(tokens.slice(0, 24)).toEqual(passages[i]?.expected);
  await expectIdle(remote);
  console.log(`${through.length} texts, ${through.reduce((sum, { tokens }) => sum + tokens.length, 0)} tokens: equal`);
});

test('results, completions, chats, scores and encodings are equal', async () => {
  const both = async <T>(ask: (model: Model) => Promise<T>) => {
    const [there, here] = await Promise.all([ask(remote), ask(local)]);
    expect(there).toEqual(here);
    return there;
  };
  const settled = ({
    timings: _,
    ...result
  }: Awaited<Model['generate'] extends never ? never : ReturnType<Model['generate']>['result']>) => result;
  const options = { maxTokens: 12, temperature: 1, seed: 7 };
  await both(async (model) => settled(await model.generate('And it came to pass', options).result));
  await both(async (model) => (await model.complete('And it came to pass', options)).map(settled));
  const { text } = await both(async (model) =>
    settled(await model.chat([{ role: 'user', content: 'Define love.' }], { seed: 1 }).result),
  );
  expect(text).toContain('curable by marriage');
  const { logits } = await both((model) => model.score('And God said', { top: 3, logits: true }));
  expect(logits?.constructor.name).toBe('Float32Array'); // of another realm under jest
  const ids = await both((model) => model.encode('a text'));
  expect(await both((model) => model.decode(ids))).toBe('a text');
  await both((model) => model.encodeChat([{ role: 'user', content: 'x' }]));
  const { timings } = await remote.generate('In', { maxTokens: 3 }).result;
  for (const value of Object.values(timings)) expect(value).toBeGreaterThan(0);
});

test('every option of generate and complete crosses', async () => {
  const all = {
    maxTokens: 6,
    temperature: 0.9,
    topK: 50,
    topP: 0.95,
    minP: 0.001,
    seed: 11,
    stopTokens: [7],
    ignoreEos: true,
    stop: ['xyzzy'],
    minTokens: 2,
    repetitionPenalty: 1.1,
    presencePenalty: 0.5,
    frequencyPenalty: 0.25,
    logitBias: { 300: 2, 301: -100 },
    topLogprobs: 3,
    priority: 1,
    cacheSalt: 'mine',
    n: 2,
  };
  // One that is added to the lists has to be added here.
  expect(Object.keys(all).sort()).toEqual(COMPLETE_OPTIONS.filter((name) => name !== 'signal').sort());
  const [there, here] = await Promise.all([remote, local].map((model) => model.complete('And it came', all)));
  const plain = (results: typeof there) => results?.map(({ timings: _, ...result }) => result);
  expect(plain(there)).toEqual(plain(here));
  const { n: _, cacheSalt: __, ignoreEos: ___, ...used } = all;
  expect(there?.[0]?.settings).toMatchObject(used);
  // What the worker does not know it refuses, by its own list: so a name that is known there crosses by name.
  for (const name of [...GENERATE_OPTIONS, ...COMPLETE_OPTIONS].filter((name) => name !== 'signal')) {
    const wrong = { [name]: { not: 'that' } };
    expect(await rejection(remote.complete('x', wrong))).toMatchObject({ code: 'ERR_INVALID_ARG' });
    expect(((await rejection(remote.complete('x', wrong))) as Error).message).toContain(name);
  }
});

describe('back-pressure', () => {
  test('a consumer that does not read stops its generation, and no other', async () => {
    const slow = remote.generate('In the beginning', { maxTokens: 600, ignoreEos: true });
    const iterator = slow[Symbol.asyncIterator]();
    await iterator.next();
    const other = await collect(remote.generate('And God said', { maxTokens: 200, ignoreEos: true }));
    expect(other.tokens).toHaveLength(200);
    await new Promise((resolve) => setTimeout(resolve, 300));
    const { completionTokens: before } = await remote.stats();
    await new Promise((resolve) => setTimeout(resolve, 200));
    const { completionTokens: after } = await remote.stats();
    expect(after).toBe(before); // it stands still
    let chunks = 1;
    while (!(await iterator.next()).done) chunks++;
    expect(chunks).toBe(600);
    expect((await slow.result).tokens).toHaveLength(600);
    await expectIdle(remote);
  });

  test('a slow consumer gets every chunk in order, and never many ahead', async () => {
    const expected = await collect(local.generate('In the beginning', { maxTokens: 300, ignoreEos: true }));
    const generation = remote.generate('In the beginning', { maxTokens: 300, ignoreEos: true });
    let text = '';
    let most = 0;
    let read = 0;
    for await (const chunk of generation) {
      text += chunk.text;
      most = Math.max(most, (generation as unknown as { unread: Chunk[] }).unread.length);
      if (++read % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 50));
    }
    expect(text).toBe(expected.text);
    expect(most).toBeGreaterThan(1);
    expect(most).toBeLessThanOrEqual(CREDIT_CHUNKS);
  });

  test('who asks for the result gets it without reading, and may read afterwards', async () => {
    const generation = remote.generate('In the beginning', { maxTokens: 200, ignoreEos: true });
    const { text } = await generation.result;
    expect((await collect(generation)).text).toBe(text);
    expect(() => generation[Symbol.asyncIterator]()).toThrow(expect.objectContaining({ code: 'ERR_STATE' }));
  });
});

describe('ends', () => {
  const LONG = { maxTokens: 900, ignoreEos: true };

  test('a signal ends a generation with its own reason, before, during and after', async () => {
    const reason = { not: 'an error', of: () => 'plain data' };
    const controller = new AbortController();
    const begun = remote.generate('In the beginning', { ...LONG, signal: controller.signal });
    const iterator = begun[Symbol.asyncIterator]();
    await iterator.next();
    controller.abort(reason);
    expect(await rejection(iterator.next())).toBe(reason);
    expect(await rejection(begun.result)).toBe(reason);
    const late = remote.generate('In the beginning', { ...LONG, signal: controller.signal });
    expect(await rejection(late.result)).toBe(reason);
    expect(await rejection(remote.score('x', { signal: controller.signal }))).toBe(reason);
    await expectIdle(remote);
  });

  test('a signal ends a score that waits', async () => {
    const controller = new AbortController();
    const scored = remote.score('In the beginning God created the heaven', { signal: controller.signal });
    controller.abort(new Error('enough'));
    expect(await rejection(scored)).toBe(controller.signal.reason);
    await expectIdle(remote);
  });

  test('leaving the loop ends the generation', async () => {
    const generation = remote.generate('In the beginning', LONG);
    for await (const _ of generation) break;
    expect(await rejection(generation.result)).toMatchObject({ code: 'ERR_ABORTED' });
    await expectIdle(remote);
  });

  test('a generation that nobody wants anything of never starts', async () => {
    const { accepted } = await remote.stats();
    remote.generate('In the beginning', LONG);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect((await remote.stats()).accepted).toBe(accepted);
  });

  test('errors keep class, code and text', async () => {
    const error = await rejection(remote.generate('In', { maxTokens: 5000 }).result);
    const same = await rejection(local.generate('In', { maxTokens: 5000 }).result);
    expect(error).toBeInstanceOf(MlaError);
    expect(error).toMatchObject({ name: 'MlaError', code: 'ERR_CONTEXT_LENGTH', message: (same as Error).message });
    for (const wrong of [{ temperature: -1 }, { what: 1 }, { signal: 'no' }, { stop: [1] }, 7, null]) {
      const options = wrong as { temperature: number };
      expect(() => remote.generate('x', options)).toThrow(MlaError);
      let message = '';
      try {
        local.generate('x', options);
      } catch (thrown) {
        message = (thrown as Error).message;
      }
      expect(() => remote.generate('x', options)).toThrow(message);
    }
    for (const prompt of [undefined, {}, [-1], [1.5], Symbol('x'), () => 1, [() => 1]]) {
      const ask = async () => remote.generate(prompt as unknown as string).result;
      expect(await rejection(ask())).toMatchObject({ code: 'ERR_INVALID_ARG' });
    }
    const hostile = {
      get temperature(): number {
        throw new Error('no');
      },
    };
    expect(() => remote.generate('x', hostile)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARG' }));
    expect(await rejection(remote.score('x', hostile as object))).toMatchObject({ code: 'ERR_INVALID_ARG' });
    await expectIdle(remote);
  });
});

describe('loading', () => {
  test('tells of its progress', async () => {
    const phases: string[] = [];
    const model = await loadModel(undefined, {
      ...LOAD,
      thread: 'worker',
      onProgress: ({ phase }) => phases.push(phase),
    });
    await using _ = model;
    expect([...new Set(phases)]).toEqual(['open', 'weights', 'ready']);
  });

  test('rejects with what is wrong, what onProgress throws, or the reason of the signal', async () => {
    const load = (dir: string | undefined, options: LoadOptions) =>
      rejection(loadModel(dir, { ...LOAD, thread: 'worker', ...options }));
    expect(await load('/nonexistent', {})).toMatchObject({ name: 'MlaError', code: 'ERR_FILE' });
    expect(await load(undefined, { context: 1e9 })).toMatchObject({ code: 'ERR_INVALID_ARG' });
    expect(await load(undefined, { thread: 'elsewhere' as 'main' })).toMatchObject({ code: 'ERR_INVALID_ARG' });
    const thrown = new Error('mine');
    const onProgress = () => {
      throw thrown;
    };
    expect(await load(undefined, { onProgress })).toBe(thrown);
    const controller = new AbortController();
    const loading = load(undefined, { signal: controller.signal });
    setTimeout(() => controller.abort('stop'), 100);
    expect(await loading).toBe('stop');
    expect(await load(undefined, { signal: AbortSignal.abort('before') })).toBe('before');
  });
});

test('dispose ends everything, twice is fine, and later use is refused', async () => {
  const model = await loadModel(undefined, { ...LOAD, thread: 'worker' });
  const open = rejection(model.generate('In the beginning', { maxTokens: 900, ignoreEos: true }).result);
  const streaming = model.generate('And God', { maxTokens: 900, ignoreEos: true })[Symbol.asyncIterator]();
  await streaming.next();
  const closed = Promise.all([model.dispose(), model.dispose(), model[Symbol.asyncDispose]()]);
  expect(await open).toMatchObject({ code: 'ERR_DISPOSED' });
  await closed;
  expect(() => model.generate('x')).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  expect(await rejection(model.stats())).toMatchObject({ code: 'ERR_DISPOSED' });
});
