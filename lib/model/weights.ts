// model/weights.ts - the weights as the operations want them: which tensors, in which layout, from which parts of the
// checkpoint. Nothing is read here; load-weights.ts carries it out.
//
// Layouts made at load: the query and latent down-projections stacked (one product), gate and up rows interleaved
// (8 and 8), kv_b split into W_UK and W_UV per head, experts stacked with the shared expert behind them as S always-on
// experts of width mi.

import type { ModelConfig, ModelLayout, TensorInfo, WeightSource } from '../checkpoint';
import { MlaError } from '../errors';
import { DTYPE_BYTES, type DType, type TensorSpec } from '../native';
import { type Dims, type Precision, targetDtype } from './dims';
import { elements } from './specs';

/** safetensors' names of the element types that weights and scales come in. */
const FILE_DTYPES: Readonly<Record<string, DType>> = {
  F32: 'f32',
  BF16: 'bf16',
  F16: 'f16',
  F8_E4M3: 'f8e4m3',
  F8_E8M0: 'f8e8m0',
};

/** Element type of a checkpoint tensor. @throws ERR_UNSUPPORTED_MODEL for one that no weight may have */
export function fileDtype(tensor: TensorInfo): DType {
  const dtype = FILE_DTYPES[tensor.dtype];
  if (dtype === undefined) {
    throw new MlaError('ERR_UNSUPPORTED_MODEL', `${tensor.name} has dtype ${tensor.dtype}, which no weight may have.`);
  }
  return dtype;
}

/** Rows and columns that share one fp8 scale: kScaleBlock in csrc/ops/ops.h. */
export const SCALE_BLOCK = 128;
/** Gate rows, then up rows: kGateUpBlock in csrc/ops/ops.h. */
const GATE_UP_BLOCK = 8;

/** A strided copy in units of the target's elements; see `copy` in csrc/ops/ops.h. */
export interface Placement {
  blocks: number;
  blockElements: number;
  srcOffset: number;
  srcStride: number;
  dstOffset: number;
  dstStride: number;
}

/** A part of a checkpoint tensor (whole rows of it) and the places in the target where its elements go. */
export interface Part {
  tensor: TensorInfo;
  /** fp8 block scales, when `tensor` is fp8 and the target is not */
  scale: TensorInfo | undefined;
  /** elements into the tensor where the part starts, and its shape as rows and columns */
  offset: number;
  rows: number;
  columns: number;
  placements: Placement[];
  /** where the part's block scales go when it is quantised on the way */
  quantized: { scale: WeightPlan; placements: Placement[] } | undefined;
}

/** One tensor on the device and what fills it. */
export interface WeightPlan extends TensorSpec {
  parts: Part[];
}

/** A matrix with its fp8 scales, if it has them, and whether activations enter its products in fp8. */
export interface Matrix<T> {
  w: T;
  scale: T | undefined;
  fp8Activations: boolean;
}

/** Weights of one attention block. */
export interface AttentionWeights<T> {
  norm: T;
  /** [Nq + c + r, d] */
  down: Matrix<T>;
  qNorm: T | undefined;
  latentNorm: T;
  /** [H * (n + r), qRank] */
  qUp: Matrix<T> | undefined;
  /** [H, n, c] */
  wUk: T;
  /** [H, v, c] */
  wUv: T;
  /** [d, H * v] */
  out: Matrix<T>;
}

/** Weights of one feed-forward block. */
export type FeedForwardWeights<T> =
  | { kind: 'dense'; norm: T; gateUp: Matrix<T>; down: Matrix<T> }
  | { kind: 'moe'; norm: T; gate: T; bias: T | undefined; gateUp: Matrix<T>; down: Matrix<T> };

/** All weights of a model. */
export interface Weights<T> {
  embed: T;
  layers: { attention: AttentionWeights<T>; feedForward: FeedForwardWeights<T> }[];
  norm: T;
  /** the same tensor as `embed` where the checkpoint ties them */
  head: T | undefined;
}

