// model/named-shapes.ts - published models as shapes: their config.json as far as it decides what is computed, and a
// layout of weights that no file holds. With random weights they run at the real model's speed; the text is noise.
//
// Values as in the published config.json of each: deepseek-ai/DeepSeek-V2-Lite and DeepSeek-V3, moonshotai/
// Moonlight-16B-A3B, zai-org/GLM-4.7-Flash. tiny is nobody's: a shape for tests.
import {
  type AttentionLayout,
  type FeedForwardLayout,
  type GatedLayout,
  type ModelLayout,
  parseConfig,
  type ResolvedConfig,
  resolveRouting,
  type TensorInfo,
  type WeightSource,
} from '../checkpoint';
import { invalidArg } from '../errors';

const yarn = (mscale: number) => ({
  type: 'yarn',
  factor: 40,
  original_max_position_embeddings: 4096,
  beta_fast: 32,
  beta_slow: 1,
  mscale,
  mscale_all_dim: mscale,
});

const ATTENTION = { kv_lora_rank: 512, qk_nope_head_dim: 128, qk_rope_head_dim: 64, v_head_dim: 128 };
const DEEPSEEK = { ...ATTENTION, rms_norm_eps: 1e-6, rope_theta: 10000, max_position_embeddings: 163840 };
const BIASED = { topk_method: 'noaux_tc', scoring_func: 'sigmoid', norm_topk_prob: true, num_nextn_predict_layers: 0 };

const CONFIGS: Readonly<Record<string, object>> = {
  'v2-lite': {
    ...DEEPSEEK,
    model_type: 'deepseek_v2',
    vocab_size: 102400,
    hidden_size: 2048,
    num_hidden_layers: 27,
    num_attention_heads: 16,
    q_lora_rank: null,
    first_k_dense_replace: 1,
    intermediate_size: 10944,
    moe_intermediate_size: 1408,
    n_routed_experts: 64,
    n_shared_experts: 2,
    num_experts_per_tok: 6,
    topk_method: 'greedy',
    scoring_func: 'softmax',
    norm_topk_prob: false,
    routed_scaling_factor: 1,
    // biome-ignore lint/suspicious/noApproximativeNumericConstant: the published value is no square root
    rope_scaling: yarn(0.707),
    eos_token_id: 100001,
  },
  moonlight: {
    ...ATTENTION,
    ...BIASED,
    model_type: 'deepseek_v3',
    vocab_size: 163840,
    hidden_size: 2048,
    num_hidden_layers: 27,
    num_attention_heads: 16,
    q_lora_rank: null,
    first_k_dense_replace: 1,
    intermediate_size: 11264,
    moe_intermediate_size: 1408,
    n_routed_experts: 64,
    n_shared_experts: 2,
    num_experts_per_tok: 6,
    n_group: 1,
    topk_group: 1,
    routed_scaling_factor: 2.446,
    rope_theta: 50000,
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-5,
    eos_token_id: 163586,
  },
  'glm-4.7-flash': {
    ...ATTENTION,
    ...BIASED,
    model_type: 'glm4_moe_lite',
    vocab_size: 154880,
    hidden_size: 2048,
    num_hidden_layers: 47,
    num_attention_heads: 20,
    q_lora_rank: 768,
    qk_nope_head_dim: 192,
    v_head_dim: 256,
    first_k_dense_replace: 1,
    intermediate_size: 10240,
    moe_intermediate_size: 1536,
    n_routed_experts: 64,
    n_shared_experts: 1,
    num_experts_per_tok: 4,
    routed_scaling_factor: 1.8,
    rope_theta: 1000000,
    max_position_embeddings: 202752,
    rms_norm_eps: 1e-5,
    eos_token_id: 154820,
  },
  v3: {
    ...DEEPSEEK,
    ...BIASED,
    model_type: 'deepseek_v3',
    vocab_size: 129280,
    hidden_size: 7168,
    num_hidden_layers: 61,
    num_attention_heads: 128,
    q_lora_rank: 1536,
    first_k_dense_replace: 3,
    intermediate_size: 18432,
    moe_intermediate_size: 2048,
    n_routed_experts: 256,
    n_shared_experts: 1,
    num_experts_per_tok: 8,
    n_group: 8,
    topk_group: 4,
    routed_scaling_factor: 2.5,
    rope_scaling: yarn(1),
    eos_token_id: 1,
    quantization_config: {
      quant_method: 'fp8',
      fmt: 'e4m3',
      activation_scheme: 'dynamic',
      weight_block_size: [128, 128],
    },
  },
  tiny: {
    ...DEEPSEEK,
    ...BIASED,
    model_type: 'deepseek_v3',
    vocab_size: 512,
    hidden_size: 256,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    q_lora_rank: 128,
    first_k_dense_replace: 1,
    intermediate_size: 256,
    moe_intermediate_size: 128,
    n_routed_experts: 8,
    n_shared_experts: 1,
    num_experts_per_tok: 2,
    n_group: 2,
    topk_group: 1,
    routed_scaling_factor: 2.5,
    rope_scaling: yarn(1),
    eos_token_id: 1,
    quantization_config: {
      quant_method: 'fp8',
      fmt: 'e4m3',
      activation_scheme: 'dynamic',
      weight_block_size: [128, 128],
    },
  },
};

