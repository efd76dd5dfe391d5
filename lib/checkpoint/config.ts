// config.ts - config.json made one: every spelling that the supported families use, with values checked and named.
// Fields keep the names they have in the checkpoint (kv_lora_rank, not kvLoraRank). What is not understood is refused.
import { invalidArg, MlaError } from '../errors';
import { Fields } from './fields';
import { type Folder, openFolder, readSmallInside } from './files';
import { type JsonObject, type JsonValue, parseJson } from './json';
import { shown } from './messages';
import { type RopeConfig, readRope } from './rope-config';
import { readRouting, type ScoringFunc, type TopkMethod } from './routing';

/** The values of model_type that are understood. */
export const MODEL_TYPES = ['deepseek_v2', 'deepseek_v3', 'kimi_k2', 'glm4_moe_lite'] as const;
/** One of {@link MODEL_TYPES}. */
export type ModelType = (typeof MODEL_TYPES)[number];

/** FP8 weights with one scale for each block of 128 x 128. */
export interface Fp8Quantization {
  readonly quant_method: 'fp8';
  readonly fmt: 'e4m3';
  readonly weight_block_size: readonly [128, 128];
  /** `ue8m0`: scales are powers of two and activations must be rounded with such scales too; null: any float32. */
  readonly scale_fmt: 'ue8m0' | null;
}

/** A model as config.json (and generation_config.json) describes it, with one spelling for everything. */
export interface ModelConfig {
  /** Which file this came from; for messages. */
  readonly source: string;
  readonly model_type: ModelType;
  /** True when the model was the text part of a larger one, whose tensor names begin with `language_model.`. */
  readonly wrapped: boolean;
  readonly vocab_size: number;
  readonly hidden_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  /** 0 when queries are not compressed (one q_proj). */
  readonly q_lora_rank: number;
  readonly kv_lora_rank: number;
  readonly qk_nope_head_dim: number;
  readonly qk_rope_head_dim: number;
  readonly v_head_dim: number;
  /** Width of the dense feed-forward layers. */
  readonly intermediate_size: number;
  /** Width of one expert; 0 without experts. */
  readonly moe_intermediate_size: number;
  /** 0 without experts. */
  readonly n_routed_experts: number;
  /** 0 for none. Shared experts are one feed-forward block of n_shared_experts * moe_intermediate_size. */
  readonly n_shared_experts: number;
  readonly num_experts_per_tok: number;
  readonly n_group: number;
  readonly topk_group: number;
  readonly norm_topk_prob: boolean;
  readonly routed_scaling_factor: number;
  /** Null until {@link resolveRouting} when config.json does not say. */
  readonly scoring_func: ScoringFunc | null;
  /** Null until {@link resolveRouting} when config.json does not say. */
  readonly topk_method: TopkMethod | null;
  /** How many layers stand before the first MoE layer. */
  readonly first_k_dense_replace: number;
  /** Indices of the MoE layers, ascending. */
  readonly moe_layers: readonly number[];
  readonly rope: RopeConfig;
  readonly max_position_embeddings: number;
  /** For all norms, the two latent norms too. */
  readonly rms_norm_eps: number;
  readonly tie_word_embeddings: boolean;
  readonly bos_token_id: number | null;
  /** Ids that end a text; empty when the model has none. */
  readonly eos_token_id: readonly number[];
  /** The dtype that config.json names (bfloat16, ...), or null. Tensors say themselves what they are. */
  readonly dtype: string | null;
  readonly quantization: Fp8Quantization | null;
  /** Layers after the last one that predict further tokens; never counted in num_hidden_layers. */
  readonly num_nextn_predict_layers: number;
  /** What generation_config.json advises for sampling; a field is null when it says nothing. */
  readonly generation: GenerationSettings;
}

/** The sampling part of generation_config.json. */
export interface GenerationSettings {
  readonly do_sample: boolean | null;
  readonly temperature: number | null;
  readonly top_k: number | null;
  readonly top_p: number | null;
  readonly min_p: number | null;
  readonly repetition_penalty: number | null;
}

/** Largest config.json that is read. */
export const MAX_CONFIG_BYTES = 4 << 20;

