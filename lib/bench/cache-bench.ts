// bench/cache-bench.ts - what the latent cache buys: decode steps of one model with its latent cache and with a cache of
// per-head keys and values, as the same attention would need without the latent.
//
// Both sides replay the captured decode step of the model, embedding to sampling. Attention reads a cache of this file
// instead of the model's, of any length, with random rows: its speed does not depend on what stands there. The per-head
// side has in place of queryAbsorb, mlaDecode and valueExpand the product that makes the new token's keys and values out
// of its latent, RoPE on the query, and mhaDecode. Writing the new row to the cache is left out, in its favour.
import type { LatentModel } from '../model';
import type { DeviceInfo, Stream, Tensor, Verbs } from '../native';
import { Anchors } from './anchors';
import { Fp8Pages } from './fp8-pages';
import { loadBenchModel, type ModelBenchOptions, mustBeSound, nameOf, openSequences, promptOf } from './model-bench';
import type { Sweep } from './records';
import { median, timeGraph } from './timing';
import { Dice, shuffle, Workbench } from './workbench';

/** Options of {@link benchCache}. */
export interface CacheBenchOptions extends ModelBenchOptions {
  /** sequences that decode together, on both sides; the most that fit are added on each */
  batches: readonly number[];
  /** tokens in the cache of each */
  depth: number;
  /** bytes that weights, buffers and cache may take together; default 9/10 of the device's memory */
  budget?: number | undefined;
}

/** What attention reads. */
export type CacheForm = 'latent' | 'per-head';

/** What fits into the budget. */
export interface CacheCapacity {
  form: CacheForm;
  bytesPerToken: number;
  /** of one sequence, whatever the model was trained for */
  longestContext: number;
  /** at the depth of the options, at most MOST_SEQUENCES */
  mostSequences: number;
}

/** One measured batch. */
export interface CacheResult {
  id: string;
  form: CacheForm;
  batch: number;
  depth: number;
  sweep: Sweep;
  /** microseconds of a decode step, the median */
  us: number;
  /** generated in all: what the median gives, and every sample */
  tokensPerSecond: number;
  repetitions: number[];
  /** microseconds that attention takes over the cache of one layer, in a chain of all layers */
  attentionUs: number;
  /** bytes of cache that it reads per second; the most that this GPU's memory gives, where that is known */
  attentionBytesPerSecond: number;
  ceilingBytesPerSecond: number | null;
  device: DeviceInfo;
}

const MOST_SEQUENCES = 1024;
const PAGE = 64;
const PROMPT_TOKENS = 8;
const SAMPLES = 9;
const FORMS = ['latent', 'per-head'] as const;

/** Measures both sides. Rejects with what loading or a step rejects with. */
export async function benchCache(
  options: CacheBenchOptions,
  begin: (capacities: readonly CacheCapacity[], budget: number) => void,
  report: (result: CacheResult) => void,
): Promise<void> {
  // The model's own cache only holds the few tokens that make its rows live.
  const model = await loadBenchModel(options, { maxSequences: MOST_SEQUENCES, context: PAGE, prefillChunk: 512 });
  try {
    const budget = options.budget ?? Math.floor(0.9 * model.deviceInfo.memoryTotal);
    const room = budget - (model.memory.total - model.memory.cache);
    const capacities = FORMS.map((form) => capacityOf(model, form, room, options.depth));
    begin(capacities, budget);
    for (const { form, mostSequences } of capacities) {
      const batches = new Set([...options.batches.filter((batch) => batch <= mostSequences), mostSequences]);
      batches.delete(0);
      if (batches.size > 0)
        await measureForm(
          model,
          form,
          [...batches].sort((a, b) => a - b),
          options,
          report,
        );
    }
  } finally {
    await model.dispose();
  }
}

const actOf = ({ deviceInfo }: LatentModel) => (deviceInfo.kind === 'cpu' ? 'f32' : 'bf16');

/** Elements of a token's keys and values in one layer, all heads. */
function perHeadRow({ config: c }: LatentModel): number {
  return c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim);
}

