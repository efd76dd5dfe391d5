// Every option of generate and score: its range, its default, and typed errors for everything else.
import { resolveMaxTokens } from '../../lib/engine/settings';
import { MlaError } from '../../lib/errors';
import { EOS, makeModel, rejection } from './make-model';

/** [option, values that are refused] */
const REFUSED: [string, unknown[]][] = [
  ['maxTokens', [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, '5', null, 5n, {}, []]],
  ['temperature', [-0.1, Number.NaN, Number.POSITIVE_INFINITY, 101, '1', null, true, {}]],
  ['topK', [-1, 1.5, Number.NaN, 2 ** 25, '1', null]],
  ['topP', [0, -1, 1.01, Number.NaN, '1', null]],
  ['minP', [-0.01, 1.01, Number.NaN, '1', null]],
  ['seed', [-1, 1.5, Number.NaN, 2 ** 53, '1', null, 1n]],
  ['stopTokens', [1, [-1], [300], [1.5], ['1'], [Number.NaN], null, {}, Array.from({ length: 17 }, (_, i) => i)]],
  ['ignoreEos', [0, 1, 'true', null]],
  ['stop', [5, '', [''], [5], ['a', ''], 'x'.repeat(1001), Array.from({ length: 17 }, (_, i) => `s${i}`), null, {}]],
  ['minTokens', [-1, 1.5, Number.NaN, '1', null]],
  ['repetitionPenalty', [0, -1, 101, Number.NaN, '1', null]],
  ['presencePenalty', [-101, 101, Number.NaN, '1', null]],
  ['frequencyPenalty', [-101, 101, Number.NaN, '1', null]],
  [
    'logitBias',
    [5, null, [1], { 300: 1 }, { '-1': 1 }, { x: 1 }, { '01': 1 }, { 1: 1001 }, { 1: Number.NaN }, { 1: '1' }],
  ],
  ['topLogprobs', [-1, 21, 1.5, '1', null, true]],
  ['priority', [-101, 101, 0.5, '1', null]],
  ['cacheSalt', [5, null, {}, 'x'.repeat(257)]],
  ['signal', [{}, { aborted: false }, null, 1, new AbortController()]],
];

const cases = REFUSED.flatMap(([name, values]) => values.map((value) => [name, value] as const));

