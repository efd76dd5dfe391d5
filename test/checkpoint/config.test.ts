// config.json of every supported family in every spelling, and how its routing is settled. What is refused stands in
// config-refused.test.ts.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { type ModelConfig, parseConfig, readConfig, resolveRouting } from '../../lib/checkpoint';
import type { ErrorCode } from '../../lib/errors';
import { configOf, fails, type Json, REAL, removeFolders, TINY, tempFolder, V2_MSCALE } from './support';

afterAll(removeFolders);

const parse = (json: Json): ModelConfig => parseConfig(JSON.stringify(json));
const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);
const without = (json: Json, ...names: string[]): Json =>
  Object.fromEntries(Object.entries(json).filter(([name]) => !names.includes(name)));
const real = (name: string): Json => REAL[name] as Json;

describe('published configs', () => {
  const yarn = { beta_fast: 32, beta_slow: 1, factor: 40, original_max_position_embeddings: 4096 };
  const fp8 = { quant_method: 'fp8', fmt: 'e4m3', weight_block_size: [128, 128], scale_fmt: null };
  const v3 = {
    model_type: 'deepseek_v3',
    num_hidden_layers: 61,
    q_lora_rank: 1536,
    n_routed_experts: 256,
    n_shared_experts: 1,
    num_experts_per_tok: 8,
    n_group: 8,
    topk_group: 4,
    scoring_func: 'sigmoid',
    topk_method: 'noaux_tc',
    norm_topk_prob: true,
    routed_scaling_factor: 2.5,
    rope: { theta: 10000, yarn: { ...yarn, mscale: 1, mscale_all_dim: 1 } },
    moe_layers: range(3, 61),
    eos_token_id: [1],
    bos_token_id: 0,
    num_nextn_predict_layers: 1,
    quantization: fp8,
  };
  const expected: Record<string, { [Field in keyof ModelConfig]?: unknown }> = {
    'v2-lite': {
      model_type: 'deepseek_v2',
      q_lora_rank: 0,
      kv_lora_rank: 512,
      scoring_func: 'softmax',
      topk_method: 'greedy',
      n_group: 1,
      norm_topk_prob: false,
      routed_scaling_factor: 1,
      rope: { theta: 10000, yarn: { ...yarn, mscale: V2_MSCALE, mscale_all_dim: V2_MSCALE } },
      moe_layers: range(1, 27),
      eos_token_id: [100001],
      quantization: null,
      num_nextn_predict_layers: 0,
      dtype: 'bfloat16',
    },
    v2: {
      topk_method: 'group_limited_greedy',
      n_group: 8,
      topk_group: 3,
      routed_scaling_factor: 16,
      n_routed_experts: 160,
    },
    v3,
    r1: v3,
    'v3.1': { ...v3, quantization: { ...fp8, scale_fmt: 'ue8m0' } },
    moonlight: {
      model_type: 'deepseek_v3',
      q_lora_rank: 0,
      rope: { theta: 50000, yarn: null },
      rms_norm_eps: 1e-5,
      n_group: 1,
      routed_scaling_factor: 2.446,
      eos_token_id: [163586],
    },
    'kimi-k2': {
      model_type: 'kimi_k2',
      num_attention_heads: 64,
      n_routed_experts: 384,
      rope: { theta: 50000, yarn: { ...yarn, factor: 32, beta_fast: 1, mscale: 1, mscale_all_dim: 1 } },
      moe_layers: range(1, 61),
    },
    'glm-4.7-flash': {
      model_type: 'glm4_moe_lite',
      num_attention_heads: 20,
      qk_nope_head_dim: 192,
      v_head_dim: 256,
      q_lora_rank: 768,
      rope: { theta: 1e6, yarn: null },
      rms_norm_eps: 1e-5,
      scoring_func: 'sigmoid',
      eos_token_id: [154820, 154827, 154829],
      bos_token_id: null,
      num_nextn_predict_layers: 1,
      moe_layers: range(1, 47),
    },
  };
  test.each(Object.keys(expected))('%s', (name) => {
    const hasBias = !name.startsWith('v2');
    expect(configOf(real(name), hasBias)).toMatchObject(expected[name] as object);
  });
});

