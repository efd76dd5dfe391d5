// bench/serve.ts - the engine under load: requests that arrive at random moments, and how long each of them waits; beside
// it the same requests in fixed batches, and what a second request gains from the beginning that it shares with a first.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { type Generation, type Model, modelOf } from '../engine';
import type { LatentModel } from '../model';
import type { DeviceInfo } from '../native';
import { decodeSteps, loadBenchModel, type ModelBenchOptions, openSequences, promptOf } from './model-bench';
import { median } from './timing';

/**
 * How fast requests arrive: so many per second, so many per cent of what 'max' reached, or 'max': all at once. 'static'
 * is no load of the engine: batches of `parallel` requests go straight to the model, which prefills all prompts of a
 * batch and then decodes them together to their end.
 */
export type Load = { perSecond: number } | { percent: number } | 'max' | 'static';

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
  /** prompt tokens of a step */
  chunk: number;
  /** tokens of the beginning that pairs of requests share (see {@link PrefixResult}); 0 leaves that out */
  system: number;
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

/** How busy and how punctual the main thread was. */
export interface MainThread {
  /** microseconds in each step of the model: engine, addon and the consumers of this bench */
  busyUs: number;
  /** by how many milliseconds the event loop was late for a timer that is due every millisecond */
  late: Percentiles;
}

/** What one load gave. */
export interface ServeResult {
  /** 'static', 'max', '50%' or '4/s' */
  load: string;
  requests: number;
  /** requests per second as they arrived; null where all came at once */
  arrivalsPerSecond: number | null;
  /** requests that ended, per second */
  requestsPerSecond: number;
  /** new tokens per second, from the first arrival to the last end */
  tokensPerSecond: number;
  /** tokensPerSecond over that of 'static'; null where that was not run before */
  ofStatic: number | null;
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
  /** what the main thread did; null for 'static' */
  mainThread: MainThread | null;
  device: DeviceInfo;
}

