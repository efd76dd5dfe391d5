// support.ts - builds safetensors files, model configs and whole tiny model folders for the tests of lib/checkpoint.
// Names and shapes are written out here from the published checkpoints, independently of lib/checkpoint/layout.ts.
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { LayoutInput, ModelConfig, ResolvedConfig, TensorInfo } from '../../lib/checkpoint';
import { parseConfig, resolveRouting } from '../../lib/checkpoint';
import { type ErrorCode, MlaError } from '../../lib/errors';

/** A tensor to be put into a file. */
export interface Spec {
  dtype: string;
  shape: number[];
}

export type Json = Record<string, unknown>;

const BYTES: Record<string, number> = { F32: 4, BF16: 2, F16: 2, F8_E4M3: 1, F8_E8M0: 1, I32: 4, F8_E5M2: 1 };

let folders: string[] = [];

/** A new empty folder that {@link removeFolders} removes. */
export function tempFolder(): string {
  const dir = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'mla-checkpoint-')));
  folders.push(dir);
  return dir;
}

export function removeFolders(): void {
  for (const dir of folders) fs.rmSync(dir, { recursive: true, force: true });
  folders = [];
}

/** The bytes of a file with the given header text and number of data bytes. */
export function fileOf(header: string | Buffer, dataBytes: number, declared?: bigint): Buffer {
  const json = Buffer.from(header as string);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(declared ?? BigInt(json.length));
  return Buffer.concat([length, json, Buffer.alloc(dataBytes)]);
}

/** Header entries that lie one after the other. */
export function packed(specs: Record<string, Spec>): { header: string; dataBytes: number } {
  const entries: Json = {};
  let at = 0;
  for (const [name, { dtype, shape }] of Object.entries(specs)) {
    const bytes = shape.reduce((a, b) => a * b, BYTES[dtype] as number);
    entries[name] = { dtype, shape, data_offsets: [at, at + bytes] };
    at += bytes;
  }
  return { header: JSON.stringify(entries), dataBytes: at };
}

/** Writes a file whose data are zeros (a hole in the file system, so any size is cheap). */
export function writeTensors(file: string, specs: Record<string, Spec>): void {
  const { header, dataBytes } = packed(specs);
  fs.writeFileSync(file, fileOf(header, 0));
  fs.truncateSync(file, 8 + Buffer.byteLength(header) + dataBytes);
}

/** Processor time in milliseconds that something takes; unlike wall time it does not grow when the machine is busy. */
export function cpuTime(action: () => void): number {
  const begun = process.cpuUsage();
  action();
  const { user, system } = process.cpuUsage(begun);
  return (user + system) / 1000;
}

/** Asserts that something fails with an MlaError of this code whose text matches. */
export async function fails(action: () => unknown, code: ErrorCode, text: RegExp): Promise<MlaError> {
  let caught: unknown;
  try {
    await action();
  } catch (error) {
    caught = error;
  }
  expect(caught).toBeInstanceOf(MlaError);
  const error = caught as MlaError;
  expect(`${error.code}: ${error.message}`).toMatch(text);
  expect(error.code).toBe(code);
  // One error is one line in a log, whatever the file's author put into names.
  expect(error.message).not.toMatch(/\p{Cc}/u);
  return error;
}

/** 0.707 as the published files have it; not the square root of one half. */
export const V2_MSCALE = 707 / 1000;

const yarn = (factor: number, mscale: number, fast = 32, original = 4096): Json => ({
  type: 'yarn',
  factor,
  original_max_position_embeddings: original,
  beta_fast: fast,
  beta_slow: 1,
  mscale,
  mscale_all_dim: mscale,
});

const fp8 = (extra: Json = {}): Json => ({
  quant_method: 'fp8',
  fmt: 'e4m3',
  weight_block_size: [128, 128],
  activation_scheme: 'dynamic',
  ...extra,
});