describe('spellings of one meaning', () => {
  const base = parse(TINY);
  const yarn = { factor: 40, original_max_position_embeddings: 4096, mscale: 1, mscale_all_dim: 1 };
  const withYarn = parse({ ...TINY, rope_scaling: { type: 'yarn', ...yarn } });
  const layers4: Json = { ...TINY, num_hidden_layers: 4, first_k_dense_replace: 2 };
  const same: [string, Json, ModelConfig][] = [
    ['rope_type for type', { ...TINY, rope_scaling: { rope_type: 'yarn', ...yarn } }, withYarn],
    ['both type and rope_type', { ...TINY, rope_scaling: { type: 'yarn', rope_type: 'yarn', ...yarn } }, withYarn],
    [
      'rope_parameters',
      {
        ...without(TINY, 'rope_scaling', 'rope_theta'),
        rope_parameters: { rope_type: 'yarn', rope_theta: 10000, ...yarn },
      },
      withYarn,
    ],
    [
      'rope_parameters beside rope_theta and an equal rope_scaling',
      {
        ...TINY,
        rope_scaling: { type: 'yarn', ...yarn },
        rope_parameters: {
          rope_type: 'yarn',
          type: 'yarn',
          rope_theta: 10000.0,
          beta_fast: 32.0,
          beta_slow: 1,
          ...yarn,
        },
      },
      withYarn,
    ],
    [
      'rope_parameters of the default type',
      { ...TINY, rope_parameters: { rope_type: 'default', rope_theta: 10000, partial_rotary_factor: 1.0 } },
      base,
    ],
    [
      'an attention_factor that says the same',
      { ...TINY, rope_scaling: { type: 'yarn', ...yarn, attention_factor: 1.0, truncate: true } },
      withYarn,
    ],
    ['absent rope_scaling', without(TINY, 'rope_scaling'), base],
    ['absent rope_theta', without(TINY, 'rope_theta'), base],
    [
      'nulls',
      { ...TINY, rope_parameters: null, sliding_window: null, quantization_config: null, llama_4_scaling: null },
      base,
    ],
    ['mlp_layer_types', { ...without(TINY, 'first_k_dense_replace'), mlp_layer_types: ['dense', 'sparse'] }, base],
    ['mlp_layer_types and first_k_dense_replace', { ...TINY, mlp_layer_types: ['dense', 'sparse'] }, base],
    ['moe_layer_freq as a list', { ...TINY, moe_layer_freq: [0, 1] }, base],
    ['num_local_experts', { ...without(TINY, 'n_routed_experts'), num_local_experts: 4 }, base],
    ['num_experts beside n_routed_experts', { ...TINY, num_experts: 4 }, base],
    ['num_mtp_layers', { ...without(TINY, 'num_nextn_predict_layers'), num_mtp_layers: 0 }, base],
    ['dtype for torch_dtype', { ...without(TINY, 'torch_dtype'), dtype: 'bfloat16' }, base],
    ['eos as a list with repeats', { ...TINY, eos_token_id: [1, 1] }, base],
    ['num_key_value_heads and head_dim mean nothing', { ...TINY, num_key_value_heads: 7, head_dim: 999 }, base],
    ['fields nobody needs', { ...TINY, unsloth_version: 'x', pad_token_id: -1, auto_map: {}, ep_size: 1 }, base],
    ['rope_interleave true', { ...TINY, rope_interleave: true }, base],
    [
      'every second layer',
      { ...layers4, moe_layer_freq: 2 },
      parse({
        ...without(layers4, 'first_k_dense_replace', 'moe_layer_freq'),
        mlp_layer_types: ['dense', 'dense', 'sparse', 'dense'],
      }),
    ],
  ];
  test.each(same)('%s', (_, json, expected) => {
    expect(parse(json)).toEqual(expected);
  });

  test('defaults are those of the family', () => {
    const routing = [
      'norm_topk_prob',
      'routed_scaling_factor',
      'rms_norm_eps',
      'max_position_embeddings',
      'n_group',
      'topk_group',
      'first_k_dense_replace',
      'n_shared_experts',
      'eos_token_id',
      'num_nextn_predict_layers',
    ];
    const v3 = parse({ ...without(TINY, ...routing), n_routed_experts: 16, num_hidden_layers: 5 });
    expect(v3).toMatchObject({
      norm_topk_prob: true,
      routed_scaling_factor: 2.5,
      rms_norm_eps: 1e-6,
      n_group: 8,
      topk_group: 4,
      first_k_dense_replace: 3,
      n_shared_experts: 1,
      eos_token_id: [1],
      num_nextn_predict_layers: 1,
    });
    const v2 = parse({ ...without(TINY, ...routing), model_type: 'deepseek_v2', eos_token_id: 2 });
    expect(v2).toMatchObject({
      norm_topk_prob: false,
      routed_scaling_factor: 1,
      n_group: 1,
      topk_group: 1,
      first_k_dense_replace: 0,
      moe_layers: [0, 1],
      n_shared_experts: 0,
    });
    const glm = parse({ ...without(TINY, ...routing), model_type: 'glm4_moe_lite', eos_token_id: 2 });
    expect(glm).toMatchObject({
      norm_topk_prob: true,
      routed_scaling_factor: 1.8,
      rms_norm_eps: 1e-5,
      n_group: 1,
      first_k_dense_replace: 1,
    });
  });

  test('null means none or one for shared experts, query rank and groups', () => {
    const config = parse({ ...TINY, n_shared_experts: null, q_lora_rank: null, n_group: null, topk_group: null });
    expect(config).toMatchObject({ n_shared_experts: 0, q_lora_rank: 0, n_group: 1, topk_group: 1 });
    expect(parse(without(TINY, 'q_lora_rank')).q_lora_rank).toBe(0);
  });

  test('no experts: all layers are dense', () => {
    const config = configOf(without(TINY, 'n_routed_experts', 'moe_intermediate_size'), false);
    expect(config).toMatchObject({ moe_layers: [], n_routed_experts: 0, first_k_dense_replace: 2 });
  });

  test('a wrapped text model', () => {
    const outer = { model_type: 'kimi_k25', text_config: { ...TINY, model_type: 'kimi_k2' }, vision_config: {} };
    expect(parse(outer)).toEqual({ ...base, model_type: 'kimi_k2', wrapped: true });
    expect(parse({ ...outer, quantization_config: real('v3').quantization_config }).quantization).not.toBeNull();
  });
});