/** Plans every weight of a model. */
export function planWeights(
  config: ModelConfig,
  layout: ModelLayout,
  dims: Dims,
  precision: Precision,
): Weights<WeightPlan> {
  const { d, H, n, r, v, c, Nq, qRank } = dims;
  const plan = new Planner(precision);
  return {
    embed: plan.plain(layout.embed, [dims.vocab, d]),
    layers: layout.layers.map((layer) => {
      const a = layer.attention;
      const query = a.kind === 'lora' ? a.qA : a.q;
      return {
        attention: {
          norm: plan.plain(layer.inputNorm, [d]),
          down: plan.stacked(
            [
              [query, Nq],
              [a.kvA, c + r],
            ],
            d,
          ),
          qNorm: a.kind === 'lora' ? plan.plain(a.qNorm, [qRank]) : undefined,
          latentNorm: plan.plain(a.kvNorm, [c]),
          qUp: a.kind === 'lora' ? plan.stacked([[a.qB, H * (n + r)]], qRank) : undefined,
          wUk: plan.headRows(a.kvB, H, n, 0, n + v, c),
          wUv: plan.headRows(a.kvB, H, v, n, n + v, c),
          out: plan.stacked([[a.o, d]], H * v),
        },
        feedForward: planFeedForward(layer, dims, plan),
      };
    }),
    norm: plan.plain(layout.finalNorm, [d]),
    head: config.tie_word_embeddings ? undefined : plan.plain(layout.head as WeightSource, [dims.vocab, d]),
  };
}

function planFeedForward(
  layer: ModelLayout['layers'][number],
  dims: Dims,
  plan: Planner,
): FeedForwardWeights<WeightPlan> {
  const { d, mi, S, I, E } = dims;
  const ffn = layer.ffn;
  const norm = plan.plain(layer.postNorm, [d]);
  if (ffn.kind === 'dense') {
    return {
      kind: 'dense',
      norm,
      gateUp: plan.gateUp([{ gate: slice(ffn.gate), up: slice(ffn.up) }], I, d, [2 * I, d], [2]),
      down: plan.stacked([[ffn.down, d]], I),
    };
  }
  const gateUp: { gate: Slice; up: Slice }[] = [];
  const down: DownSlice[] = [];
  const experts = ffn.experts;
  for (let e = 0; e < E; e++) {
    if (experts.kind === 'fused') {
      gateUp.push({
        gate: { source: experts.gateUp, offset: e * 2 * mi * d },
        up: { source: experts.gateUp, offset: (e * 2 + 1) * mi * d },
      });
      down.push({ source: experts.down, offset: e * d * mi, columns: mi, column: 0 });
    } else {
      gateUp.push({ gate: slice(experts.gate[e] as WeightSource), up: slice(experts.up[e] as WeightSource) });
      down.push({ source: experts.down[e] as WeightSource, offset: 0, columns: mi, column: 0 });
    }
  }
  for (let s = 0; s < S; s++) {
    const shared = ffn.shared as { gate: WeightSource; up: WeightSource; down: WeightSource };
    gateUp.push({
      gate: { source: shared.gate, offset: s * mi * d },
      up: { source: shared.up, offset: s * mi * d },
    });
    down.push({ source: shared.down, offset: 0, columns: S * mi, column: s * mi });
  }
  return {
    kind: 'moe',
    norm,
    gate: plan.plain(ffn.router, [E, d]),
    bias: ffn.bias === undefined ? undefined : plan.as(ffn.bias, [E], 'f32'),
    gateUp: plan.gateUp(gateUp, mi, d, [E + S, 2 * mi, d], [E + S, 2]),
    down: plan.downs(down, mi, d),
  };
}

/** Rows of a source from element `offset` on. */
interface Slice {
  source: WeightSource;
  offset: number;
}

/** `d` rows of a down-projection with `columns` columns, of which mi from `column` on belong to one expert. */
interface DownSlice extends Slice {
  columns: number;
  column: number;
}

function slice(source: WeightSource): Slice {
  return { source, offset: 0 };
}

function whole(count: number, dstOffset = 0): Placement[] {
  return [{ blocks: 1, blockElements: count, srcOffset: 0, srcStride: 0, dstOffset, dstStride: 0 }];
}