/** What a field means when it is absent: the defaults of the family's configuration class. The rest is required. */
const DEFAULTS: Record<ModelType, JsonObject> = {
  deepseek_v2: {
    first_k_dense_replace: 0,
    n_group: 1,
    topk_group: 1,
    norm_topk_prob: false,
    routed_scaling_factor: 1,
    rms_norm_eps: 1e-6,
    max_position_embeddings: 2048,
    n_shared_experts: 0,
    num_nextn_predict_layers: 0,
  },
  deepseek_v3: {
    first_k_dense_replace: 3,
    n_group: 8,
    topk_group: 4,
    norm_topk_prob: true,
    routed_scaling_factor: 2.5,
    rms_norm_eps: 1e-6,
    max_position_embeddings: 4096,
    n_shared_experts: 1,
    num_experts_per_tok: 8,
    eos_token_id: 1,
    num_nextn_predict_layers: 1,
  },
  // Its configuration class has gone through several sets of defaults, so a file must state what it means.
  kimi_k2: { num_nextn_predict_layers: 0 },
  glm4_moe_lite: {
    first_k_dense_replace: 1,
    n_group: 1,
    topk_group: 1,
    norm_topk_prob: true,
    routed_scaling_factor: 1.8,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 202752,
    n_shared_experts: 1,
    num_experts_per_tok: 4,
    num_nextn_predict_layers: 0,
  },
};

/** Fields that would change the mathematics: only these values (or absence) mean what this package computes. */
const NEUTRAL: Record<string, readonly JsonValue[]> = {
  attention_bias: [false],
  mlp_bias: [false],
  hidden_act: ['silu'],
  rope_interleave: [true],
  partial_rotary_factor: [1],
  use_mla: [true],
  mla_use_nope: [false],
  llama_4_scaling: [],
  llama_4_scaling_beta: [0],
  sliding_window: [],
  use_sliding_window: [false],
  index_topk: [],
  index_n_heads: [],
  compress_ratios: [],
  hc_mult: [],
  num_hash_layers: [0],
  swiglu_limit: [],
  attn_logit_softcapping: [],
  final_logit_softcapping: [],
  apply_router_weight_on_input: [false],
  quantization: [],
};

/**
 * Reads config.json of a model folder, with generation_config.json for what ends a text.
 * @throws ERR_FILE, ERR_CONFIG or ERR_UNSUPPORTED_MODEL, naming field, found value and what is expected or supported
 */
export async function readConfig(dir: string): Promise<ModelConfig> {
  if (typeof dir !== 'string') throw invalidArg('dir', 'the path of a model folder', dir);
  return readConfigOf(await openFolder(dir));
}

/** The same for a folder that is already resolved. */
export async function readConfigOf(folder: Folder): Promise<ModelConfig> {
  const json = await readSmallInside(folder, 'config.json', MAX_CONFIG_BYTES);
  if (json === null) {
    throw new MlaError('ERR_FILE', `${folder.path}: found no config.json, expected a model folder as downloaded.`);
  }
  const generation = await readSmallInside(folder, 'generation_config.json', MAX_CONFIG_BYTES);
  return parseConfig(json, `${folder.path}/config.json`, generation ?? undefined);
}

/**
 * Parses the text of a config.json.
 * @param json the text
 * @param source names it in messages
 * @param generation the text of generation_config.json, whose eos_token_id wins
 */
export function parseConfig(
  json: string | Uint8Array,
  source = 'config.json',
  generation?: string | Uint8Array,
): ModelConfig {
  const outer = parseFields(json, source);
  const inner = unwrap(outer);
  const fields = inner ?? outer;
  const model_type = readModelType(fields);
  refuseUnknownMathematics(fields);
  const settings = generation === undefined ? undefined : parseFields(generation, `${source} (generation_config.json)`);
  const withDefaults = new Fields({ ...DEFAULTS[model_type], ...present(fields.object) }, source);
  const vocab_size = fields.integer('vocab_size', 1, 2 ** 24);
  const layers = fields.integer('num_hidden_layers', 1, 1000);
  const moe = readMoe(withDefaults, fields, model_type, layers);
  return {
    source,
    model_type,
    wrapped: inner !== undefined,
    vocab_size,
    hidden_size: multipleOf(8, fields, 'hidden_size', 2 ** 17),
    num_hidden_layers: layers,
    num_attention_heads: fields.integer('num_attention_heads', 1, 1024),
    ...readHeadDims(fields),
    intermediate_size: multipleOf(8, fields, 'intermediate_size', 2 ** 20),
    ...moe,
    rope: readRope(fields),
    generation: readGeneration(settings),
    max_position_embeddings: withDefaults.integer('max_position_embeddings', 1, 2 ** 31),
    rms_norm_eps: withDefaults.number('rms_norm_eps', 0, 1),
    tie_word_embeddings: fields.boolean('tie_word_embeddings', false),
    bos_token_id: fields.has('bos_token_id') ? fields.integer('bos_token_id', 0, vocab_size - 1) : null,
    eos_token_id: readEos(withDefaults, fields, settings, vocab_size),
    dtype: readDtype(fields),
    quantization: readQuantization(fields, outer),
    num_nextn_predict_layers: aliased(
      fields,
      ['num_nextn_predict_layers', 'num_mtp_layers'],
      16,
      DEFAULTS[model_type].num_nextn_predict_layers as number,
    ),
  };
}