const common: Json = {
  attention_bias: false,
  hidden_act: 'silu',
  kv_lora_rank: 512,
  qk_nope_head_dim: 128,
  qk_rope_head_dim: 64,
  v_head_dim: 128,
  rms_norm_eps: 1e-6,
  moe_layer_freq: 1,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
  initializer_range: 0.02,
  use_cache: true,
};
const v2: Json = {
  ...common,
  model_type: 'deepseek_v2',
  architectures: ['DeepseekV2ForCausalLM'],
  scoring_func: 'softmax',
  norm_topk_prob: false,
  rope_theta: 10000,
  rope_scaling: yarn(40, V2_MSCALE),
  max_position_embeddings: 163840,
  vocab_size: 102400,
  bos_token_id: 100000,
  eos_token_id: 100001,
  first_k_dense_replace: 1,
  n_shared_experts: 2,
  num_experts_per_tok: 6,
};
const v3: Json = {
  ...common,
  model_type: 'deepseek_v3',
  architectures: ['DeepseekV3ForCausalLM'],
  scoring_func: 'sigmoid',
  topk_method: 'noaux_tc',
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  rope_theta: 10000,
  rope_scaling: yarn(40, 1),
  max_position_embeddings: 163840,
  vocab_size: 129280,
  bos_token_id: 0,
  eos_token_id: 1,
  hidden_size: 7168,
  num_hidden_layers: 61,
  num_attention_heads: 128,
  num_key_value_heads: 128,
  q_lora_rank: 1536,
  first_k_dense_replace: 3,
  n_routed_experts: 256,
  n_shared_experts: 1,
  num_experts_per_tok: 8,
  n_group: 8,
  topk_group: 4,
  moe_intermediate_size: 2048,
  intermediate_size: 18432,
  num_nextn_predict_layers: 1,
  quantization_config: fp8(),
};

/** config.json of the published models, as far as it matters, in the spelling they use. */
export const REAL: Record<string, Json> = {
  'v2-lite': {
    ...v2,
    hidden_size: 2048,
    num_hidden_layers: 27,
    num_attention_heads: 16,
    num_key_value_heads: 16,
    q_lora_rank: null,
    n_routed_experts: 64,
    n_group: 1,
    topk_group: 1,
    topk_method: 'greedy',
    routed_scaling_factor: 1.0,
    moe_intermediate_size: 1408,
    intermediate_size: 10944,
  },
  v2: {
    ...v2,
    hidden_size: 5120,
    num_hidden_layers: 60,
    num_attention_heads: 128,
    num_key_value_heads: 128,
    q_lora_rank: 1536,
    n_routed_experts: 160,
    n_group: 8,
    topk_group: 3,
    topk_method: 'group_limited_greedy',
    routed_scaling_factor: 16.0,
    moe_intermediate_size: 1536,
    intermediate_size: 12288,
  },
  v3,
  r1: { ...v3, max_position_embeddings: 163840 },
  'v3.1': { ...v3, quantization_config: fp8({ scale_fmt: 'ue8m0' }) },
  moonlight: {
    ...common,
    model_type: 'deepseek_v3',
    architectures: ['DeepseekV3ForCausalLM'],
    scoring_func: 'sigmoid',
    topk_method: 'noaux_tc',
    norm_topk_prob: true,
    routed_scaling_factor: 2.446,
    rope_theta: 50000.0,
    rope_scaling: null,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 8192,
    vocab_size: 163840,
    bos_token_id: 163584,
    eos_token_id: 163586,
    hidden_size: 2048,
    num_hidden_layers: 27,
    num_attention_heads: 16,
    num_key_value_heads: 16,
    q_lora_rank: null,
    first_k_dense_replace: 1,
    n_routed_experts: 64,
    n_shared_experts: 2,
    num_experts_per_tok: 6,
    n_group: 1,
    topk_group: 1,
    moe_intermediate_size: 1408,
    intermediate_size: 11264,
    num_nextn_predict_layers: 0,
  },
  'kimi-k2': {
    ...v3,
    model_type: 'kimi_k2',
    num_attention_heads: 64,
    num_key_value_heads: 64,
    routed_scaling_factor: 2.827,
    rope_theta: 50000.0,
    rope_scaling: yarn(32, 1, 1),
    max_position_embeddings: 131072,
    vocab_size: 163840,
    bos_token_id: 163584,
    eos_token_id: 163585,
    first_k_dense_replace: 1,
    n_routed_experts: 384,
    n_group: 1,
    topk_group: 1,
    num_nextn_predict_layers: 0,
  },
  'glm-4.7-flash': {
    ...common,
    model_type: 'glm4_moe_lite',
    architectures: ['Glm4MoeLiteForCausalLM'],
    topk_method: 'noaux_tc',
    norm_topk_prob: true,
    routed_scaling_factor: 1.8,
    rope_theta: 1000000,
    rope_scaling: null,
    partial_rotary_factor: 1.0,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 202752,
    vocab_size: 154880,
    eos_token_id: [154820, 154827, 154829],
    hidden_size: 2048,
    num_hidden_layers: 47,
    num_attention_heads: 20,
    num_key_value_heads: 20,
    qk_nope_head_dim: 192,
    v_head_dim: 256,
    q_lora_rank: 768,
    first_k_dense_replace: 1,
    n_routed_experts: 64,
    n_shared_experts: 1,
    num_experts_per_tok: 4,
    n_group: 1,
    topk_group: 1,
    moe_intermediate_size: 1536,
    intermediate_size: 10240,
    num_nextn_predict_layers: 1,
  },
};

