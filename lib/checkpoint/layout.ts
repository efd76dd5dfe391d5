// layout.ts - which tensor is which weight of the model: names, shapes and dtypes of a checkpoint checked against its
// config, so that whoever loads weights afterwards never meets a missing or misshapen one.
// Matrices are stored [out, in]. FP8 matrices X.weight come with X.weight_scale_inv [ceil(out/128), ceil(in/128)];
// despite its name the value is q * scale_inv.
import { MlaError } from '../errors';
import type { Checkpoint, TensorInfo } from './checkpoint';
import { readExactly } from './files';
import { quoted, shapeText } from './messages';
import type { ResolvedConfig } from './routing';

/** One weight: its tensor, and the block scales when it is F8_E4M3 (F32 or F8_E8M0). Without: BF16 or F32. */
export interface WeightSource {
  readonly tensor: TensorInfo;
  readonly scale?: TensorInfo;
}

/** Matrices of one attention block; n, r, v: head dims nope, rope, value; H heads. */
export type AttentionLayout = {
  /** [kv_lora_rank + r, hidden] */
  readonly kvA: WeightSource;
  /** [kv_lora_rank] */
  readonly kvNorm: WeightSource;
  /** [H * (n + v), kv_lora_rank]; per head first n rows for keys, then v rows for values */
  readonly kvB: WeightSource;
  /** [hidden, H * v] */
  readonly o: WeightSource;
} & (
  | {
      readonly kind: 'direct';
      /** [H * (n + r), hidden] */
      readonly q: WeightSource;
    }
  | {
      readonly kind: 'lora';
      /** [q_lora_rank, hidden] */
      readonly qA: WeightSource;
      /** [q_lora_rank] */
      readonly qNorm: WeightSource;
      /** [H * (n + r), q_lora_rank] */
      readonly qB: WeightSource;
    }
);

/** A SwiGLU block: gate and up [width, hidden], down [hidden, width]. */
export interface GatedLayout {
  readonly gate: WeightSource;
  readonly up: WeightSource;
  readonly down: WeightSource;
}

/** Routed experts: one tensor per expert and matrix, or (transformers 5) one per layer. mi: expert width. */
export type ExpertsLayout =
  | {
      readonly kind: 'separate';
      readonly gate: readonly WeightSource[];
      readonly up: readonly WeightSource[];
      readonly down: readonly WeightSource[];
    }
  | {
      readonly kind: 'fused';
      /** [experts, 2 mi, hidden]; of each expert first the mi gate rows, then the mi up rows */
      readonly gateUp: WeightSource;
      /** [experts, hidden, mi] */
      readonly down: WeightSource;
    };

/** The feed-forward block of a layer. */
export type FeedForwardLayout =
  | ({ readonly kind: 'dense' } & GatedLayout)
  | {
      readonly kind: 'moe';
      /** [experts, hidden] */
      readonly router: WeightSource;
      /** [experts], where the model chooses by score plus bias */
      readonly bias?: WeightSource;
      readonly experts: ExpertsLayout;
      /** All shared experts as one block of width n_shared_experts * mi */
      readonly shared?: GatedLayout;
    };

/** One layer. */
export interface LayerLayout {
  readonly inputNorm: WeightSource;
  readonly postNorm: WeightSource;
  readonly attention: AttentionLayout;
  readonly ffn: FeedForwardLayout;
}

/** A layer that predicts the token after the next one. */
export interface MtpLayout {
  /** Index in the checkpoint: num_hidden_layers or above. */
  readonly layer: number;
  readonly embeddingNorm: WeightSource;
  readonly hiddenNorm: WeightSource;
  /** [hidden, 2 hidden]; its input is the embedding first, then the hidden state */
  readonly projection: WeightSource;
  readonly block: LayerLayout;
  /** The norm before the head. */
  readonly headNorm: WeightSource;
}

/** Where every weight of a model lies. */
export interface ModelLayout {
  readonly config: ResolvedConfig;
  /** [vocab, hidden] */
  readonly embed: WeightSource;
  readonly layers: readonly LayerLayout[];
  readonly finalNorm: WeightSource;
  /** [vocab, hidden]; the embedding itself when the model ties them */
  readonly head: WeightSource;
  /** Empty when the checkpoint has none, whatever its config says. */
  readonly mtp: readonly MtpLayout[];
}

