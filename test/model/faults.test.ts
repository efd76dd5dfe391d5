// What goes wrong is refused or reported by a typed error, changes nothing else, and leaks nothing.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readSafetensorsHeader } from '../../lib/checkpoint';
import { MlaError } from '../../lib/errors';
import { LatentModel } from '../../lib/model';
import { native } from '../../lib/native';
import { continueAlone, greedy } from './continue';
import { goldens } from './golden';

const golden = goldens.find((g) => g.name === 'v3') as (typeof goldens)[number];
const [, short, long] = golden.prompts.map((p) => p.tokens) as [number[], number[], number[]];
const options = { device: 'cpu', context: 512, maxSequences: 2 } as const;

/** Device memory or host memory, whichever was asked for. */
const outOfMemory = expect.stringMatching(/^ERR_OUT_OF_(DEVICE_)?MEMORY$/);

/** The code of what `run` throws or rejects with. */
async function codeOf(run: () => unknown): Promise<string> {
  try {
    await run();
  } catch (error) {
    if (error instanceof MlaError) return error.code;
    throw error;
  }
  return 'nothing thrown';
}

async function withModel<T>(run: (model: LatentModel) => Promise<T>, more = {}): Promise<T> {
  const model = await LatentModel.load(golden.dir, { ...options, ...more });
  try {
    return await run(model);
  } finally {
    await model.dispose();
  }
}

test('wrong arguments are refused before anything is enqueued', () =>
  withModel(async (model) => {
    const sequence = model.openSequence();
    const other = model.openSequence();
    const vocab = model.config.vocab_size;
    const before = model.stats();
    const cases: [string, () => unknown, string][] = [
      ['no entries', () => model.step([]), 'ERR_INVALID_ARG'],
      ['no tokens', () => model.step([{ sequence, tokens: [] }]), 'ERR_INVALID_ARG'],
      ['id too large', () => model.step([{ sequence, tokens: [vocab] }]), 'ERR_INVALID_ARG'],
      ['id negative', () => model.step([{ sequence, tokens: [-1] }]), 'ERR_INVALID_ARG'],
      ['id fractional', () => model.step([{ sequence, tokens: [0.5] }]), 'ERR_INVALID_ARG'],
      ['id NaN', () => model.step([{ sequence, tokens: [Number.NaN] }]), 'ERR_INVALID_ARG'],
      [
        'same sequence twice',
        () =>
          model.step([
            { sequence, tokens: [1] },
            { sequence, tokens: [1] },
          ]),
        'ERR_INVALID_ARG',
      ],
      ['nothing to continue', () => model.step([{ sequence: other }]), 'ERR_STATE'],
      ['too long', () => model.step([{ sequence, tokens: new Array(513).fill(1) }]), 'ERR_CONTEXT_LENGTH'],
      ['not ours', () => model.step([{ sequence: {} as never, tokens: [1] }]), 'ERR_INVALID_ARG'],
      ['one sequence too many', () => model.openSequence(), 'ERR_STATE'],
      ['score of nothing', () => model.score([]), 'ERR_INVALID_ARG'],
      ['score too long', () => model.score(new Array(513).fill(1)), 'ERR_CONTEXT_LENGTH'],
      ['score top NaN', () => model.score(short, { top: Number.NaN }), 'ERR_INVALID_ARG'],
      [
        'temperature NaN',
        () => sequence.setSampling({ ...greedy(short, 1), temperature: Number.NaN }),
        'ERR_INVALID_ARG',
      ],
      ['topP 0', () => sequence.setSampling({ ...greedy(short, 1), topP: 0 }), 'ERR_INVALID_ARG'],
      [
        '17 stop ids',
        () => sequence.setSampling({ ...greedy(short, 1), stopIds: new Array(17).fill(1) }),
        'ERR_INVALID_ARG',
      ],
      ['seed negative', () => sequence.setSampling({ ...greedy(short, 1), seed: -1 }), 'ERR_INVALID_ARG'],
      [
        'maxLength past the context',
        () => sequence.setSampling({ ...greedy(short, 1), maxLength: 513 }),
        'ERR_INVALID_ARG',
      ],
    ];
    for (const [name, run, code] of cases) expect([name, await codeOf(run)]).toEqual([name, code]);
    expect(model.stats()).toEqual(before);
    sequence.dispose();
    expect(await codeOf(() => model.step([{ sequence, tokens: [1] }]))).toBe('ERR_INVALID_ARG');
    expect(await continueAlone(model, short, 4)).toEqual(golden.prompts[1]?.greedy.slice(0, 4));
  }));

test('load options out of range are named', async () => {
  const bad: [object, string][] = [
    [{ context: 0 }, 'ERR_INVALID_ARG'],
    [{ context: 10 ** 9 }, 'ERR_INVALID_ARG'],
    [{ maxSequences: 1.5 }, 'ERR_INVALID_ARG'],
    [{ pages: 0 }, 'ERR_INVALID_ARG'],
    [{ prefillChunk: Number.NaN }, 'ERR_INVALID_ARG'],
    [{ device: 'gpu' }, 'ERR_INVALID_ARG'],
    [{ threads: -1 }, 'ERR_INVALID_ARG'],
    [{ latentNormEps: 0 }, 'ERR_INVALID_ARG'],
    [{ pages: 2 ** 24, context: 5120 }, 'ERR_OUT_OF_MEMORY'],
  ];
  for (const [more, code] of bad) {
    const tried = { ...options, ...more };
    expect([tried, await codeOf(() => LatentModel.load(golden.dir, tried as never))]).toEqual([tried, code]);
  }
});