/** Bytes that a token takes in one layer. A latent cache may be fp8; keys and values have the activations' type. */
function rowBytes(model: LatentModel, form: CacheForm): number {
  if (form === 'latent') return model.memory.cachePerToken / model.config.num_hidden_layers;
  return perHeadRow(model) * (actOf(model) === 'f32' ? 4 : 2);
}

function capacityOf(model: LatentModel, form: CacheForm, room: number, depth: number): CacheCapacity {
  const bytesPerToken = rowBytes(model, form) * model.config.num_hidden_layers;
  const pages = Math.max(0, Math.floor(room / (bytesPerToken * PAGE)));
  const mostSequences = Math.min(MOST_SEQUENCES, Math.floor(pages / Math.ceil(depth / PAGE)));
  return { form, bytesPerToken, longestContext: pages * PAGE, mostSequences };
}

async function measureForm(
  model: LatentModel,
  form: CacheForm,
  batches: readonly number[],
  options: CacheBenchOptions,
  report: (result: CacheResult) => void,
): Promise<void> {
  const { depth, signal } = options;
  const probe = model.captureDecode(1, (stream) => stream);
  const { stream } = probe;
  probe.dispose();
  const bench = new Workbench(stream.device, stream);
  try {
    const cache = await CacheUnderTest.make(bench, model, form, batches.at(-1) as number, options);
    const ceilingBytesPerSecond = new Anchors().ceilings(model.deviceInfo.name)?.bytesPerSecond ?? null;
    for (const batch of batches) {
      signal?.throwIfAborted();
      const sequences = openSequences(model, batch);
      try {
        const prompts = sequences.map((sequence, i) => ({ sequence, tokens: promptOf(PROMPT_TOKENS, model.vocab, i) }));
        await model.step(prompts);
        await model.step(sequences.map((sequence) => ({ sequence })));
        cache.setBatch(batch);
        const samples = await cache.timeStep(batch);
        const attentionUs = await cache.timeAttention(batch);
        const us = median(samples);
        const name = nameOf(options);
        const kind = form === 'latent' && options.cacheDtype === 'fp8' ? 'latent fp8' : form;
        report({
          id: `${name} ${kind} cache b=${batch} depth=${depth}`,
          form,
          batch,
          depth,
          sweep: { bench: 'cache', model: name, batch, tokens: depth, cache: kind },
          us,
          tokensPerSecond: (batch * 1e6) / us,
          repetitions: samples.map((sample) => (batch * 1e6) / sample),
          attentionUs,
          attentionBytesPerSecond: (cache.bytesOf(batch) * 1e6) / attentionUs,
          ceilingBytesPerSecond,
          device: model.deviceInfo,
        });
      } finally {
        for (const sequence of sequences) sequence.dispose();
      }
    }
  } finally {
    await bench.release();
  }
}

type Args<V extends keyof Verbs> = Parameters<Verbs[V]>[0];

/** A cache of one form for all layers, and decode steps whose attention reads it. */
class CacheUnderTest {
  private constructor(
    private readonly model: LatentModel,
    private readonly form: CacheForm,
    private readonly depth: number,
    private readonly stream: Stream,
    private readonly layers: readonly Tensor[],
    private readonly blockTable: Tensor,
    private readonly lengths: Tensor,
    /** what the per-head side needs besides: latents of new tokens, weights that make keys and values of them, those */
    private readonly up: { latents: Tensor; weights: readonly Tensor[]; rows: Tensor } | null,
    /** stand-ins for the model's buffers where attention runs alone */
    private readonly alone: { q: Tensor; out: Tensor; lse: Tensor; qStart: Tensor; plan: Tensor },
  ) {}