/** What {@link resolveLayout} needs of a checkpoint. */
export type LayoutInput = Pick<Checkpoint, 'path' | 'config' | 'tensors'>;

const FP8_BLOCK = 128;
const WRAPPED = 'language_model.';
/** Tensors that are known to be of no use: tables that older programs saved with the weights. */
const IGNORED = /\.rotary_emb\.inv_freq$/;
/** Parts of a wrapped model that see or hear. */
const OTHER_SENSES = /^(vision_tower|mm_projector)\./;

/**
 * Finds every weight of the model among the tensors.
 * @throws ERR_CHECKPOINT naming the tensor that is missing, of the wrong shape or dtype, or not expected;
 * ERR_UNSUPPORTED_MODEL for float16 and for F8 weights of another kind
 */
export function resolveLayout(checkpoint: LayoutInput): ModelLayout {
  const { config, tensors } = checkpoint;
  const prefix = tensors.has(`${WRAPPED}model.embed_tokens.weight`) ? WRAPPED : '';
  const find = new Finder(checkpoint, prefix);
  const { vocab_size, hidden_size, num_hidden_layers } = config;

  const embed = find.plain('model.embed_tokens.weight', [vocab_size, hidden_size]);
  const layers: LayerLayout[] = [];
  for (let l = 0; l < num_hidden_layers; l++) layers.push(findLayer(find, config, l, isMoe(config, l)));
  const finalNorm = find.plain('model.norm.weight', [hidden_size]);
  let head = embed;
  if (!config.tie_word_embeddings) head = find.plain('lm_head.weight', [vocab_size, hidden_size]);
  // A tied model may come with a copy; what counts is the embedding.
  else if (find.has('lm_head.weight')) find.plain('lm_head.weight', [vocab_size, hidden_size]);
  const mtp = findMtp(find, config);
  find.refuseTheRest(config.wrapped);
  return { config, embed, layers, finalNorm, head, mtp };
}

function isMoe(config: ResolvedConfig, layer: number): boolean {
  return config.moe_layers.includes(layer);
}

function findLayer(find: Finder, config: ResolvedConfig, layer: number, moe: boolean): LayerLayout {
  const at = `model.layers.${layer}.`;
  const d = config.hidden_size;
  return {
    inputNorm: find.plain(`${at}input_layernorm.weight`, [d]),
    postNorm: find.plain(`${at}post_attention_layernorm.weight`, [d]),
    attention: findAttention(find, config, `${at}self_attn.`),
    ffn: moe
      ? findMoe(find, config, `${at}mlp.`)
      : { kind: 'dense', ...findGated(find, `${at}mlp.`, config.intermediate_size, d) },
  };
}

function findAttention(find: Finder, config: ResolvedConfig, at: string): AttentionLayout {
  const { hidden_size: d, num_attention_heads: H, kv_lora_rank: c, q_lora_rank: q } = config;
  const { qk_nope_head_dim: n, qk_rope_head_dim: r, v_head_dim: v } = config;
  const common = {
    kvA: find.matrix(`${at}kv_a_proj_with_mqa`, c + r, d),
    kvNorm: find.plain(`${at}kv_a_layernorm.weight`, [c]),
    kvB: find.matrix(`${at}kv_b_proj`, H * (n + v), c),
    o: find.matrix(`${at}o_proj`, d, H * v),
  };
  if (q === 0) return { kind: 'direct', ...common, q: find.matrix(`${at}q_proj`, H * (n + r), d) };
  return {
    kind: 'lora',
    ...common,
    qA: find.matrix(`${at}q_a_proj`, q, d),
    qNorm: find.plain(`${at}q_a_layernorm.weight`, [q]),
    qB: find.matrix(`${at}q_b_proj`, H * (n + r), q),
  };
}

function findGated(find: Finder, at: string, width: number, d: number): GatedLayout {
  return {
    gate: find.matrix(`${at}gate_proj`, width, d),
    up: find.matrix(`${at}up_proj`, width, d),
    down: find.matrix(`${at}down_proj`, d, width),
  };
}

