// mutations.ts - the mistakes that implementations of these models are known to make (test/golden/mutations.md), each
// made on purpose: in the weights that a model loads, in its options, or in what it tells the operations. Neither kernels
// nor sources are touched, so the same mistakes can be made on every device.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel, type LatentModelOptions } from '../../lib/model';
import { openDevice, type Stream, type Tensor, type Verbs } from '../../lib/native';
import { decode, dot, grouping, type RouteMistake, route } from '../cpu/reference';
import type { Golden } from './golden';

/** What the mutations look at in a config.json. */
export interface Config {
  kv_lora_rank: number;
  qk_nope_head_dim: number;
  qk_rope_head_dim: number;
  rms_norm_eps: number;
  routed_scaling_factor: number;
  n_group: number;
  scoring_func?: string;
  rope_scaling?: Record<string, number> | null;
}

/** A tensor of a file, its rows to be changed in place. */
interface StoredTensor {
  name: string;
  dtype: string;
  shape: number[];
  bytes: Buffer;
}

type Args<V extends keyof Verbs> = Parameters<Verbs[V]>[0];
/** What runs in place of operations; `right` is the operation itself. */
type Wrong = {
  [V in keyof Verbs]?: (args: Args<V>, right: (args: Args<V>) => void, stream: Stream, config: Config) => void;
};

/** One known mistake. */
export interface Mutation {
  name: string;
  /** Whether a model of this config can be wrong in this way; default all can. */
  exists?: (config: Config) => boolean;
  /** Changes config.json. */
  config?: (config: Config) => void;
  /** Changes a tensor of the checkpoint. */
  weights?: (tensor: StoredTensor, config: Config) => void;
  options?: LatentModelOptions;
  verbs?: Wrong;
  /** Routes on the host, with this mistake. */
  router?: RouteMistake;
}

const hasYarn = ({ rope_scaling }: Config) => rope_scaling != null;
const hasBias = ({ scoring_func }: Config) => scoring_func !== 'softmax';

/** 0.1 m ln s + 1, squared: what the softmax scale is multiplied by under YaRN. */
const yarnFactor = ({ rope_scaling }: Config) =>
  rope_scaling == null
    ? 1
    : (0.1 * (rope_scaling.mscale_all_dim as number) * Math.log(rope_scaling.factor as number) + 1) ** 2;

/** Both forms of attention with another softmax scale. */
const scaled = (factor: (config: Config) => number): Wrong => ({
  mlaDecode: (args, right, _, config) => right({ ...args, scale: args.scale * factor(config) }),
  mlaPrefill: (args, right, _, config) => right({ ...args, scale: args.scale * factor(config) }),
});

/** Swaps rows so that pairs (i, i + n/2) of the last n rows of every `group` become (2i, 2i + 1). */
function interleaveRows({ bytes, shape }: StoredTensor, group: number, n: number): void {
  const rows = shape[0] as number;
  const rowBytes = bytes.length / rows;
  const old = Buffer.from(bytes);
  for (let first = group - n; first < rows; first += group) {
    for (let i = 0; i < n; i++) {
      const from = first + (i >> 1) + (i & 1) * (n / 2);
      old.copy(bytes, (first + i) * rowBytes, from * rowBytes, (from + 1) * rowBytes);
    }
  }
}

/** Exponent of the power of two that stands in for "no norm". */
const UNNORMED = 40;

/** Multiplies bf16 values by 2^exponent. */
function scaleBf16({ bytes }: StoredTensor, exponent: number): void {
  for (let i = 0; i < bytes.length; i += 2) {
    const word = bytes.readUInt16LE(i);
    if ((word & 0x7f80) !== 0) bytes.writeUInt16LE(word + (exponent << 7), i);
  }
}

const BF16_ONE = 0x3f80;