function parseFields(json: string | Uint8Array, source: string): Fields {
  if (typeof json !== 'string' && !(json instanceof Uint8Array)) throw invalidArg('json', 'text or bytes', json);
  const value = parseJson(json, { code: 'ERR_CONFIG', source, maxBytes: MAX_CONFIG_BYTES, maxValues: 200_000 });
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new MlaError('ERR_CONFIG', `${source}: found ${shown(value)}, expected an object.`);
  }
  return new Fields(value, source);
}

/** The members that are not null, so that defaults show through null as they do through absence. */
function present(object: JsonObject): JsonObject {
  // n_group, topk_group and n_shared_experts are the fields where null is itself a value: one group, none.
  const result: JsonObject = Object.create(null);
  for (const [key, value] of Object.entries(object)) {
    if (value !== null) result[key] = value;
    else if (key === 'n_group' || key === 'topk_group') result[key] = 1;
    else if (key === 'n_shared_experts') result[key] = 0;
  }
  return result;
}

/** The text part of a model with other senses. Only those wrappers whose text part is known to be complete in itself. */
function unwrap(outer: Fields): Fields | undefined {
  if (outer.text('model_type') !== 'kimi_k25') return undefined;
  const inner = outer.nested('text_config');
  if (inner === undefined) throw outer.broken('text_config', 'an object');
  return inner;
}

function readModelType(fields: Fields): ModelType {
  const type = fields.text('model_type');
  if (type === undefined) throw fields.broken('model_type', `one of ${MODEL_TYPES.join(', ')}`);
  if (type === 'deepseek_v32') {
    throw fields.unsupported(
      'model_type',
      `${MODEL_TYPES.join(', ')} (the sparse-attention indexer is not implemented; without it only contexts up to index_topk would be right)`,
    );
  }
  if (!(MODEL_TYPES as readonly string[]).includes(type)) {
    throw fields.unsupported('model_type', MODEL_TYPES.join(', '));
  }
  return type as ModelType;
}

function refuseUnknownMathematics(fields: Fields): void {
  for (const [name, neutral] of Object.entries(NEUTRAL)) {
    if (!fields.has(name) || neutral.includes(fields.get(name) as JsonValue)) continue;
    throw fields.unsupported(name, neutral.length === 0 ? 'absent' : `absent or ${neutral.map(shown).join(', ')}`);
  }
  const kinds = fields.get('layer_types');
  if (kinds !== undefined && !(Array.isArray(kinds) && kinds.every((kind) => kind === 'full_attention'))) {
    throw fields.unsupported('layer_types', '"full_attention" for every layer');
  }
}

function multipleOf(step: number, fields: Fields, name: string, max: number): number {
  const value = fields.integer(name, 1, max);
  if (value % step !== 0) throw fields.unsupported(name, `multiples of ${step}`);
  return value;
}

function readHeadDims(
  fields: Fields,
): Pick<ModelConfig, 'q_lora_rank' | 'kv_lora_rank' | 'qk_nope_head_dim' | 'qk_rope_head_dim' | 'v_head_dim'> {
  const q_lora_rank = fields.integer('q_lora_rank', 0, 2 ** 16, 0);
  if (q_lora_rank % 8 !== 0) throw fields.unsupported('q_lora_rank', 'multiples of 8');
  const kv_lora_rank = fields.integer('kv_lora_rank', 1, 2 ** 16);
  if (kv_lora_rank % 64 !== 0 || kv_lora_rank > 512) {
    throw fields.unsupported('kv_lora_rank', 'multiples of 64 up to 512');
  }
  const qk_nope_head_dim = multipleOf(8, fields, 'qk_nope_head_dim', 1024);
  const qk_rope_head_dim = multipleOf(2, fields, 'qk_rope_head_dim', 256);
  const v_head_dim = multipleOf(8, fields, 'v_head_dim', 1024);
  const width = qk_nope_head_dim + qk_rope_head_dim;
  if (fields.has('qk_head_dim') && fields.integer('qk_head_dim', 1, 4096) !== width) {
    throw fields.broken('qk_head_dim', `qk_nope_head_dim + qk_rope_head_dim, ${width}`);
  }
  return { q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim };
}

