// parameter-counts.ts - how many parameters a model has, by what they are for.
import type { FeedForwardLayout, GatedLayout, LayerLayout, ModelLayout, WeightSource } from './layout';

/** Numbers of parameters. Block scales of quantised weights are not counted. */
export interface ParameterCounts {
  /** Attention matrices, without their norms. */
  readonly attention: number;
  readonly shared: number;
  readonly routed: number;
  /** Router matrices and biases. */
  readonly router: number;
  /** Feed-forward layers without experts. */
  readonly dense: number;
  readonly embedding: number;
  /** 0 when tied to the embedding. */
  readonly head: number;
  readonly norms: number;
  /** Layers that predict further tokens, without their copies of embedding and head; not part of `total`. */
  readonly mtp: number;
  readonly total: number;
  /** Of `total`, what one token passes through: num_experts_per_tok of the routed experts, and everything else. */
  readonly active: number;
}

type Part = Exclude<keyof ParameterCounts, 'total' | 'active' | 'mtp'>;
type Sums = Record<Part, number>;

/** Counts from the shapes of the tensors. */
export function parameterCounts(layout: ModelLayout): ParameterCounts {
  const { config } = layout;
  const sums = empty();
  for (const layer of layout.layers) addLayer(sums, layer);
  sums.embedding = size(layout.embed);
  sums.head = layout.head === layout.embed ? 0 : size(layout.head);
  sums.norms += size(layout.finalNorm);
  let mtp = 0;
  for (const { block, embeddingNorm, hiddenNorm, projection, headNorm } of layout.mtp) {
    const own = empty();
    addLayer(own, block);
    mtp += total(own) + size(embeddingNorm) + size(hiddenNorm) + size(projection) + size(headNorm);
  }
  const all = total(sums);
  const idle = config.n_routed_experts === 0 ? 0 : 1 - config.num_experts_per_tok / config.n_routed_experts;
  return { ...sums, mtp, total: all, active: all - Math.round(sums.routed * idle) };
}

function empty(): Sums {
  return { attention: 0, shared: 0, routed: 0, router: 0, dense: 0, embedding: 0, head: 0, norms: 0 };
}

function total(sums: Sums): number {
  return Object.values(sums).reduce((a, b) => a + b, 0);
}

function size(source: WeightSource): number {
  return source.tensor.shape.reduce((a, b) => a * b, 1);
}

function gated({ gate, up, down }: GatedLayout): number {
  return size(gate) + size(up) + size(down);
}

function addLayer(sums: Sums, { inputNorm, postNorm, attention, ffn }: LayerLayout): void {
  const { kvA, kvB, kvNorm, o } = attention;
  sums.norms += size(inputNorm) + size(postNorm) + size(kvNorm);
  sums.attention += size(kvA) + size(kvB) + size(o);
  if (attention.kind === 'direct') {
    sums.attention += size(attention.q);
  } else {
    sums.attention += size(attention.qA) + size(attention.qB);
    sums.norms += size(attention.qNorm);
  }
  addFeedForward(sums, ffn);
}

function addFeedForward(sums: Sums, ffn: FeedForwardLayout): void {
  if (ffn.kind === 'dense') {
    sums.dense += gated(ffn);
    return;
  }
  sums.router += size(ffn.router) + (ffn.bias ? size(ffn.bias) : 0);
  if (ffn.shared) sums.shared += gated(ffn.shared);
  const { experts } = ffn;
  if (experts.kind === 'fused') {
    sums.routed += size(experts.gateUp) + size(experts.down);
  } else {
    for (const source of [...experts.gate, ...experts.up, ...experts.down]) sums.routed += size(source);
  }
}