  static async make(
    bench: Workbench,
    model: LatentModel,
    form: CacheForm,
    most: number,
    { depth, cacheDtype }: CacheBenchOptions,
  ): Promise<CacheUnderTest> {
    const { config: c } = model;
    const { stream, device } = bench;
    const act = actOf(model);
    const H = c.num_attention_heads;
    const head = c.qk_nope_head_dim + c.qk_rope_head_dim;
    const layers = c.num_hidden_layers;
    const perSequence = Math.ceil(depth / PAGE);
    const pages = most * perSequence;
    const bytes = rowBytes(model, form);
    const fp8 = form === 'latent' && cacheDtype === 'fp8';
    // Not zeros, which take less power, and in fp8 not any bits: rows that read as NaN would all go to the same experts.
    const slab = fp8
      ? await new Fp8Pages({ c: c.kv_lora_rank, r: c.qk_rope_head_dim }, new Dice(2)).fill(bench, layers * pages)
      : await bench.random(act, [layers, pages, PAGE, bytes / (act === 'f32' ? 4 : 2)]);
    const pageShape =
      form === 'per-head'
        ? [pages, PAGE, H, head + c.v_head_dim]
        : [pages, PAGE, fp8 ? bytes : c.kv_lora_rank + c.qk_rope_head_dim];
    // Pages of a sequence lie anywhere, as they do after a while.
    const order = shuffle(
      Int32Array.from({ length: pages }, (_, i) => i),
      new Dice(1),
    );
    const table = new Int32Array(MOST_SEQUENCES * perSequence).fill(-1);
    table.set(order);
    const up =
      form === 'latent'
        ? null
        : {
            latents: await bench.random(act, [MOST_SEQUENCES, c.kv_lora_rank]),
            weights: await Promise.all(
              Array.from({ length: layers }, () =>
                bench.random(act, [H * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank], c.kv_lora_rank ** -0.5),
              ),
            ),
            rows: await bench.zeros(act, [MOST_SEQUENCES, H * (c.qk_nope_head_dim + c.v_head_dim)]),
          };
    const [qWidth, outWidth] =
      form === 'latent' ? [c.kv_lora_rank + c.qk_rope_head_dim, c.kv_lora_rank] : [head, c.v_head_dim];
    const alone = {
      q: await bench.random(act, [MOST_SEQUENCES, H, qWidth]),
      out: await bench.zeros(act, [MOST_SEQUENCES, H, outWidth]),
      lse: await bench.zeros('f32', [MOST_SEQUENCES, H]),
      qStart: await bench.put(Int32Array.from({ length: MOST_SEQUENCES + 1 }, (_, i) => i)),
      plan: await bench.zeros('i32', [device.decodePlanInts(MOST_SEQUENCES, H)]),
    };
    const cache = new CacheUnderTest(
      model,
      form,
      depth,
      stream,
      Array.from({ length: layers }, (_, l) => bench.part(slab, l, pageShape, fp8 ? 'f8e4m3' : act)),
      await bench.put(table, [MOST_SEQUENCES, perSequence]),
      await bench.zeros('i32', [MOST_SEQUENCES]),
      up,
      alone,
    );
    // More rows may need less: they are cut into fewer splits.
    let scratch = model.memory.workspace;
    for (let rows = 1; rows <= MOST_SEQUENCES; rows++) scratch = Math.max(scratch, cache.workspaceBytes(rows));
    stream.useWorkspace(await bench.zeros('u8', [scratch]));
    return cache;
  }

  /** Bytes of the cache that attention of one layer reads for so many sequences. */
  bytesOf(batch: number): number {
    return batch * this.depth * rowBytes(this.model, this.form);
  }

  /** The first `batch` rows look at a whole cache, padding behind them at nothing. */
  setBatch(batch: number): void {
    this.stream.write(this.lengths, new Int32Array(MOST_SEQUENCES).fill(this.depth, 0, batch));
  }