/** Every mistake of the table. */
export const mutations: readonly Mutation[] = [
  { name: 'no YaRN softmax factor', exists: hasYarn, verbs: scaled((config) => 1 / yarnFactor(config)) },
  {
    // Where the blend between the frequencies begins behind the last pair, all of them stay as they are.
    name: 'no YaRN frequencies',
    exists: hasYarn,
    config: ({ rope_scaling, qk_rope_head_dim: r }) => {
      const yarn = rope_scaling as Record<string, number>;
      const pair = r / 2 + 0.5;
      const rotations =
        (yarn.original_max_position_embeddings as number) /
        (2 * Math.PI * Math.exp((2 * pair * Math.log(yarn.rope_theta ?? 10000)) / r));
      yarn.beta_fast = rotations;
      yarn.beta_slow = rotations;
    },
  },
  {
    // Rotating (i, i + r/2) is rotating (2i, 2i + 1) of rows in another order, the same in queries and keys.
    name: 'RoPE in half layout',
    weights: (tensor, { qk_nope_head_dim: n, qk_rope_head_dim: r }) => {
      if (/kv_a_proj_with_mqa\.weight$/.test(tensor.name)) interleaveRows(tensor, tensor.shape[0] as number, r);
      if (/\bq(_b)?_proj\.weight$/.test(tensor.name)) interleaveRows(tensor, n + r, r);
    },
  },
  {
    name: 'softmax scale (rank + rope)^-0.5',
    verbs: scaled(({ qk_nope_head_dim: n, qk_rope_head_dim: r, kv_lora_rank: c }) => Math.sqrt((n + r) / (c + r))),
  },
  {
    // x / sqrt(mean + 2^40) * 2^20 is x.
    name: 'latent not normed',
    weights: (tensor) => {
      if (/kv_a_layernorm\.weight$/.test(tensor.name)) scaleBf16(tensor, UNNORMED / 2);
    },
    verbs: { latentCompress: (args, right) => right({ ...args, latent_eps: 2 ** UNNORMED }) },
  },
  {
    name: 'latent norm without weight',
    weights: ({ name, bytes }) => {
      if (!/kv_a_layernorm\.weight$/.test(name)) return;
      for (let i = 0; i < bytes.length; i += 2) bytes.writeUInt16LE(BF16_ONE, i);
    },
  },
  {
    name: 'latent norm eps 1e-6 for rms_norm_eps',
    exists: ({ rms_norm_eps }) => rms_norm_eps !== 1e-6,
    options: { latentNormEps: 1e-6 },
  },
  { name: 'routing weights with bias', exists: hasBias, router: { biased: true } },
  {
    name: 'group mask 0 for -inf',
    exists: (config) => hasBias(config) && config.n_group > 1,
    router: { mask: 0 },
  },
  {
    name: 'softmax for sigmoid scores',
    exists: hasBias,
    verbs: { moeRoute: (args, right) => right({ ...args, sigmoid: false }) },
  },
  {
    name: 'routed scaling factor twice',
    exists: ({ routed_scaling_factor }) => routed_scaling_factor !== 1,
    verbs: { moeRoute: (args, right) => right({ ...args, scale: args.scale ** 2 }) },
  },
  {
    name: 'no shared expert',
    weights: ({ name, bytes }) => {
      if (/shared_experts\.down_proj\.weight$/.test(name)) bytes.fill(0);
    },
  },
  {
    name: 'mask hides the newest key (absorbed form)',
    verbs: {
      mlaDecode: (args, right, stream) => {
        const [rows, heads] = args.q.shape as [number, number];
        stream.write(args.lengths, Int32Array.of(rows - 1));
        stream.decodePlan({ q_start: args.q_start, lengths: args.lengths, plan: args.plan, heads });
        right(args);
      },
    },
  },
  {
    name: 'mask shows the next key (expanded form)',
    verbs: {
      mlaPrefill: (args, right, stream) => {
        stream.write(args.q_pos, Int32Array.of(1));
        right(args);
      },
    },
  },
];

/** No mistake, by the ways that mutations go: a control of them. */
export const controls: readonly Mutation[] = [
  { name: 'none', weights: () => {} },
  { name: 'none, routed on the host', router: {} },
];

/** How far log-probabilities are from the reference, over all prompts of a golden checkpoint. */
export interface Distance {
  worst: number;
  mean: number;
}

/** NaN is as wrong as can be. */
const WRONG = 1e9;

/**
 * Distances by checkpoint of models that make this mistake; checkpoints that cannot make it are left out. A prompt runs
 * in one pass: the mistakes in masks count on that.
 */
export async function distancesWith(
  mutation: Mutation,
  goldens: readonly Golden[],
  options: LatentModelOptions,
): Promise<Record<string, Distance>> {
  const distances: Record<string, Distance> = {};
  for (const golden of goldens) {
    const config = JSON.parse(readFileSync(join(golden.dir, 'config.json'), 'utf8')) as Config;
    if (mutation.exists?.(config) === false) continue;
    const dir = mkdtempSync(join(tmpdir(), 'mla-mutation-'));
    try {
      writeMutated(mutation, golden.dir, dir, config);
      const one = { context: 1024, prefillChunk: 1024, maxSequences: 1, ...options, ...mutation.options };
      const model = await LatentModel.load(dir, one);
      try {
        distances[golden.name] = await distanceOf(mutation, golden, model, config);
      } finally {
        await model.dispose();
      }
    } finally {
      rmSync(dir, { recursive: true });
    }
  }
  return distances;
}