describe('how a router chooses', () => {
  const base = without(TINY, 'scoring_func', 'topk_method');
  const good: [string, Json, boolean, string, string][] = [
    ['nothing stated, bias', base, true, 'sigmoid', 'noaux_tc'],
    [
      'nothing stated, no bias',
      { ...base, model_type: 'deepseek_v2', norm_topk_prob: false },
      false,
      'softmax',
      'greedy',
    ],
    ['noaux_tc alone', { ...base, topk_method: 'noaux_tc' }, true, 'sigmoid', 'noaux_tc'],
    ['sigmoid alone', { ...base, scoring_func: 'sigmoid' }, true, 'sigmoid', 'noaux_tc'],
    ['softmax by name with a bias', { ...base, scoring_func: 'softmax' }, true, 'softmax', 'noaux_tc'],
    [
      'both stated without bias',
      { ...base, scoring_func: 'softmax', topk_method: 'greedy' },
      false,
      'softmax',
      'greedy',
    ],
    ['sigmoid and greedy', { ...base, scoring_func: 'sigmoid', topk_method: 'greedy' }, false, 'sigmoid', 'greedy'],
  ];
  test.each(good)('%s', (_, json, hasBias, scoring_func, topk_method) => {
    expect(resolveRouting(parse(json), hasBias)).toMatchObject({ scoring_func, topk_method });
  });
  test('greedy ignores groups', () => {
    expect(configOf({ ...TINY, topk_method: 'greedy', scoring_func: 'softmax' }, false)).toMatchObject({
      n_group: 1,
      topk_group: 1,
    });
  });
  const bad: [string, Json, boolean, ErrorCode, RegExp][] = [
    [
      'greedy with a bias',
      { ...base, topk_method: 'greedy' },
      true,
      'ERR_UNSUPPORTED_MODEL',
      /topk_method: found "greedy", supported: "noaux_tc" where/,
    ],
    [
      'noaux_tc without a bias',
      { ...base, topk_method: 'noaux_tc' },
      false,
      'ERR_CHECKPOINT',
      /topk_method: found "noaux_tc" and no tensor mlp\.gate\.e_score_correction_bias/,
    ],
    ['nothing stated, no bias, V3', base, false, 'ERR_UNSUPPORTED_MODEL', /scoring_func: found nothing/],
    [
      'group_limited_greedy and sigmoid',
      { ...base, scoring_func: 'sigmoid', topk_method: 'group_limited_greedy' },
      false,
      'ERR_UNSUPPORTED_MODEL',
      /scoring_func: found "sigmoid"/,
    ],
    [
      'groups of one expert',
      { ...base, n_group: 4, topk_group: 2 },
      true,
      'ERR_UNSUPPORTED_MODEL',
      /groups of at least 2 experts/,
    ],
  ];
  test.each(bad)('%s is refused', async (_, json, hasBias, code, text) => {
    await fails(() => resolveRouting(parse(json), hasBias), code, text);
  });
});