/** Makes the plans; knows the target element types. */
class Planner {
  constructor(private readonly precision: Precision) {}

  /** A tensor as it is. */
  plain(source: WeightSource, shape: number[]): WeightPlan {
    return this.as(source, shape, this.#target([source], false));
  }

  as(source: WeightSource, shape: number[], dtype: DType): WeightPlan {
    const columns = shape.at(-1) as number;
    return {
      dtype,
      shape,
      parts: [this.#part(source, dtype, 0, elements(shape) / columns, columns, whole(elements(shape)))],
    };
  }

  /** Matrices with the same columns, one below the other. */
  stacked(sources: [WeightSource, number][], columns: number): Matrix<WeightPlan> {
    // fp8 scales of a stack are those of its parts only if every part but the last ends at a block border
    const aligned = sources.slice(0, -1).every(([, rows]) => rows % SCALE_BLOCK === 0);
    const dtype = this.#target(
      sources.map(([s]) => s),
      aligned,
    );
    const rows = sources.reduce((sum, [, count]) => sum + count, 0);
    const w: WeightPlan = { dtype, shape: [rows, columns], parts: [] };
    const scaleColumns = Math.ceil(columns / SCALE_BLOCK);
    const scale: WeightPlan = { dtype: 'f32', shape: [Math.ceil(rows / SCALE_BLOCK), scaleColumns], parts: [] };
    let row = 0;
    for (const [source, count] of sources) {
      w.parts.push(this.#part(source, dtype, 0, count, columns, whole(count * columns, row * columns)));
      const scaleRows = Math.ceil(count / SCALE_BLOCK);
      const places = whole(scaleRows * scaleColumns, (row / SCALE_BLOCK) * scaleColumns);
      this.#scales(w, scale, source, () => this.#scalePart(source, 0, scaleRows, scaleColumns, places), places);
      row += count;
    }
    return this.#matrix(w, scale);
  }

  /** `count` rows from row `first` on of each head's `stride` rows: [H, count, columns]. */
  headRows(source: WeightSource, H: number, count: number, first: number, stride: number, columns: number): WeightPlan {
    const dtype = this.#target([source], false);
    const placement: Placement = {
      blocks: H,
      blockElements: count * columns,
      srcOffset: first * columns,
      srcStride: stride * columns,
      dstOffset: 0,
      dstStride: count * columns,
    };
    const part = this.#part(source, dtype, 0, H * stride, columns, [placement]);
    return { dtype, shape: [H, count, columns], parts: [part] };
  }

  /** Gate and up matrices of several experts, rows interleaved. */
  gateUp(
    experts: { gate: Slice; up: Slice }[],
    width: number,
    columns: number,
    shape: number[],
    scaleLead: number[],
  ): Matrix<WeightPlan> {
    const slices = experts.flatMap(({ gate, up }) => [gate, up]);
    const aligned = slices.every(({ offset }) => offset === 0 || width % SCALE_BLOCK === 0);
    const dtype = this.#target(
      slices.map((s) => s.source),
      aligned,
    );
    const blockElements = GATE_UP_BLOCK * columns;
    const w: WeightPlan = { dtype, shape, parts: [] };
    const scaleRows = Math.ceil(width / SCALE_BLOCK);
    const scaleColumns = Math.ceil(columns / SCALE_BLOCK);
    const scale: WeightPlan = { dtype: 'f32', shape: [...scaleLead, scaleRows, scaleColumns], parts: [] };
    slices.forEach(({ source, offset }, i) => {
      const expert = i >> 1;
      const up = i & 1;
      const placement: Placement = {
        blocks: width / GATE_UP_BLOCK,
        blockElements,
        srcOffset: 0,
        srcStride: blockElements,
        dstOffset: expert * 2 * width * columns + up * blockElements,
        dstStride: 2 * blockElements,
      };
      w.parts.push(this.#part(source, dtype, offset, width, columns, [placement]));
      const places = whole(scaleRows * scaleColumns, i * scaleRows * scaleColumns);
      const scaleOffset = (offset / columns / SCALE_BLOCK) * scaleColumns;
      const read = () => this.#scalePart(source, scaleOffset, scaleRows, scaleColumns, places);
      this.#scales(w, scale, source, read, places);
    });
    return this.#matrix(w, scale);
  }

  /** Down-projections of several experts: [experts, d, mi]. */
  downs(slices: DownSlice[], mi: number, d: number): Matrix<WeightPlan> {
    const aligned = slices.every(({ column }) => column === 0 || mi % SCALE_BLOCK === 0);
    const dtype = this.#target(
      slices.map((s) => s.source),
      aligned,
    );
    const w: WeightPlan = { dtype, shape: [slices.length, d, mi], parts: [] };
    const scaleRows = Math.ceil(d / SCALE_BLOCK);
    const scaleColumns = Math.ceil(mi / SCALE_BLOCK);
    const scale: WeightPlan = { dtype: 'f32', shape: [slices.length, scaleRows, scaleColumns], parts: [] };
    slices.forEach(({ source, offset, columns, column }, i) => {
      const cut = (rows: number, width: number, all: number, first: number): Placement[] =>
        all === width
          ? whole(rows * width, i * rows * width)
          : [
              {
                blocks: rows,
                blockElements: width,
                srcOffset: first,
                srcStride: all,
                dstOffset: i * rows * width,
                dstStride: width,
              },
            ];
      w.parts.push(this.#part(source, dtype, offset, d, columns, cut(d, mi, columns, column)));
      const allColumns = Math.ceil(columns / SCALE_BLOCK);
      const places = cut(scaleRows, scaleColumns, allColumns, column / SCALE_BLOCK);
      this.#scales(w, scale, source, () => this.#scalePart(source, 0, scaleRows, allColumns, places), places);
    });
    return this.#matrix(w, scale);
  }

  #matrix(w: WeightPlan, scale: WeightPlan): Matrix<WeightPlan> {
    if (w.dtype !== 'f8e4m3') return { w, scale: undefined, fp8Activations: false };
    return { w, scale, fp8Activations: this.precision.fp8Activations };
  }

  #target(sources: WeightSource[], fp8: boolean): DType {
    return targetDtype(
      sources.map((s) => fileDtype(s.tensor)),
      this.precision,
      fp8,
    );
  }