test(`generate refuses ${cases.length} wrong option values, naming the option`, async () => {
  const { model, fake } = makeModel();
  for (const [name, value] of cases) {
    let error: unknown;
    try {
      model.generate([1], { [name]: value });
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(MlaError);
    expect(error).toMatchObject({ code: 'ERR_INVALID_ARG', message: expect.stringContaining(name) });
  }
  expect(await model.stats()).toMatchObject({ running: 0, waiting: 0, stepsInFlight: 0 });
  expect(fake.steps).toHaveLength(0);
});

test('options that are no object, unknown, or throw when read are refused', () => {
  const { model } = makeModel();
  const throwing = {
    get topK() {
      throw new Error('no');
    },
  };
  const revoked = Proxy.revocable({}, {});
  revoked.revoke();
  for (const options of [null, 1, 'x', [], { max_tokens: 5 }, { tools: [] }, throwing, revoked.proxy]) {
    expect(() => model.generate([1], options as object)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARG' }));
  }
  expect(() => model.generate([1], { max_tokens: 5 } as object)).toThrow(/maxTokens.*max_tokens/);
});

test('prompts that are neither text nor ids are refused', async () => {
  const { model } = makeModel();
  for (const prompt of [undefined, null, 1, {}, [-1], [300], [1.5], ['a'], [Number.NaN], [[1]], new Int32Array(2)]) {
    expect(() => model.generate(prompt as string)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARG' }));
    expect(await rejection(model.score(prompt as string))).toMatchObject({ code: 'ERR_INVALID_ARG' });
  }
  expect(await rejection(model.generate([]).result)).toMatchObject({ code: 'ERR_INVALID_ARG' });
  expect(await rejection(model.generate('').result)).toMatchObject({ code: 'ERR_INVALID_ARG' });
  const huge: number[] = [];
  huge.length = 2 ** 32 - 1;
  expect(await rejection(model.generate(huge).result)).toMatchObject({ code: 'ERR_CONTEXT_LENGTH' });
  expect(() => model.chat('hi' as never)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARG' }));
});

test('the prompt is copied when it is given', async () => {
  const { model, fake } = makeModel();
  const prompt = [1, 2, 3];
  const generation = model.generate(prompt, { maxTokens: 1 });
  prompt.push(4, 5, 6);
  await generation.result;
  expect(fake.steps[0]?.entries).toEqual([[0, 3]]);
});

test('wrong score options are refused', async () => {
  const { model } = makeModel();
  for (const options of [{ top: -1 }, { top: 21 }, { top: 1.5 }, { logits: 1 }, { signal: {} }, { maxTokens: 1 }]) {
    expect(await rejection(model.score([1, 2], options as object))).toMatchObject({ code: 'ERR_INVALID_ARG' });
  }
});

describe('maxTokens', () => {
  test('defaults to 256, or to what the context has room for', () => {
    expect(resolveMaxTokens(null, 10, 4096)).toBe(256);
    expect(resolveMaxTokens(null, 10, 100)).toBe(90);
    expect(resolveMaxTokens(90, 10, 100)).toBe(90);
  });

  test('is refused when it or the prompt does not fit', async () => {
    expect(() => resolveMaxTokens(91, 10, 100)).toThrow(expect.objectContaining({ code: 'ERR_CONTEXT_LENGTH' }));
    expect(() => resolveMaxTokens(null, 100, 100)).toThrow(expect.objectContaining({ code: 'ERR_CONTEXT_LENGTH' }));
    const { model } = makeModel({ context: 64 });
    const prompt = Array.from({ length: 63 }, () => 1);
    expect((await model.generate(prompt, { ignoreEos: true }).result).tokens).toHaveLength(1);
    expect(await rejection(model.generate([...prompt, 1]).result)).toMatchObject({ code: 'ERR_CONTEXT_LENGTH' });
    expect(await rejection(model.generate(prompt, { maxTokens: 2 }).result)).toMatchObject({
      code: 'ERR_CONTEXT_LENGTH',
    });
  });
});

describe('defaults of generation_config.json', () => {
  const used = async (generationDefaults: object, options = {}) => {
    const { model } = makeModel({ generationDefaults });
    const { settings } = await model.generate([1], { maxTokens: 1, ...options }).result;
    return settings;
  };

  test('fill what the caller leaves open', async () => {
    const file = { do_sample: true, temperature: 0.3, top_k: 5, top_p: 0.9, min_p: 0.1 };
    expect(await used(file)).toMatchObject({ temperature: 0.3, topK: 5, topP: 0.9, minP: 0.1 });
    expect(await used(file, { temperature: 1, topK: 0 })).toMatchObject({ temperature: 1, topK: 0, topP: 0.9 });
  });

  test('greedy without them, and with do_sample false', async () => {
    expect(await used({})).toMatchObject({ temperature: 0, topK: 0, topP: 1, minP: 0, stopTokens: [EOS] });
    expect(await used({ do_sample: false, temperature: 0.3 })).toMatchObject({ temperature: 0 });
    expect(await used({ temperature: 0.6 })).toMatchObject({ temperature: 0.6 });
    expect(await used({ do_sample: true })).toMatchObject({ temperature: 1 });
  });

  test('wrong ones are refused by their own name', () => {
    const { model } = makeModel({ generationDefaults: { top_p: 2 } });
    expect(() => model.generate([1])).toThrow(/top_p of generation_config\.json/);
  });

  test('a seed is drawn when none is given, and gives the same text when it is given back', async () => {
    const { model } = makeModel();
    const options = { maxTokens: 20, temperature: 1 };
    const [first, second] = [await model.generate([1], options).result, await model.generate([1], options).result];
    expect(first.settings.seed).not.toBe(second.settings.seed);
    const again = await model.generate([1], { ...options, seed: first.settings.seed }).result;
    expect(again.tokens).toEqual(first.tokens);
  });
});
