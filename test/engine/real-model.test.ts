// The engine on the real model class, with the small model of the package on the CPU: whatever the engine does with a
// sequence (chunks, pauses, evictions, company), its greedy tokens are those of transformers.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BUNDLED_MODEL, type LoadOptions, loadModel, type Model } from '../../lib/engine';
import { MAX_UNREAD_CHUNKS } from '../../lib/engine/generation';
import { rejection } from './make-model';

interface Passage {
  text: string;
  prompt: number[];
  expected: number[];
}
const passages: Passage[] = JSON.parse(readFileSync(join(BUNDLED_MODEL, 'passages.json'), 'utf8'));
const GREEDY = { temperature: 0, ignoreEos: true };

async function withModel(options: LoadOptions, work: (model: Model) => Promise<void>): Promise<void> {
  const model = await loadModel(undefined, { device: 'cpu', threads: 2, ...options });
  try {
    await work(model);
  } finally {
    await model.dispose();
  }
}

const all = (model: Model) =>
  Promise.all(
    passages.map(({ text, expected }) => model.generate(text, { ...GREEDY, maxTokens: expected.length }).result),
  );

function expectPassages(results: Awaited<ReturnType<typeof all>>): void {
  expect(results.map(({ tokens }) => tokens)).toEqual(passages.map(({ expected }) => expected));
  expect(results.map(({ usage }) => usage.promptTokens)).toEqual(passages.map(({ prompt }) => prompt.length));
}

test('many texts at once, on few places, in small chunks', async () => {
  expect(passages.length).toBeGreaterThan(3);
  await withModel({ maxSequences: 3, prefillChunk: 7 }, async (model) => {
    expectPassages(await all(model));
    expect(await model.stats()).toMatchObject({ running: 0, waiting: 0, stepsInFlight: 0 });
  });
});

test('with too few pages for all', async () => {
  // each text has less than 64 tokens here; the long one takes pages from them until it has ended
  await withModel({ maxSequences: 4, pages: 4, context: 256 }, async (model) => {
    const long = model.generate(passages[0]?.text as string, { ...GREEDY, maxTokens: 200 }).result;
    expectPassages(await all(model));
    expect((await long).tokens.slice(0, passages[0]?.expected.length)).toEqual(passages[0]?.expected);
  });
});

test('a paused text goes on as if nothing had been', async () => {
  await withModel({ maxSequences: 2 }, async (model) => {
    const maxTokens = MAX_UNREAD_CHUNKS * 3;
    const prompt = passages[1]?.text as string;
    const whole = await model.generate(prompt, { ...GREEDY, maxTokens }).result;
    const iterator = model.generate(prompt, { ...GREEDY, maxTokens })[Symbol.asyncIterator]();
    const tokens = [...((await iterator.next()).value?.tokens ?? [])];
    await model.generate([0], { ...GREEDY, maxTokens: MAX_UNREAD_CHUNKS * 2 }).result; // time to fall behind
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) tokens.push(...next.value.tokens);
    expect(tokens).toEqual(whole.tokens);
  });
});

test('an aborted text leaves the others and the model as they were', async () => {
  await withModel({ maxSequences: 4 }, async (model) => {
    const controller = new AbortController();
    const doomed = model.generate([0, 5, 6], { ...GREEDY, maxTokens: 1000, signal: controller.signal });
    const others = all(model);
    for await (const { tokens } of doomed) {
      if (tokens.length > 0) break;
    }
    expectPassages(await others);
    expect(await rejection(doomed.result)).toMatchObject({ code: 'ERR_ABORTED' });
    const scored = await model.score(passages[0]?.text as string, { top: 1 });
    expect(scored.tokens).toEqual(passages[0]?.prompt);
    expect(scored.top[0]).toBeNull();
    expect(scored.logprobs[0]).toBeNull();
    for (const logprob of scored.logprobs.slice(1)) expect(logprob).toBeLessThanOrEqual(0);
  });
});

test('sampling: a seed is a text, alone or in company', async () => {
  await withModel({}, async (model) => {
    const options = { temperature: 1.5, seed: 42, maxTokens: 32 };
    const alone = await model.generate('And', options).result;
    const [inCompany] = await Promise.all([model.generate('And', options).result, all(model)]);
    expect(inCompany.tokens).toEqual(alone.tokens);
    const greedy = await model.generate('And', { ...GREEDY, maxTokens: 32 }).result;
    expect(alone.tokens).not.toEqual(greedy.tokens);
  });
});

test('chat, info, encode and decode speak of the same model', async () => {
  await withModel({}, async (model) => {
    const { info } = model;
    expect(info).toMatchObject({
      directory: BUNDLED_MODEL,
      hasTokenizer: true,
      hasChatTemplate: true,
      maxSequences: 8,
    });
    expect(info.device.kind).toBe('cpu');
    expect(info.memory.total).toBeGreaterThan(info.memory.weights);
    const ids = await model.encode('In the beginning');
    expect(ids[0]).toBe(0); // BOS, as tokenizer_config.json asks
    expect(await model.decode(ids)).toBe('In the beginning');
    const { usage } = await model.chat([{ role: 'user', content: 'Peace' }], { maxTokens: 4 }).result;
    expect(usage.promptTokens).toBeGreaterThan((await model.encode('Peace')).length);
    expect(await rejection(model.chat([{ role: 'nobody' as never, content: '' }]).result)).toMatchObject({
      code: 'ERR_INVALID_ARG',
    });
  });
});

describe('loadModel', () => {
  test('refuses wrong arguments', async () => {
    for (const [dir, options] of [
      ['', {}],
      [5, {}],
      [undefined, 5],
      [undefined, { device: 'tpu' }],
      [undefined, { dtype: 'int4' }],
      [undefined, { cacheDtype: 'f16' }],
      [undefined, { activationDtype: 'e4m3' }],
      [undefined, { activationDtype: 'fp8' }], // the model in the package has bf16 weights
      [undefined, { context: 0 }],
      [undefined, { context: Number.NaN }],
      [undefined, { maxSequences: 1.5 }],
      [undefined, { threads: -1 }],
      [undefined, { prefixCache: 1 }],
      [undefined, { onProgress: 'yes' }],
      [undefined, { signal: {} }],
      [undefined, { ctx: 5 }],
      [undefined, { context: 1e9 }],
    ] as [string, LoadOptions][]) {
      expect(await rejection(loadModel(dir, options))).toMatchObject({ name: 'MlaError', code: 'ERR_INVALID_ARG' });
    }
    expect(await rejection(loadModel('/nonexistent'))).toMatchObject({ code: 'ERR_FILE' });
  });

  test('reports progress up to the end, and an abort rejects with its reason', async () => {
    const seen: string[] = [];
    await withModel({ onProgress: ({ phase }) => seen.push(phase) }, async () => {});
    expect([...new Set(seen)]).toEqual(['open', 'weights', 'ready']);
    const reason = new Error('enough');
    expect(await rejection(loadModel(undefined, { signal: AbortSignal.abort(reason) }))).toBe(reason);
    const controller = new AbortController();
    const loading = loadModel(undefined, { signal: controller.signal, onProgress: () => controller.abort(reason) });
    expect(await rejection(loading)).toBe(reason);
  });
});