/** A very small model of the V3 kind. */
export const TINY: Json = {
  ...v3,
  quantization_config: null,
  vocab_size: 32,
  hidden_size: 16,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  q_lora_rank: 8,
  kv_lora_rank: 64,
  qk_nope_head_dim: 8,
  qk_rope_head_dim: 4,
  v_head_dim: 8,
  intermediate_size: 24,
  moe_intermediate_size: 8,
  n_routed_experts: 4,
  num_experts_per_tok: 2,
  n_group: 2,
  topk_group: 1,
  first_k_dense_replace: 1,
  num_nextn_predict_layers: 0,
  rope_scaling: null,
};

/** How {@link tensorsFor} writes a model. */
export interface TensorOptions {
  fp8?: boolean;
  scaleDtype?: string;
  fused?: boolean;
  mtp?: number;
  prefix?: string;
  bias?: boolean;
  dtype?: string;
}

/** Names, dtypes and shapes that a checkpoint of this config has. */
export function tensorsFor(config: ModelConfig, options: TensorOptions = {}): Record<string, Spec> {
  const {
    fp8 = false,
    fused = false,
    mtp = 0,
    prefix = '',
    bias = false,
    dtype = 'BF16',
    scaleDtype = 'F32',
  } = options;
  const out: Record<string, Spec> = {};
  const put = (name: string, shape: number[], kind = dtype): void => {
    out[prefix + name] = { dtype: kind, shape };
  };
  const linear = (name: string, shape: number[], suffix = '.weight'): void => {
    put(name + suffix, shape, fp8 ? 'F8_E4M3' : dtype);
    if (!fp8) return;
    const blocks = shape.map((n, i) => (i < shape.length - 2 ? n : Math.ceil(n / 128)));
    put(`${name + suffix}_scale_inv`, blocks, scaleDtype);
  };
  const d = config.hidden_size;
  const H = config.num_attention_heads;
  const { qk_nope_head_dim: n, qk_rope_head_dim: r, v_head_dim: v, kv_lora_rank: c, q_lora_rank: q } = config;
  const { n_routed_experts: E, moe_intermediate_size: mi, num_hidden_layers: L } = config;
  const mlp = (at: string, width: number): void => {
    linear(`${at}gate_proj`, [width, d]);
    linear(`${at}up_proj`, [width, d]);
    linear(`${at}down_proj`, [d, width]);
  };
  const layer = (l: number, moe: boolean): void => {
    const at = `model.layers.${l}.`;
    put(`${at}input_layernorm.weight`, [d]);
    put(`${at}post_attention_layernorm.weight`, [d]);
    const a = `${at}self_attn.`;
    if (q) {
      linear(`${a}q_a_proj`, [q, d]);
      put(`${a}q_a_layernorm.weight`, [q]);
      linear(`${a}q_b_proj`, [H * (n + r), q]);
    } else {
      linear(`${a}q_proj`, [H * (n + r), d]);
    }
    linear(`${a}kv_a_proj_with_mqa`, [c + r, d]);
    put(`${a}kv_a_layernorm.weight`, [c]);
    linear(`${a}kv_b_proj`, [H * (n + v), c]);
    linear(`${a}o_proj`, [d, H * v]);
    if (!moe) {
      mlp(`${at}mlp.`, config.intermediate_size);
      return;
    }
    put(`${at}mlp.gate.weight`, [E, d]);
    if (bias) put(`${at}mlp.gate.e_score_correction_bias`, [E], 'F32');
    if (fused) {
      linear(`${at}mlp.experts.gate_up_proj`, [E, 2 * mi, d], '');
      linear(`${at}mlp.experts.down_proj`, [E, d, mi], '');
    } else {
      for (let e = 0; e < E; e++) mlp(`${at}mlp.experts.${e}.`, mi);
    }
    if (config.n_shared_experts) mlp(`${at}mlp.shared_experts.`, mi * config.n_shared_experts);
  };
  put('model.embed_tokens.weight', [config.vocab_size, d]);
  for (let l = 0; l < L; l++) layer(l, config.moe_layers.includes(l));
  put('model.norm.weight', [d]);
  put('lm_head.weight', [config.vocab_size, d]);
  for (let l = L; l < L + mtp; l++) {
    layer(l, true);
    for (const norm of ['enorm', 'hnorm', 'shared_head.norm']) put(`model.layers.${l}.${norm}.weight`, [d]);
    put(`model.layers.${l}.eh_proj.weight`, [d, 2 * d]);
    put(`model.layers.${l}.shared_head.head.weight`, [config.vocab_size, d]);
    put(`model.layers.${l}.embed_tokens.weight`, [config.vocab_size, d]);
  }
  return out;
}

