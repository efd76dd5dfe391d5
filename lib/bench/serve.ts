// bench/serve.ts - the engine under load: requests that arrive at random moments, and how long each of them waits.
import { type Generation, loadModel, type Model, modelOf } from '../engine';
import { LatentModel } from '../model';
import type { DeviceInfo } from '../native';
import { type ModelBenchOptions, promptOf } from './model-bench';

/** How fast requests arrive: so many per second, so many per cent of what 'max' reached, or 'max': all at once. */
export type Load = { perSecond: number } | { percent: number } | 'max';

/** Options of {@link benchServe}. */
export interface ServeBenchOptions extends ModelBenchOptions {
  /** one result each; a percentage needs 'max' before it */
  loads: readonly Load[];
  requests: number;
  /** tokens of each prompt, `shared` of them the same in all */
  prompt: number;
  shared: number;
  /** new tokens of each request */
  output: number;
  /** sequences that run at once */
  parallel: number;
  /** of the arrivals */
  seed: number;
}

/** Of a set of durations in milliseconds. */
export interface Percentiles {
  mean: number;
  p50: number;
  p90: number;
  p99: number;
  max: number;
}

/** What one load gave. */
export interface ServeResult {
  /** 'max', '50%' or '4/s' */
  load: string;
  requests: number;
  /** requests per second as they arrived; null where all came at once */
  arrivalsPerSecond: number | null;
  /** requests that ended, per second */
  requestsPerSecond: number;
  /** new tokens per second, from the first arrival to the last end */
  tokensPerSecond: number;
  /** from a request's arrival to its first token, as its consumer sees it */
  firstToken: Percentiles;
  /** between a request's first token and its last, per token */
  perToken: Percentiles;
  /** between two tokens that came one after the other */
  betweenTokens: Percentiles;
  /** from a request's arrival to its end */
  whole: Percentiles;
  /** from a request's arrival to its first prompt token on the device */
  queue: Percentiles;
  /** requests without a place just after one has arrived, itself included */
  waiting: { mean: number; max: number };
  /** share of the prompts' tokens that the cache had */
  cachedShare: number;
  device: DeviceInfo;
}

/** What one request saw, in milliseconds. */
interface Seen {
  firstToken: number;
  perToken: number;
  gaps: number[];
  whole: number;
  queue: number;
  tokens: number;
  prompt: number;
  cached: number;
}

/**
 * Runs all loads, one after the other, each on an empty engine.
 * Rejects with what loading or a request rejects with.
 */
export async function benchServe(options: ServeBenchOptions, report: (result: ServeResult) => void): Promise<void> {
  const model = await load(options);
  try {
    // Graphs are captured and memory is touched before the first clock starts.
    const warm = Array.from({ length: options.parallel }, (_, i) => start(model, options, -1 - i, 4).result);
    await Promise.all(warm);
    let most: number | null = null;
    for (const one of options.loads) {
      options.signal?.throwIfAborted();
      if (typeof one === 'object' && 'percent' in one && most === null)
        throw new Error("a load in per cent needs the load 'max' before it");
      const perSecond: number | null =
        one === 'max' ? null : 'percent' in one ? ((most as number) * one.percent) / 100 : one.perSecond;
      const result = await serve(model, options, nameOf(one), perSecond);
      if (one === 'max') most = result.requestsPerSecond;
      report(result);
    }
  } finally {
    await model.dispose();
  }
}

const nameOf = (load: Load): string =>
  load === 'max' ? 'max' : 'percent' in load ? `${load.percent}%` : `${load.perSecond}/s`;

async function load(options: ServeBenchOptions): Promise<Model> {
  const { model, device, dtype, threads, signal, parallel, prompt, output } = options;
  const placed = { device, dtype, threads, signal, maxSequences: parallel, context: prompt + output };
  if ('dir' in model) return loadModel(model.dir, placed);
  return modelOf(await LatentModel.random(model.shape, placed), null, model.shape);
}

function start(model: Model, options: ServeBenchOptions, index: number, maxTokens: number): Generation {
  const { prompt, shared, signal } = options;
  const { vocabSize } = model.info;
  const own = promptOf(prompt - shared, vocabSize, index + 1_000_003);
  const ids = [...promptOf(shared, vocabSize, 0), ...own];
  return model.generate(ids, { maxTokens, temperature: 0, ignoreEos: true, signal });
}

async function serve(
  model: Model,
  options: ServeBenchOptions,
  name: string,
  perSecond: number | null,
): Promise<ServeResult> {
  const { requests, seed } = options;
  const arrivals = perSecond === null ? new Array<number>(requests).fill(0) : poisson(requests, perSecond, seed);
  const began = performance.now();
  const waiting: number[] = [];
  const seen = await Promise.all(
    arrivals.map(async (at, i) => {
      await until(began + at);
      const watched = watch(start(model, options, i, options.output));
      watched.catch(() => {}); // awaited below
      await new Promise((resolve) => setImmediate(resolve)); // the engine has it now
      waiting.push((await model.stats()).waiting);
      return watched;
    }),
  );
  const seconds = (performance.now() - began) / 1000;
  const sum = (of: (one: Seen) => number) => seen.reduce((total, one) => total + of(one), 0);
  return {
    load: name,
    requests,
    arrivalsPerSecond: perSecond,
    requestsPerSecond: requests / seconds,
    tokensPerSecond: sum(({ tokens }) => tokens) / seconds,
    firstToken: percentiles(seen.map(({ firstToken }) => firstToken)),
    perToken: percentiles(seen.map(({ perToken }) => perToken)),
    betweenTokens: percentiles(seen.flatMap(({ gaps }) => gaps)),
    whole: percentiles(seen.map(({ whole }) => whole)),
    queue: percentiles(seen.map(({ queue }) => queue)),
    waiting: { mean: waiting.reduce((a, b) => a + b, 0) / requests, max: Math.max(...waiting) },
    cachedShare: sum(({ cached }) => cached) / sum(({ prompt }) => prompt),
    device: model.info.device,
  };
}

async function watch(generation: Generation): Promise<Seen> {
  const arrived = performance.now();
  let first = 0;
  let last = 0;
  const gaps: number[] = [];
  for await (const _ of generation) {
    const now = performance.now();
    if (first === 0) first = now;
    else gaps.push(now - last);
    last = now;
  }
  const { usage, timings } = await generation.result;
  return {
    firstToken: first - arrived,
    perToken: (last - first) / Math.max(1, usage.completionTokens - 1),
    gaps,
    whole: performance.now() - arrived,
    queue: timings.queueMs,
    tokens: usage.completionTokens,
    prompt: usage.promptTokens,
    cached: usage.cachedTokens,
  };
}

/** Milliseconds at which requests arrive whose distances are exponential: the first comes at once. */
export function poisson(count: number, perSecond: number, seed: number): number[] {
  let state = seed >>> 0;
  let at = 0;
  return Array.from({ length: count }, (_, i) => {
    if (i === 0) return 0;
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    const uniform = ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    at += (-Math.log(1 - uniform) * 1000) / perSecond;
    return at;
  });
}

/** Of at least one value: the value below which that share of all lies, nearest rank. */
export function percentiles(values: readonly number[]): Percentiles {
  const sorted = [...values].sort((a, b) => a - b);
  const rank = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0;
  const mean = sorted.reduce((a, b) => a + b, 0) / Math.max(1, sorted.length);
  return { mean, p50: rank(0.5), p90: rank(0.9), p99: rank(0.99), max: rank(1) };
}

async function until(moment: number): Promise<void> {
  const left = moment - performance.now();
  if (left > 0) await new Promise((resolve) => setTimeout(resolve, left));
}