/** An integer that programs also write under another name; if both are there they must agree. */
function aliased(fields: Fields, names: readonly string[], max: number, fallback: number): number {
  const stated = names.filter((name) => fields.has(name));
  const values = stated.map((name) => fields.integer(name, 0, max));
  const other = values.findIndex((value) => value !== values[0]);
  if (other > 0) throw fields.broken(stated[other] as string, `the same as ${stated[0]}, ${values[0]}`);
  return values[0] ?? fallback;
}

type MoeFields = Pick<
  ModelConfig,
  | 'n_routed_experts'
  | 'n_shared_experts'
  | 'moe_intermediate_size'
  | 'num_experts_per_tok'
  | 'n_group'
  | 'topk_group'
  | 'norm_topk_prob'
  | 'routed_scaling_factor'
  | 'scoring_func'
  | 'topk_method'
  | 'first_k_dense_replace'
  | 'moe_layers'
>;

/** @param fields with defaults filled in; `stated` is the file alone */
function readMoe(fields: Fields, stated: Fields, model_type: ModelType, layers: number): MoeFields {
  const experts = aliased(stated, ['n_routed_experts', 'num_local_experts', 'num_experts'], 2 ** 16, 0);
  if (experts === 0) {
    return {
      n_routed_experts: 0,
      n_shared_experts: 0,
      moe_intermediate_size: 0,
      num_experts_per_tok: 0,
      n_group: 1,
      topk_group: 1,
      norm_topk_prob: false,
      routed_scaling_factor: 1,
      scoring_func: null,
      topk_method: null,
      first_k_dense_replace: layers,
      moe_layers: [],
    };
  }
  const { scoring_func, topk_method } = readRouting(fields);
  const num_experts_per_tok = fields.integer('num_experts_per_tok', 1, experts);
  let n_group = fields.integer('n_group', 1, experts);
  let topk_group = n_group === 1 && !stated.has('topk_group') ? 1 : fields.integer('topk_group', 1, n_group);
  if (experts % n_group !== 0) throw fields.broken('n_group', `a divisor of n_routed_experts, ${experts}`);
  if (topk_method === 'group_limited_greedy') {
    for (const name of ['n_group', 'topk_group']) {
      if (!stated.has(name)) throw stated.broken(name, 'an integer, because topk_method is "group_limited_greedy"');
    }
  }
  if (topk_method === 'greedy') {
    // Greedy choice never looks at groups, whatever the file says of them.
    n_group = 1;
    topk_group = 1;
  }
  const allowed = (experts / n_group) * topk_group;
  if (num_experts_per_tok > allowed) {
    throw fields.broken('num_experts_per_tok', `at most the ${allowed} experts of topk_group groups`);
  }
  const norm_topk_prob = fields.boolean('norm_topk_prob');
  const routed_scaling_factor = fields.number('routed_scaling_factor', 0, 1e6);
  if (model_type === 'deepseek_v2' && norm_topk_prob && routed_scaling_factor !== 1) {
    // The family's own program then normalises and does not scale, others scale and do not normalise, or do both.
    throw fields.unsupported(
      'norm_topk_prob',
      'false, or a routed_scaling_factor of 1 (programs disagree on both at once)',
    );
  }
  return {
    n_routed_experts: experts,
    n_shared_experts: fields.integer('n_shared_experts', 0, 1024),
    moe_intermediate_size: multipleOf(8, fields, 'moe_intermediate_size', 2 ** 20),
    num_experts_per_tok,
    n_group,
    topk_group,
    norm_topk_prob,
    routed_scaling_factor,
    scoring_func,
    topk_method,
    ...readMoeLayers(fields, stated, layers),
  };
}