function findMoe(find: Finder, config: ResolvedConfig, at: string): FeedForwardLayout {
  const { hidden_size: d, moe_intermediate_size: mi, n_routed_experts: E, n_shared_experts: S } = config;
  const bias = `${at}gate.e_score_correction_bias`;
  return {
    kind: 'moe',
    router: find.plain(`${at}gate.weight`, [E, d]),
    ...(config.topk_method === 'noaux_tc' ? { bias: find.plain(bias, [E]) } : {}),
    experts: find.has(`${at}experts.gate_up_proj`)
      ? {
          kind: 'fused',
          gateUp: find.stack(`${at}experts.gate_up_proj`, E, 2 * mi, d),
          down: find.stack(`${at}experts.down_proj`, E, d, mi),
        }
      : findSeparate(find, `${at}experts.`, E, mi, d),
    ...(S > 0 ? { shared: findGated(find, `${at}shared_experts.`, S * mi, d) } : {}),
  };
}

function findSeparate(find: Finder, at: string, experts: number, mi: number, d: number): ExpertsLayout {
  const gate: WeightSource[] = [];
  const up: WeightSource[] = [];
  const down: WeightSource[] = [];
  for (let e = 0; e < experts; e++) {
    const one = findGated(find, `${at}${e}.`, mi, d);
    gate.push(one.gate);
    up.push(one.up);
    down.push(one.down);
  }
  return { kind: 'separate', gate, up, down };
}

/** The MTP layers the config announces. Many checkpoints announce them and leave them out: then none. */
function findMtp(find: Finder, config: ResolvedConfig): MtpLayout[] {
  const found: MtpLayout[] = [];
  const { hidden_size: d, vocab_size, num_hidden_layers: L, num_nextn_predict_layers } = config;
  for (let layer = L; layer < L + num_nextn_predict_layers; layer++) {
    const at = `model.layers.${layer}.`;
    if (!find.hasAny(at)) continue;
    // Copies of the embedding and the head, equal to the model's own.
    for (const copy of [`${at}embed_tokens.weight`, `${at}shared_head.head.weight`]) {
      if (find.has(copy)) find.plain(copy, [vocab_size, d]);
    }
    found.push({
      layer,
      embeddingNorm: find.plain(`${at}enorm.weight`, [d]),
      hiddenNorm: find.plain(`${at}hnorm.weight`, [d]),
      projection: find.matrix(`${at}eh_proj`, d, 2 * d),
      block: findLayer(find, config, layer, config.moe_layers.length > 0),
      headNorm: find.plain(`${at}shared_head.norm.weight`, [d]),
    });
  }
  return found;
}

/** Takes tensors by name, checks them, and remembers which are taken. */
class Finder {
  private readonly taken = new Set<string>();

  constructor(
    private readonly checkpoint: LayoutInput,
    private readonly prefix: string,
  ) {}

  has(name: string): boolean {
    return this.checkpoint.tensors.has(this.prefix + name);
  }

  hasAny(start: string): boolean {
    for (const name of this.checkpoint.tensors.keys()) if (name.startsWith(this.prefix + start)) return true;
    return false;
  }

  /** A tensor that is never quantised. */
  plain(name: string, shape: readonly number[]): WeightSource {
    const tensor = this.take(name, shape);
    this.checkDtype(tensor, ['BF16', 'F32']);
    return { tensor };
  }

  /** `NAME.weight` [out, in], quantised or not. */
  matrix(name: string, out: number, inp: number): WeightSource {
    return this.scaled(`${name}.weight`, `${name}.weight_scale_inv`, [out, inp]);
  }

  /** `NAME` [count, out, in], quantised or not. */
  stack(name: string, count: number, out: number, inp: number): WeightSource {
    return this.scaled(name, `${name}_scale_inv`, [count, out, inp]);
  }