/** Names that {@link namedShape} knows. */
export const SHAPE_NAMES: readonly string[] = Object.keys(CONFIGS);

interface LayerCounts {
  num_hidden_layers: number;
  first_k_dense_replace: number;
}

/** A model's config and layout without a checkpoint. */
export interface NamedShape {
  config: ResolvedConfig;
  layout: ModelLayout;
}

/**
 * The shape of this name; NAME:LAYERS keeps only the first LAYERS layers.
 * @throws ERR_INVALID_ARG
 */
export function namedShape(name: string): NamedShape {
  const [base = '', layers] = name.split(':');
  const known = Object.hasOwn(CONFIGS, base) ? (CONFIGS[base] as LayerCounts) : undefined;
  const count = layers === undefined ? known?.num_hidden_layers : Number(layers);
  if (known === undefined || !Number.isInteger(count) || (count as number) < 1 || (count as number) > 100) {
    throw invalidArg('shape', `one of ${SHAPE_NAMES.join(', ')}, or NAME:LAYERS`, name);
  }
  const layersOf = {
    num_hidden_layers: count,
    first_k_dense_replace: Math.min(known.first_k_dense_replace, count as number),
  };
  const json = JSON.stringify({ ...known, ...layersOf, tie_word_embeddings: false });
  const parsed = parseConfig(json, `shape ${name}`);
  const config = resolveRouting(parsed, parsed.topk_method === 'noaux_tc');
  return { config, layout: layoutOf(config) };
}

function layoutOf(config: ResolvedConfig): ModelLayout {
  const { hidden_size: d, vocab_size, num_hidden_layers, intermediate_size } = config;
  const fp8 = config.quantization !== null;
  const matrix = (...shape: number[]): WeightSource =>
    fp8
      ? { tensor: nowhere('F8_E4M3', shape), scale: nowhere('F32', [...shape.slice(0, -2), ...blocksOf(shape)]) }
      : { tensor: nowhere('BF16', shape) };
  const plain = (...shape: number[]): WeightSource => ({ tensor: nowhere('BF16', shape) });
  return {
    config,
    embed: plain(vocab_size, d),
    layers: Array.from({ length: num_hidden_layers }, (_, l) => ({
      inputNorm: plain(d),
      postNorm: plain(d),
      attention: attentionOf(config, plain, matrix),
      ffn: config.moe_layers.includes(l)
        ? expertsOf(config, plain, matrix)
        : { kind: 'dense', ...gatedOf(intermediate_size, d, matrix) },
    })),
    finalNorm: plain(d),
    head: plain(vocab_size, d),
    mtp: [],
  };
}

type Make = (...shape: number[]) => WeightSource;

function attentionOf(config: ResolvedConfig, plain: Make, matrix: Make): AttentionLayout {
  const { hidden_size: d, num_attention_heads: H, kv_lora_rank: c, q_lora_rank: q } = config;
  const { qk_nope_head_dim: n, qk_rope_head_dim: r, v_head_dim: v } = config;
  const common = { kvA: matrix(c + r, d), kvNorm: plain(c), kvB: matrix(H * (n + v), c), o: matrix(d, H * v) };
  if (q === 0) return { kind: 'direct', ...common, q: matrix(H * (n + r), d) };
  return { kind: 'lora', ...common, qA: matrix(q, d), qNorm: plain(q), qB: matrix(H * (n + r), q) };
}

function gatedOf(width: number, d: number, matrix: Make): GatedLayout {
  return { gate: matrix(width, d), up: matrix(width, d), down: matrix(d, width) };
}

function expertsOf(config: ResolvedConfig, plain: Make, matrix: Make): FeedForwardLayout {
  const { hidden_size: d, moe_intermediate_size: mi, n_routed_experts: E, n_shared_experts: S } = config;
  const each = (rows: number, columns: number) => Array.from({ length: E }, () => matrix(rows, columns));
  return {
    kind: 'moe',
    router: plain(E, d),
    ...(config.topk_method === 'noaux_tc' ? { bias: { tensor: nowhere('F32', [E]) } } : {}),
    experts: { kind: 'separate', gate: each(mi, d), up: each(mi, d), down: each(d, mi) },
    ...(S > 0 ? { shared: gatedOf(S * mi, d, matrix) } : {}),
  };
}

const blocksOf = (shape: readonly number[]) => shape.slice(-2).map((n) => Math.ceil(n / 128));

/** A tensor in no file: good for planning, never read. */
function nowhere(dtype: TensorInfo['dtype'], shape: readonly number[]): TensorInfo {
  const bytes = shape.reduce((a, b) => a * b, { BF16: 2, F32: 4 }[dtype as 'BF16'] ?? 1);
  const file = { index: -1, name: '', path: '', fd: -1, size: 0 };
  return { name: 'random', dtype, shape, file, fd: -1, offset: 0, bytes };
}