/** What two requests saw, one after the other on the idle engine, that begin with the same tokens. */
export interface PrefixResult {
  /** tokens they share, and those that each has alone behind them */
  shared: number;
  own: number;
  /** milliseconds to the first token, of each pair's first and second request */
  first: number[];
  second: number[];
  /** median of the first ones over that of the second ones */
  ratio: number;
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

/** Pairs of requests of a {@link PrefixResult}, and the tokens that each of them has alone: a short and a long question. */
const PAIRS = 5;
const OWN_TOKENS = [16, 64] as const;

/**
 * Runs all loads, one after the other, each on an idle engine and with prompts of its own; then the pairs, if any.
 * Rejects with what loading or a request rejects with.
 */
export async function benchServe(
  options: ServeBenchOptions,
  report: (result: ServeResult) => void,
): Promise<PrefixResult[]> {
  const { parallel, prompt, output, chunk, system } = options;
  const context = Math.max(prompt + output, system > 0 ? system + Math.max(...OWN_TOKENS) + 1 : 0);
  const latent = await loadBenchModel(options, { maxSequences: parallel, context, prefillChunk: chunk });
  const model = modelOf(latent, null, 'shape' in options.model ? options.model.shape : options.model.dir, chunk);
  try {
    // Graphs are captured and memory is touched before the first clock starts.
    const warm = Array.from({ length: parallel }, (_, i) => start(model, options, -1 - i, 4).result);
    await Promise.all(warm);
    let most: number | null = null;
    let fixed: number | null = null;
    for (const [i, one] of options.loads.entries()) {
      options.signal?.throwIfAborted();
      if (typeof one === 'object' && 'percent' in one && most === null)
        throw new Error("a load in per cent needs the load 'max' before it");
      // What the cache still has of an earlier load's prompts must not help.
      const first = i * options.requests;
      const result: Omit<ServeResult, 'ofStatic'> =
        one === 'static'
          ? await serveStatic(latent, model, options, first)
          : await serve(model, options, first, nameOf(one), rateOf(one, most));
      if (one === 'max') most = result.requestsPerSecond;
      if (one === 'static') fixed = result.tokensPerSecond;
      report({ ...result, ofStatic: fixed === null ? null : result.tokensPerSecond / fixed });
    }
    const pairs: PrefixResult[] = [];
    for (const own of system > 0 ? OWN_TOKENS : []) pairs.push(await servePairs(model, options, own));
    return pairs;
  } finally {
    await model.dispose();
  }
}

const rateOf = (load: Exclude<Load, 'static'>, most: number | null): number | null =>
  load === 'max' ? null : 'percent' in load ? ((most as number) * load.percent) / 100 : load.perSecond;

const nameOf = (load: Exclude<Load, 'static'>): string =>
  load === 'max' ? 'max' : 'percent' in load ? `${load.percent}%` : `${load.perSecond}/s`;

/** The prompt of request `index`. */
function promptFor({ prompt, shared }: ServeBenchOptions, vocab: number, index: number): number[] {
  return [...promptOf(shared, vocab, 0), ...promptOf(prompt - shared, vocab, index + 1_000_003)];
}

function start(model: Model, options: ServeBenchOptions, index: number, maxTokens: number): Generation {
  const ids = promptFor(options, model.info.vocabSize, index);
  return model.generate(ids, { maxTokens, temperature: 0, ignoreEos: true, signal: options.signal });
}

/** Milliseconds to the first token of requests that come one by one and share a beginning by twos. */
async function servePairs(model: Model, { system, signal }: ServeBenchOptions, own: number): Promise<PrefixResult> {
  const vocab = model.info.vocabSize;
  const once = async (pair: number, which: number) => {
    // Other lengths have other pairs, so that each pair's first request finds nothing of its prompt.
    const seed = own * (PAIRS + 1) + pair;
    const ids = [...promptOf(system, vocab, 2_000_003 + seed), ...promptOf(own, vocab, 3_000_017 + 2 * seed + which)];
    const seen = await watch(model.generate(ids, { maxTokens: 1, temperature: 0, ignoreEos: true, signal }));
    return seen.firstToken;
  };
  const first: number[] = [];
  const second: number[] = [];
  for (let pair = 0; pair <= PAIRS; pair++) {
    const seen = [await once(pair, 0), await once(pair, 1)] as const;
    if (pair === 0) continue; // code is compiled, sizes are new
    first.push(seen[0]);
    second.push(seen[1]);
  }
  return { shared: system, own, first, second, ratio: median(first) / median(second) };
}

/** The same requests without the engine, in batches that begin and end together. */
async function serveStatic(
  latent: LatentModel,
  model: Model,
  options: ServeBenchOptions,
  first: number,
): Promise<Omit<ServeResult, 'ofStatic'>> {
  const { requests, parallel, output, prompt, signal } = options;
  const seen: Seen[] = [];
  const began = performance.now();
  for (let done = 0; done < requests; done += parallel) {
    const sequences = openSequences(latent, Math.min(parallel, requests - done));
    try {
      const queue = performance.now() - began;
      const moments: number[] = [];
      const prompts = sequences.map((sequence, i) => ({
        sequence,
        tokens: promptFor(options, latent.vocab, first + done + i),
      }));
      await latent.step(prompts);
      moments.push(performance.now() - began);
      const entries = sequences.map((sequence) => ({ sequence }));
      await decodeSteps(latent, entries, output - 1, signal, () => moments.push(performance.now() - began));
      const [firstToken, whole] = [moments[0] as number, moments.at(-1) as number];
      const gaps = moments.slice(1).map((at, i) => at - (moments[i] as number));
      const perToken = (whole - firstToken) / Math.max(1, output - 1);
      for (const _ of sequences)
        seen.push({ firstToken, perToken, gaps, whole, queue, tokens: output, prompt, cached: 0 });
    } finally {
      for (const sequence of sequences) sequence.dispose();
    }
  }
  return summary('static', seen, (performance.now() - began) / 1000, null, [0], model.info.device);
}

async function serve(
  model: Model,
  options: ServeBenchOptions,
  first: number,
  name: string,
  perSecond: number | null,
): Promise<Omit<ServeResult, 'ofStatic'>> {
  const { requests, seed } = options;
  const arrivals = perSecond === null ? new Array<number>(requests).fill(0) : poisson(requests, perSecond, seed);
  const mainThread = await watchMainThread(model);
  const began = performance.now();
  const waiting: number[] = [];
  const seen = await Promise.all(
    arrivals.map(async (at, i) => {
      await until(began + at);
      const watched = watch(start(model, options, first + i, options.output));
      watched.catch(() => {}); // awaited below
      await new Promise((resolve) => setImmediate(resolve)); // the engine has it now
      waiting.push((await model.stats()).waiting);
      return watched;
    }),
  );
  const seconds = (performance.now() - began) / 1000;
  const busy = await mainThread();
  return { ...summary(name, seen, seconds, perSecond, waiting, model.info.device), mainThread: busy };
}

/** @returns what says how the main thread has done since, while the engine has made steps */
async function watchMainThread(model: Model): Promise<() => Promise<MainThread>> {
  const monitor = monitorEventLoopDelay({ resolution: 1 });
  const { steps } = await model.stats();
  const loop = performance.eventLoopUtilization();
  monitor.enable();
  return async () => {
    monitor.disable();
    const { active } = performance.eventLoopUtilization(loop);
    const made = (await model.stats()).steps - steps;
    const late = (ns: number) => Math.max(0, ns / 1e6 - 1);
    const [p50, p90, p99] = [50, 90, 99].map((share) => late(monitor.percentile(share))) as [number, number, number];
    return {
      busyUs: (active * 1000) / made,
      late: { mean: late(monitor.mean), p50, p90, p99, max: late(monitor.max) },
    };
  };
}

function summary(
  load: string,
  seen: readonly Seen[],
  seconds: number,
  perSecond: number | null,
  waiting: readonly number[],
  device: DeviceInfo,
): Omit<ServeResult, 'ofStatic'> {
  const sum = (of: (one: Seen) => number) => seen.reduce((total, one) => total + of(one), 0);
  return {
    load,
    requests: seen.length,
    arrivalsPerSecond: perSecond,
    requestsPerSecond: seen.length / seconds,
    tokensPerSecond: sum(({ tokens }) => tokens) / seconds,
    firstToken: percentiles(seen.map(({ firstToken }) => firstToken)),
    perToken: percentiles(seen.map(({ perToken }) => perToken)),
    betweenTokens: percentiles(seen.flatMap(({ gaps }) => gaps)),
    whole: percentiles(seen.map(({ whole }) => whole)),
    queue: percentiles(seen.map(({ queue }) => queue)),
    waiting: { mean: waiting.reduce((a, b) => a + b, 0) / waiting.length, max: Math.max(...waiting) },
    cachedShare: sum(({ cached }) => cached) / sum(({ prompt }) => prompt),
    mainThread: null,
    device,
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