/** A copy of the checkpoint in `from`, as the mutation changes it. */
function writeMutated(mutation: Mutation, from: string, to: string, config: Config): void {
  cpSync(from, to, { recursive: true, dereference: true, filter: (path) => !path.endsWith('golden.json') });
  const changed = structuredClone(config);
  mutation.config?.(changed);
  writeFileSync(join(to, 'config.json'), JSON.stringify(changed));
  if (mutation.weights === undefined) return;
  for (const name of readdirSync(to).filter((file) => file.endsWith('.safetensors'))) {
    const file = readFileSync(join(to, name));
    const data = 8 + Number(file.readBigUInt64LE(0));
    const header = JSON.parse(file.toString('utf8', 8, data)) as Record<
      string,
      { dtype: string; shape: number[]; data_offsets: [number, number] }
    >;
    for (const [tensor, { dtype, shape, data_offsets }] of Object.entries(header)) {
      if (tensor === '__metadata__') continue;
      const [begin, end] = data_offsets;
      mutation.weights({ name: tensor, dtype, shape, bytes: file.subarray(data + begin, data + end) }, config);
    }
    writeFileSync(join(to, name), file);
  }
}

async function distanceOf(mutation: Mutation, golden: Golden, model: LatentModel, config: Config): Promise<Distance> {
  let worst = 0;
  let sum = 0;
  let count = 0;
  for (const { tokens, logprobs } of golden.prompts) {
    const ours = await logprobsWith(mutation, model, tokens, config);
    logprobs.forEach((reference, i) => {
      if (reference === null) return;
      const difference = Math.abs((ours[i] as number) - reference);
      worst = Math.max(worst, Number.isFinite(difference) ? difference : WRONG);
      sum += Number.isFinite(difference) ? difference : WRONG;
      count++;
    });
  }
  return { worst, mean: sum / count };
}

/** Outputs of moeRoute that its mutations replace. */
const ROUTED = ['ids', 'weights', 'offsets', 'order', 'slots'] as const;
type Routed = Record<(typeof ROUTED)[number], ArrayBufferView>;

/** Log-probabilities of a text by a model that makes this mistake in what it tells the operations. */
export async function logprobsWith(
  { verbs = {}, router }: Mutation,
  model: LatentModel,
  tokens: number[],
  config: Config,
): Promise<ArrayLike<number>> {
  const score = async (wrong: Wrong) => {
    const restore = replaceVerbs(wrong, config);
    try {
      return (await model.score(tokens)).logprobs;
    } finally {
      restore();
    }
  };
  if (router === undefined) return score(verbs);
  // The rows that reach a router depend on the routers before it, and what is on the device can be read only after the
  // pass. So a text runs once more for each router: the ones before it are known by then.
  const known: Routed[] = [];
  for (;;) {
    let call = 0;
    let next: Promise<Routed> | undefined;
    const logprobs = await score({
      moeRoute: (args, right, stream) => {
        right(args);
        const routed = known[call++];
        if (routed !== undefined) for (const name of ROUTED) stream.write(args[name], routed[name]);
        else next ??= routeOnHost(args, stream, router);
      },
    });
    if (next === undefined) return logprobs;
    known.push(await next);
  }
}

/** All streams have their methods from one prototype. */
const methods = (() => {
  const device = openDevice('cpu', { threads: 1 });
  const prototype = Object.getPrototypeOf(device.stream()) as Record<string, (args: never) => void>;
  device.dispose();
  return prototype;
})();

/** Puts the wrong operations in place. Returns the undoing. */
function replaceVerbs(wrong: Wrong, config: Config): () => void {
  const before = Object.keys(wrong).map((verb) => [verb, methods[verb]] as const);
  for (const [verb, right] of before) {
    const replaced = wrong[verb as keyof Verbs] as (...all: unknown[]) => void;
    methods[verb] = function (this: Stream, args: never) {
      replaced(args, (changed: never) => right?.call(this, changed), this, config);
    };
  }
  return () => {
    for (const [verb, right] of before) methods[verb] = right as (args: never) => void;
  };
}

/** What moeRoute would write if it made this mistake, from the normed rows that it has written. */
async function routeOnHost(args: Args<'moeRoute'>, stream: Stream, mistake: RouteMistake): Promise<Routed> {
  const [rows, d] = args.normed.shape as [number, number];
  const experts = args.gate.shape[0] as number;
  const values = async (tensor: Tensor) => decode(tensor.dtype, await stream.read(tensor));
  const [x, gate, bias] = await Promise.all([
    values(args.normed),
    values(args.gate),
    args.bias === undefined ? undefined : values(args.bias),
  ]);
  const ids: number[] = [];
  const weights: number[] = [];
  for (let t = 0; t < rows; t++) {
    const logits = Array.from({ length: experts }, (_, e) => dot(x, t * d, gate, e * d, d));
    const row = route(logits, bias && Array.from(bias), args, mistake);
    const shared = Array.from({ length: args.shared }, (_, j) => experts + j);
    ids.push(...row.ids, ...shared);
    weights.push(...row.weights, ...shared.map(() => 1));
  }
  const { offsets, order, slots } = grouping(ids, { experts, ...args });
  return {
    ids: Int32Array.from(ids),
    weights: Float32Array.from(weights),
    offsets: Int32Array.from(offsets),
    order: Int32Array.from(order),
    slots: Int32Array.from(slots),
  };
}