describe('readConfig', () => {
  const write = (files: Json): string => {
    const dir = tempFolder();
    for (const [name, value] of Object.entries(files)) {
      fs.writeFileSync(path.join(dir, name), typeof value === 'string' ? value : JSON.stringify(value));
    }
    return dir;
  };
  test('generation_config.json decides what ends a text', async () => {
    const generation = { eos_token_id: [3, 4], do_sample: true };
    expect(
      (await readConfig(write({ 'config.json': TINY, 'generation_config.json': generation }))).eos_token_id,
    ).toEqual([3, 4]);
    expect((await readConfig(write({ 'config.json': TINY, 'generation_config.json': {} }))).eos_token_id).toEqual([1]);
    expect((await readConfig(write({ 'config.json': { ...TINY, eos_token_id: null } }))).eos_token_id).toEqual([]);
    const v2 = without({ ...TINY, model_type: 'deepseek_v2', norm_topk_prob: false }, 'eos_token_id');
    expect(
      (await readConfig(write({ 'config.json': v2, 'generation_config.json': { eos_token_id: 5 } }))).eos_token_id,
    ).toEqual([5]);
  });
  test('generation_config.json advises on sampling', () => {
    const text = JSON.stringify(TINY);
    const none = {
      do_sample: null,
      temperature: null,
      top_k: null,
      top_p: null,
      min_p: null,
      repetition_penalty: null,
    };
    expect(parseConfig(text).generation).toEqual(none);
    expect(parseConfig(text, 'c', '{"do_sample":true,"temperature":0,"top_k":50,"top_p":0.95}').generation).toEqual({
      ...none,
      do_sample: true,
      temperature: 0,
      top_k: 50,
      top_p: 0.95,
    });
  });
  test.each([
    ['{"temperature":-1}', /temperature: found -1, expected a number from 0 to 100/],
    ['{"temperature":"hot"}', /temperature: found "hot"/],
    ['{"top_p":1.5}', /top_p: found 1.5, expected a number above 0 and at most 1/],
    ['{"top_k":-1}', /top_k: found -1, expected an integer/],
    ['{"min_p":2}', /min_p: found 2/],
    ['{"do_sample":1}', /do_sample: found 1, expected true or false/],
  ])('generation_config.json: %s is refused', async (generation, text) => {
    await fails(() => parseConfig(JSON.stringify(TINY), 'c', generation), 'ERR_CONFIG', text);
  });
  test('errors name the file', async () => {
    await fails(() => readConfig(write({})), 'ERR_FILE', /found no config\.json/);
    await fails(() => readConfig(path.join(write({}), 'none')), 'ERR_FILE', /none": found ENOENT/);
    await fails(() => readConfig(7 as never), 'ERR_INVALID_ARG', /dir: expected/);
    await fails(() => readConfig(write({ 'config.json': '{' })), 'ERR_CONFIG', /config\.json: broken JSON at byte 1/);
    const dir = write({ 'config.json': TINY, 'generation_config.json': { eos_token_id: 'x' } });
    await fails(() => readConfig(dir), 'ERR_CONFIG', /generation_config\.json\): eos_token_id: found "x"/);
  });
});