  /** Microseconds of the model's whole decode step, one figure for each sample. */
  async timeStep(batch: number): Promise<number[]> {
    const made: Tensor[] = [];
    const { stream, graph, sampled, dispose } = this.model.captureDecode(batch, (stream) => this.#wrap(stream, made));
    try {
      graph.replay();
      mustBeSound(await sampled());
      const samples = await timeGraph(stream, graph, SAMPLES);
      return samples.map((us) => us * graph.operations);
    } finally {
      dispose();
      for (const view of made) view.dispose();
    }
  }

  /** Microseconds of the attention of one layer, the median of samples of all layers in a chain. */
  async timeAttention(batch: number): Promise<number> {
    const made: Tensor[] = [];
    const graph = this.stream.capture(() => {
      const { q, out, lse, qStart, plan } = this.alone;
      const rows = (tensor: Tensor, ...shape: number[]) => first(tensor, shape, made);
      const [, H, qWidth] = q.shape as [number, number, number];
      const outWidth = out.shape[2] as number;
      const starts = rows(qStart, batch + 1);
      const lengths = rows(this.lengths, batch);
      if (this.form === 'latent') this.stream.decodePlan({ q_start: starts, lengths, plan, heads: H });
      for (let l = 0; l < this.layers.length; l++) {
        const shared = { q: rows(q, batch, H, qWidth), scale: qWidth ** -0.5, ...this.#cache(l, batch, made) };
        if (this.form === 'latent')
          this.stream.mlaDecode({
            ...shared,
            q_start: starts,
            plan,
            out: rows(out, batch, H, outWidth),
            lse: rows(lse, batch, H),
          });
        else this.stream.mhaDecode({ ...shared, out: rows(out, batch, H * outWidth) });
      }
    });
    try {
      const samples = await timeGraph(this.stream, graph, SAMPLES);
      return (median(samples) * graph.operations) / this.layers.length;
    } finally {
      graph.dispose();
      for (const view of made) view.dispose();
    }
  }

  private workspaceBytes(rows: number): number {
    const { q, out, lse, qStart, plan } = this.alone;
    const [, H, qWidth] = q.shape as [number, number, number];
    const outWidth = out.shape[2] as number;
    const spec = ({ dtype }: Tensor, ...shape: number[]) => ({ dtype, shape });
    const shared = {
      q: spec(q, rows, H, qWidth),
      cache: this.layers[0] as Tensor,
      block_table: spec(this.blockTable, rows, this.blockTable.shape[1] as number),
      lengths: spec(this.lengths, rows),
      scale: 1,
    };
    const { device } = this.stream;
    if (this.form === 'per-head')
      return device.workspaceBytes('mhaDecode', { ...shared, out: spec(out, rows, H * outWidth) });
    return device.workspaceBytes('mlaDecode', {
      ...shared,
      q_start: spec(qStart, rows + 1),
      plan,
      out: spec(out, rows, H, outWidth),
      lse: spec(lse, rows, H),
    });
  }

  #cache(layer: number, rows: number, made: Tensor[]) {
    return {
      cache: this.layers[layer] as Tensor,
      block_table: first(this.blockTable, [rows, this.blockTable.shape[1] as number], made),
      lengths: first(this.lengths, [rows], made),
    };
  }

  /** The model's stream, with this cache in place of its own. */
  #wrap(stream: Stream, made: Tensor[]): Stream {
    let layer = 0;
    let query: Tensor;
    let scale = 0;
    const latent: Partial<Verbs> = {
      decodePlan: (a) =>
        stream.decodePlan({ ...a, lengths: first(this.lengths, [a.lengths.shape[0] as number], made) }),
      mlaDecode: (a) => stream.mlaDecode({ ...a, ...this.#cache(layer++, a.q.shape[0] as number, made) }),
    };
    const perHead: Partial<Verbs> = {
      decodePlan: () => {},
      queryAbsorb: ({ q, positions, cos_sin }: Args<'queryAbsorb'>) => {
        const { latents, weights, rows } = this.up as NonNullable<typeof this.up>;
        const [T] = q.shape as [number];
        const wide = (tensor: Tensor) => first(tensor, [T, tensor.shape[1] as number], made);
        stream.gemm({ x: wide(latents), w: weights[layer] as Tensor, y: wide(rows) });
        stream.rope({ q, positions, cos_sin });
        query = q;
      },
      mlaDecode: (a) => {
        scale = a.scale;
      },
      valueExpand: ({ out }) =>
        stream.mhaDecode({ q: query, out, scale, ...this.#cache(layer++, query.shape[0] as number, made) }),
    };
    const instead = this.form === 'latent' ? latent : perHead;
    return new Proxy(stream, {
      get(target, key) {
        const value = instead[key as keyof Verbs] ?? Reflect.get(target, key, target);
        return typeof value === 'function' ? (value as (...a: unknown[]) => unknown).bind(target) : value;
      },
    });
  }
}

/** The first elements of a tensor as this shape; `made` collects what is to be disposed of. */
function first(tensor: Tensor, shape: readonly number[], made: Tensor[]): Tensor {
  const view = tensor.view(tensor.dtype, shape);
  made.push(view);
  return view;
}