test('no free page: refused, nothing taken; the same request works once pages are back', () =>
  withModel(
    async (model) => {
      const [a, b] = [model.openSequence(), model.openSequence()];
      a.setSampling(greedy(long, 4));
      await model.step([{ sequence: a, tokens: long }]);
      const free = model.stats().pagesFree;
      expect(await codeOf(() => model.step([{ sequence: b, tokens: long }]))).toBe('ERR_NO_PAGES');
      expect(model.stats().pagesFree).toBe(free);
      a.dispose();
      const [result] = await model.step([{ sequence: b, tokens: long }]);
      expect(result?.token).toBe(golden.prompts[2]?.greedy[0]);
      b.dispose();
      expect(model.stats().pagesFree).toBe(model.stats().pagesTotal);
    },
    { pages: 8 },
  ));

test('every allocation of a load that fails gives a typed error, leaks nothing, and the next load works', async () => {
  native.failAllocation(-1);
  await withModel(async () => {});
  const sites = native.allocationCount();
  expect(sites).toBeGreaterThan(3);
  for (let k = 0; k < sites; k++) {
    native.failAllocation(k);
    expect([k, await codeOf(() => LatentModel.load(golden.dir, options))]).toEqual([k, outOfMemory]);
  }
  native.failAllocation(-1);
  await withModel(async (model) => {
    expect(await continueAlone(model, short, 4)).toEqual(golden.prompts[1]?.greedy.slice(0, 4));
  });
  console.log(`${sites} allocations of a load failed, one by one`);
});

test('every allocation of a request that fails gives a typed error, and the next request is right', () =>
  withModel(async (model) => {
    native.failAllocation(-1);
    await continueAlone(model, long, 3);
    const sites = native.allocationCount();
    const { allocatedBytes } = model.stats();
    for (let k = 0; k < sites; k++) {
      native.failAllocation(k);
      expect([k, await codeOf(() => continueAlone(model, long, 3))]).toEqual([k, outOfMemory]);
      native.failAllocation(-1);
      expect(await continueAlone(model, short, 4)).toEqual(golden.prompts[1]?.greedy.slice(0, 4));
      expect(model.stats().pagesFree).toBe(model.stats().pagesTotal);
      expect(model.stats().allocatedBytes).toBe(allocatedBytes);
    }
    console.log(`${sites} allocations of a request failed, one by one`);
  }));

test('a checkpoint cut, or a load aborted, half-way: a typed error, nothing leaks', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'mla-model-'));
  try {
    for (const name of [
      'config.json',
      'model-00001-of-00002.safetensors',
      'model-00002-of-00002.safetensors',
      'model.safetensors.index.json',
    ]) {
      writeFileSync(join(dir, name), readFileSync(join(golden.dir, name)));
    }
    const shard = join(dir, 'model-00002-of-00002.safetensors');
    const whole = readFileSync(shard);
    const cutWhileLoading = LatentModel.load(dir, {
      ...options,
      onProgress: ({ phase, loadedBytes }) => {
        if (phase === 'weights' && loadedBytes === 0) writeFileSync(shard, whole.subarray(0, whole.length - 5000));
      },
    });
    expect(['ERR_FILE', 'ERR_CHECKPOINT']).toContain(await codeOf(() => cutWhileLoading));
    expect(await codeOf(() => LatentModel.load(dir, options))).toBe('ERR_SAFETENSORS');
    writeFileSync(shard, whole);
    const abort = new AbortController();
    const aborted = LatentModel.load(dir, {
      ...options,
      signal: abort.signal,
      onProgress: ({ phase }) => phase === 'weights' && abort.abort(new Error('enough')),
    });
    await expect(aborted).rejects.toThrow('enough');
    const model = await LatentModel.load(dir, options);
    expect(await continueAlone(model, short, 4)).toEqual(golden.prompts[1]?.greedy.slice(0, 4));
    await model.dispose();
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('a router bias that is not finite is refused before anything is allocated', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'node-mla-bias-'));
  try {
    cpSync(golden.dir, dir, { recursive: true });
    const name = 'model.layers.1.mlp.gate.e_score_correction_bias';
    const index = JSON.parse(readFileSync(join(dir, 'model.safetensors.index.json'), 'utf8'));
    const shard = join(dir, index.weight_map[name]);
    const { offset = 0, dtype } = (await readSafetensorsHeader(shard)).tensors.get(name) ?? {};
    const bytes = readFileSync(shard);
    expect(dtype).toBe('F32');
    bytes.writeFloatLE(Number.NaN, offset + 4);
    writeFileSync(shard, bytes);
    expect(await codeOf(() => LatentModel.load(dir, options))).toBe('ERR_CHECKPOINT');
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('after dispose everything is refused, and dispose is idempotent', async () => {
  const model = await LatentModel.load(golden.dir, options);
  const sequence = model.openSequence();
  const pending = model.step([{ sequence, tokens: long }]);
  await Promise.all([model.dispose(), model.dispose()]);
  await pending.catch((error) => expect(error).toBeInstanceOf(MlaError));
  expect(await codeOf(() => model.step([{ sequence, tokens: [1] }]))).toBe('ERR_DISPOSED');
  expect(await codeOf(() => model.score([1]))).toBe('ERR_DISPOSED');
  expect(await codeOf(() => model.openSequence())).toBe('ERR_DISPOSED');
  expect(model.stats().allocatedBytes).toBe(0);
});

test('60 loads and disposals leave the memory where it was', async () => {
  const once = () => withModel((model) => continueAlone(model, short, 2));
  for (let i = 0; i < 20; i++) await once();
  global.gc?.();
  const before = process.memoryUsage().rss;
  for (let i = 0; i < 60; i++) await once();
  global.gc?.();
  const growth = (process.memoryUsage().rss - before) / 2 ** 20;
  console.log(`resident memory grew by ${growth.toFixed(1)} MiB over 60 loads`);
  expect(growth).toBeLessThan(40);
});