  private scaled(name: string, scaleName: string, shape: readonly number[]): WeightSource {
    const tensor = this.take(name, shape);
    if (tensor.dtype !== 'F8_E4M3') {
      this.checkDtype(tensor, ['BF16', 'F32', 'F8_E4M3']);
      return { tensor };
    }
    if (this.checkpoint.config.quantization === null) {
      throw this.wrong(name, 'found dtype F8_E4M3', 'a quantization_config in config.json that says how it is scaled');
    }
    const blocks = shape.map((n, i) => (i < shape.length - 2 ? n : Math.ceil(n / FP8_BLOCK)));
    const scale = this.take(scaleName, blocks);
    this.checkDtype(scale, ['F32', 'F8_E8M0']);
    return { tensor, scale };
  }

  private take(name: string, shape: readonly number[]): TensorInfo {
    const tensor = this.checkpoint.tensors.get(this.prefix + name);
    if (tensor === undefined) throw this.wrong(name, 'found no such tensor', `one of shape ${shapeText(shape)}`);
    const same = tensor.shape.length === shape.length && tensor.shape.every((n, i) => n === shape[i]);
    if (!same) {
      const expected = `${shapeText(shape)} as config.json says`;
      throw this.wrong(name, `found shape ${shapeText(tensor.shape)}`, expected);
    }
    this.taken.add(tensor.name);
    return tensor;
  }

  private checkDtype(tensor: TensorInfo, allowed: readonly string[]): void {
    if (allowed.includes(tensor.dtype)) return;
    if (tensor.dtype === 'F16' || tensor.dtype === 'F8_E5M2') {
      const why = tensor.dtype === 'F16' ? ' (activations of these models overflow float16)' : '';
      throw new MlaError(
        'ERR_UNSUPPORTED_MODEL',
        `${this.checkpoint.path}: tensor ${quoted(tensor.name)}: found dtype ${tensor.dtype}, supported: ${allowed.join(', ')}${why}. Convert the weights to BF16.`,
      );
    }
    throw this.wrong(tensor.name.slice(this.prefix.length), `found dtype ${tensor.dtype}`, allowed.join(' or '));
  }

  private wrong(name: string, found: string, expected: string): MlaError {
    const { path } = this.checkpoint;
    return new MlaError(
      'ERR_CHECKPOINT',
      `${path}: tensor ${quoted(this.prefix + name)}: ${found}, expected ${expected}.`,
    );
  }

  /** Every tensor must have been taken or be known to be of no use: a weight that nobody reads is a wrong answer. */
  refuseTheRest(wrapped: boolean): void {
    const rest: string[] = [];
    for (const name of this.checkpoint.tensors.keys()) {
      if (this.taken.has(name) || IGNORED.test(name) || (wrapped && OTHER_SENSES.test(name))) continue;
      rest.push(name);
    }
    if (rest.length === 0) return;
    const more = rest.length > 1 ? ` (and ${rest.length - 1} more)` : '';
    throw new MlaError(
      'ERR_CHECKPOINT',
      `${this.checkpoint.path}: tensor ${quoted(rest[0] as string)}${more}: found in the files, expected only tensors that the model of config.json has.`,
    );
  }
}

/**
 * Reads the correction biases of all routers and refuses values that are not finite: one NaN there would choose
 * experts at random without any error.
 * @throws ERR_CHECKPOINT naming tensor and place
 */
export async function checkRouterBiases(layout: ModelLayout): Promise<void> {
  const blocks = [...layout.layers, ...layout.mtp.map((mtp) => mtp.block)];
  for (const { ffn } of blocks) {
    if (ffn.kind !== 'moe' || ffn.bias === undefined) continue;
    const { tensor } = ffn.bias;
    const data = await readExactly(tensor.fd, tensor.file.path, tensor.offset, tensor.bytes);
    const wide = tensor.dtype === 'F32';
    const count = tensor.bytes / (wide ? 4 : 2);
    for (let i = 0; i < count; i++) {
      // The exponent is all ones in infinities and NaN.
      const top = data.readUInt16LE(wide ? i * 4 + 2 : i * 2);
      if ((top & 0x7f80) === 0x7f80) {
        throw new MlaError(
          'ERR_CHECKPOINT',
          `${tensor.file.path}: tensor ${quoted(tensor.name)}: found a value that is not finite at ${i}, expected finite biases.`,
        );
      }
    }
  }
}