  /** How the scales of a part of `w` get to their place: read where the checkpoint has them, else made from the part. */
  #scales(w: WeightPlan, scale: WeightPlan, source: WeightSource, read: () => Part, made: Placement[]): void {
    if (w.dtype !== 'f8e4m3') return;
    const part = w.parts.at(-1) as Part;
    if (fileDtype(source.tensor) === 'f8e4m3') scale.parts.push(read());
    else part.quantized = { scale, placements: made };
  }

  #part(
    source: WeightSource,
    target: DType,
    offset: number,
    rows: number,
    columns: number,
    placements: Placement[],
  ): Part {
    const { tensor } = source;
    const scale = fileDtype(tensor) === 'f8e4m3' && target !== 'f8e4m3' ? source.scale : undefined;
    const all = elements(tensor.shape);
    const part = { tensor, scale, offset, rows, columns, placements, quantized: undefined };
    if (scale === undefined || rows * columns === all) return part;
    // scale blocks are counted from the tensor's first row: convert it whole, then take the part
    const shifted = placements.map((p) => ({ ...p, srcOffset: p.srcOffset + offset }));
    return { ...part, offset: 0, rows: all / columns, placements: shifted };
  }

  #scalePart(source: WeightSource, offset: number, rows: number, columns: number, placements: Placement[]): Part {
    const tensor = source.scale as TensorInfo;
    return { tensor, scale: undefined, offset, rows, columns, placements, quantized: undefined };
  }
}

/** Bytes that reading a plan takes from the files. */
export function planReadBytes(plan: WeightPlan): number {
  return plan.parts.reduce((sum, part) => sum + part.rows * part.columns * DTYPE_BYTES[fileDtype(part.tensor)], 0);
}