/** Something that resolveLayout takes, without any file. */
export function inMemory(config: ResolvedConfig, specs: Record<string, Spec>): LayoutInput {
  const file = { index: 0, name: 'model.safetensors', path: '/memory/model.safetensors', fd: -1, size: 0 };
  const tensors = new Map<string, TensorInfo>();
  for (const [name, { dtype, shape }] of Object.entries(specs)) {
    const bytes = shape.reduce((a, b) => a * b, BYTES[dtype] as number);
    tensors.set(name, { name, dtype: dtype as TensorInfo['dtype'], shape, file, fd: -1, offset: 0, bytes });
  }
  return { path: '/memory', config, tensors };
}

/** Parses a config object and settles its routing. */
export function configOf(json: Json, hasBias = true): ResolvedConfig {
  return resolveRouting(parseConfig(JSON.stringify(json)), hasBias);
}

/** Writes a folder with config.json and one model.safetensors of zeros; gives its path. */
export function writeModel(json: Json, options: TensorOptions = { bias: true }, dir = tempFolder()): string {
  fs.writeFileSync(path.join(dir, 'config.json'), JSON.stringify(json));
  writeTensors(path.join(dir, 'model.safetensors'), tensorsFor(parseConfig(JSON.stringify(json)), options));
  return dir;
}

/** Writes the same model as several files with an index; gives its path. */
export function writeSharded(json: Json, options: TensorOptions, shards: number, dir = tempFolder()): string {
  fs.writeFileSync(path.join(dir, 'config.json'), JSON.stringify(json));
  const all = Object.entries(tensorsFor(parseConfig(JSON.stringify(json)), options));
  const weight_map: Record<string, string> = {};
  for (let s = 0; s < shards; s++) {
    const name = `model-${String(s + 1).padStart(5, '0')}-of-${String(shards).padStart(5, '0')}.safetensors`;
    const part = all.filter((_, i) => i % shards === s);
    for (const [tensor] of part) weight_map[tensor] = name;
    writeTensors(path.join(dir, name), Object.fromEntries(part));
  }
  fs.writeFileSync(path.join(dir, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }));
  return dir;
}