/** Which layers have experts: first_k_dense_replace with moe_layer_freq (a number or a list), or mlp_layer_types. */
function readMoeLayers(
  fields: Fields,
  stated: Fields,
  layers: number,
): Pick<ModelConfig, 'first_k_dense_replace' | 'moe_layers'> {
  const types = fields.get('mlp_layer_types');
  const freq = fields.get('moe_layer_freq');
  const listed = types !== undefined || Array.isArray(freq);
  // A list says it all; then a default of first_k_dense_replace must not get in its way.
  const first =
    listed && !stated.has('first_k_dense_replace') ? null : fields.integer('first_k_dense_replace', 0, layers);
  let moe: boolean[];
  if (types !== undefined) {
    const ok = Array.isArray(types) && types.length === layers && types.every((t) => t === 'dense' || t === 'sparse');
    if (!ok) throw fields.broken('mlp_layer_types', `${layers} times "dense" or "sparse"`);
    moe = (types as JsonValue[]).map((t) => t === 'sparse');
  } else if (Array.isArray(freq)) {
    const ok = freq.length === layers && freq.every((n) => n === 0 || n === 1);
    if (!ok) throw fields.broken('moe_layer_freq', `an integer, or ${layers} times 0 or 1`);
    moe = freq.map((n) => n === 1);
  } else {
    const every = fields.integer('moe_layer_freq', 1, 1000, 1);
    moe = Array.from({ length: layers }, (_, l) => l >= (first ?? 0) && l % every === 0);
  }
  const moe_layers = moe.flatMap((isMoe, l) => (isMoe ? [l] : []));
  const dense = moe_layers[0] ?? layers;
  if (listed && first !== null && first !== dense) {
    throw stated.broken('first_k_dense_replace', `${dense}, the number of layers before the first one with experts`);
  }
  return { first_k_dense_replace: dense, moe_layers };
}

function readEos(withDefaults: Fields, fields: Fields, settings: Fields | undefined, vocab: number): number[] {
  const from = settings?.has('eos_token_id') ? settings : withDefaults;
  // Stated as null in config.json: the model has no such token, and generation ends by length alone.
  if (from !== settings && fields.object.eos_token_id === null) return [];
  const value = from.get('eos_token_id');
  const ids = Array.isArray(value) ? value : [value];
  const ok = ids.length <= 64 && ids.every((id) => Number.isInteger(id) && Number(id) >= 0 && Number(id) < vocab);
  if (!ok) throw from.broken('eos_token_id', `token ids below vocab_size, ${vocab}`);
  return [...new Set(ids as number[])];
}

function readDtype(fields: Fields): string | null {
  const field = fields.has('dtype') ? 'dtype' : 'torch_dtype';
  const dtype = fields.text(field);
  if (dtype === undefined) return null;
  if (!['bfloat16', 'float32', 'float16'].includes(dtype)) {
    throw fields.unsupported(field, '"bfloat16", "float32" and "float16" (what tensors are, they say themselves)');
  }
  return dtype;
}

function readQuantization(fields: Fields, outer: Fields): Fp8Quantization | null {
  const block = fields.nested('quantization_config') ?? outer.nested('quantization_config');
  if (block === undefined) return null;
  const method = block.text('quant_method');
  if (method === undefined) throw block.broken('quant_method', '"fp8"');
  if (method !== 'fp8') throw block.unsupported('quant_method', '"fp8" with blocks of 128 x 128, or no quantization');
  if ((block.text('fmt') ?? 'e4m3') !== 'e4m3') throw block.unsupported('fmt', '"e4m3"');
  const size = block.get('weight_block_size');
  if (!Array.isArray(size) || size.length !== 2 || size[0] !== 128 || size[1] !== 128) {
    throw block.unsupported('weight_block_size', '[128, 128]');
  }
  if ((block.text('activation_scheme') ?? 'dynamic') !== 'dynamic') {
    throw block.unsupported('activation_scheme', '"dynamic"');
  }
  const scale = block.text('scale_fmt') ?? 'float';
  if (scale !== 'float' && scale !== 'ue8m0') throw block.unsupported('scale_fmt', 'absent, "float" and "ue8m0"');
  return {
    quant_method: 'fp8',
    fmt: 'e4m3',
    weight_block_size: [128, 128],
    scale_fmt: scale === 'ue8m0' ? 'ue8m0' : null,
  };
}

function readGeneration(settings: Fields | undefined): GenerationSettings {
  const number = (name: string, least: number, most: number): number | null => {
    const value = settings?.get(name);
    if (settings === undefined || value === undefined) return null;
    if (typeof value !== 'number' || value < least || value > most) {
      throw settings.broken(name, `a number from ${least} to ${most}`);
    }
    return value;
  };
  return {
    do_sample: settings?.has('do_sample') ? settings.boolean('do_sample') : null,
    temperature: number('temperature', 0, 100),
    top_k: settings?.has('top_k') ? settings.integer('top_k', 0, 2 ** 24) : null,
    top_p: settings?.has('top_p') ? settings.number('top_p', 0, 1) : null,
    min_p: number('min_p', 0, 1),
    repetition_penalty: number('repetition_penalty', 0, 100),
  };
}
