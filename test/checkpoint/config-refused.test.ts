// What a config.json is refused for: values that are well formed but not understood (ERR_UNSUPPORTED_MODEL), broken
// values (ERR_CONFIG) and broken texts, each by name.
import { type ModelConfig, parseConfig } from '../../lib/checkpoint';
import { fails, type Json, TINY } from './support';

const parse = (json: Json): ModelConfig => parseConfig(JSON.stringify(json));

describe('values that are not understood', () => {
  const yarn = { type: 'yarn', factor: 40, original_max_position_embeddings: 4096 };
  const fp8 = { quant_method: 'fp8', weight_block_size: [128, 128] };
  const bad: [string, Json, RegExp][] = [
    [
      'another model',
      { model_type: 'llama' },
      /model_type: found "llama", supported: deepseek_v2, deepseek_v3, kimi_k2, glm4_moe_lite/,
    ],
    ['V3.2', { model_type: 'deepseek_v32' }, /model_type: found "deepseek_v32".*indexer.*index_topk/],
    ['an indexer', { index_topk: 2048 }, /index_topk: found 2048, supported: absent/],
    ['another wrapper', { model_type: 'mistral3', text_config: TINY }, /model_type: found "mistral3"/],
    [
      'an unknown rope type',
      { rope_scaling: { ...yarn, type: 'linear' } },
      /rope_scaling\.type: found "linear", supported: "default" and "yarn"/,
    ],
    ['longrope', { rope_parameters: { rope_type: 'longrope' } }, /rope_parameters\.rope_type: found "longrope"/],
    [
      'an unknown rope field',
      { rope_scaling: { ...yarn, apply_scale: false } },
      /rope_scaling\.apply_scale: found false/,
    ],
    ['a factor of the default type', { rope_scaling: { type: 'default', factor: 2 } }, /rope_scaling\.factor/],
    [
      'another attention_factor',
      { rope_scaling: { ...yarn, mscale: 1, mscale_all_dim: 1, attention_factor: 1.1 } },
      /attention_factor: found 1\.1/,
    ],
    ['truncate false', { rope_scaling: { ...yarn, truncate: false } }, /truncate: found false/],
    ['mscale_all_dim alone', { rope_scaling: { ...yarn, mscale_all_dim: 0.5 } }, /mscale/],
    ['mscale 0 and mscale_all_dim 0', { rope_scaling: { ...yarn, mscale: 0, mscale_all_dim: 0 } }, /mscale: found 0/],
    ['half rotary layout', { rope_interleave: false }, /rope_interleave: found false, supported: absent or true/],
    ['a partial rotary factor', { partial_rotary_factor: 0.5 }, /partial_rotary_factor: found 0\.5/],
    ['attention_bias', { attention_bias: true }, /attention_bias: found true, supported: absent or false/],
    ['mlp_bias', { mlp_bias: true }, /mlp_bias/],
    ['another activation', { hidden_act: 'gelu' }, /hidden_act: found "gelu", supported: absent or "silu"/],
    ['llama_4_scaling', { llama_4_scaling: { beta: 0.1 } }, /llama_4_scaling: found an object with "beta"/],
    ['a sliding window', { sliding_window: 128 }, /sliding_window: found 128/],
    ['linear attention layers', { layer_types: ['linear_attention', 'full_attention'] }, /layer_types/],
    ['swiglu_limit', { swiglu_limit: 10.0 }, /swiglu_limit/],
    ['no MLA', { use_mla: false }, /use_mla: found false/],
    ['an MLX quantization', { quantization: { bits: 4 } }, /quantization: found an object/],
    [
      'int4',
      { quantization_config: { quant_method: 'compressed-tensors' } },
      /quantization_config\.quant_method: found "compressed-tensors"/,
    ],
    ['awq', { quantization_config: { quant_method: 'awq', bits: 4 } }, /found "awq"/],
    ['e5m2', { quantization_config: { ...fp8, fmt: 'e5m2' } }, /quantization_config\.fmt: found "e5m2"/],
    [
      'per-tensor fp8',
      { quantization_config: { quant_method: 'fp8' } },
      /weight_block_size: found nothing, supported: \[128, 128\]/,
    ],
    [
      'other blocks',
      { quantization_config: { ...fp8, weight_block_size: [64, 128] } },
      /weight_block_size: found \[64, 128\]/,
    ],
    [
      'static activations',
      { quantization_config: { ...fp8, activation_scheme: 'static' } },
      /activation_scheme: found "static"/,
    ],
    ['another scale format', { quantization_config: { ...fp8, scale_fmt: 'e4m3' } }, /scale_fmt/],
    [
      'sqrtsoftplus',
      { scoring_func: 'sqrtsoftplus' },
      /scoring_func: found "sqrtsoftplus", supported: "softmax" and "sigmoid"/,
    ],
    ['another topk_method', { topk_method: 'gready' }, /topk_method: found "gready"/],
    [
      'norm_topk_prob in V2 with a scale',
      { model_type: 'deepseek_v2', norm_topk_prob: true, routed_scaling_factor: 16 },
      /norm_topk_prob: found true/,
    ],
    [
      'expert width 1407',
      { moe_intermediate_size: 1407 },
      /moe_intermediate_size: found 1407, supported: multiples of 8/,
    ],
    ['dense width 10', { intermediate_size: 10 }, /intermediate_size: found 10/],
    ['hidden size 12', { hidden_size: 12 }, /hidden_size: found 12/],
    ['an odd rotary dim', { qk_rope_head_dim: 5 }, /qk_rope_head_dim: found 5, supported: multiples of 2/],
    ['latent rank 96', { kv_lora_rank: 96 }, /kv_lora_rank: found 96, supported: multiples of 64 up to 512/],
    ['latent rank 576', { kv_lora_rank: 576 }, /kv_lora_rank: found 576/],
    ['query rank 12', { q_lora_rank: 12 }, /q_lora_rank: found 12/],
    ['value dim 12', { v_head_dim: 12 }, /v_head_dim: found 12/],
    ['int8 dtype', { torch_dtype: 'int8' }, /torch_dtype: found "int8"/],
  ];
  test.each(bad)('%s', async (_, changes, text) => {
    await fails(() => parse({ ...TINY, ...changes }), 'ERR_UNSUPPORTED_MODEL', text);
  });
});

describe('broken values', () => {
  const yarn = { type: 'yarn', factor: 40, original_max_position_embeddings: 4096 };
  const bad: [string, Json, RegExp][] = [
    ...[
      'vocab_size',
      'hidden_size',
      'num_hidden_layers',
      'num_attention_heads',
      'kv_lora_rank',
      'qk_nope_head_dim',
      'qk_rope_head_dim',
      'v_head_dim',
      'intermediate_size',
      'moe_intermediate_size',
    ].flatMap((name): [string, Json, RegExp][] => [
      [`no ${name}`, { [name]: undefined }, new RegExp(`${name}: found nothing, expected an integer from 1 to`)],
      [`${name} null`, { [name]: null }, new RegExp(`${name}: found (null|nothing)`)],
      [`${name} 0`, { [name]: 0 }, new RegExp(`${name}: found 0`)],
      [`${name} negative`, { [name]: -8 }, new RegExp(`${name}: found -8`)],
      [`${name} fractional`, { [name]: 8.5 }, new RegExp(`${name}: found 8.5`)],
      [`${name} a string`, { [name]: '8' }, new RegExp(`${name}: found "8"`)],
      [`${name} huge`, { [name]: 1e9 }, new RegExp(`${name}: found 1000000000`)],
      [`${name} an array`, { [name]: [8] }, new RegExp(`${name}: found \\[8\\]`)],
      [`${name} true`, { [name]: true }, new RegExp(`${name}: found true`)],
    ]),
    ['no model_type', { model_type: undefined }, /model_type: found nothing, expected one of/],
    ['a numeric model_type', { model_type: 3 }, /model_type: found 3, expected a string/],
    ['rms_norm_eps 0', { rms_norm_eps: 0 }, /rms_norm_eps: found 0, expected a number above 0/],
    ['rms_norm_eps a string', { rms_norm_eps: '1e-6' }, /rms_norm_eps: found "1e-6"/],
    ['tie_word_embeddings 1', { tie_word_embeddings: 1 }, /tie_word_embeddings: found 1, expected true or false/],
    ['norm_topk_prob a string', { norm_topk_prob: 'true' }, /norm_topk_prob/],
    ['routed_scaling_factor 0', { routed_scaling_factor: 0 }, /routed_scaling_factor: found 0/],
    ['routed_scaling_factor negative', { routed_scaling_factor: -1 }, /routed_scaling_factor: found -1/],
    [
      'more experts per token than experts',
      { num_experts_per_tok: 5 },
      /num_experts_per_tok: found 5, expected an integer from 1 to 4/,
    ],
    [
      'more than the groups hold',
      { num_experts_per_tok: 3 },
      /num_experts_per_tok: found 3, expected at most the 2 experts/,
    ],
    [
      'no experts per token, Kimi',
      { model_type: 'kimi_k2', num_experts_per_tok: undefined },
      /num_experts_per_tok: found nothing/,
    ],
    ['n_group not a divisor', { n_group: 3 }, /n_group: found 3, expected a divisor of n_routed_experts, 4/],
    ['topk_group above n_group', { topk_group: 3 }, /topk_group: found 3, expected an integer from 1 to 2/],
    ['n_group 0', { n_group: 0 }, /n_group: found 0/],
    [
      'group_limited_greedy without groups',
      { model_type: 'deepseek_v2', topk_method: 'group_limited_greedy', n_group: null },
      /n_group: found null, expected an integer, because/,
    ],
    [
      'first_k_dense_replace above the layers',
      { first_k_dense_replace: 3 },
      /first_k_dense_replace: found 3, expected an integer from 0 to 2/,
    ],
    ['moe_layer_freq 0', { moe_layer_freq: 0 }, /moe_layer_freq: found 0/],
    [
      'a short moe_layer_freq',
      { moe_layer_freq: [1] },
      /moe_layer_freq: found \[1\], expected an integer, or 2 times 0 or 1/,
    ],
    [
      'a short mlp_layer_types',
      { mlp_layer_types: ['sparse'] },
      /mlp_layer_types: found \["sparse"\], expected 2 times/,
    ],
    ['an unknown layer type', { mlp_layer_types: ['dense', 'moe'] }, /mlp_layer_types/],
    [
      'two answers to which layers have experts',
      { mlp_layer_types: ['sparse', 'sparse'] },
      /first_k_dense_replace: found 1, expected 0/,
    ],
    [
      'two numbers of experts',
      { num_local_experts: 8 },
      /num_local_experts: found 8, expected the same as n_routed_experts, 4/,
    ],
    [
      'qk_head_dim of another sum',
      { qk_head_dim: 11 },
      /qk_head_dim: found 11, expected qk_nope_head_dim \+ qk_rope_head_dim, 12/,
    ],
    ['rope_theta 0', { rope_theta: 0 }, /rope_theta: found 0/],
    ['rope_theta 1', { rope_theta: 1 }, /rope_theta: found 1/],
    ['rope_scaling an array', { rope_scaling: [] }, /rope_scaling: found \[\], expected an object/],
    ['YaRN without factor', { rope_scaling: { ...yarn, factor: undefined } }, /rope_scaling\.factor: found nothing/],
    [
      'YaRN factor below 1',
      { rope_scaling: { ...yarn, factor: 0.5 } },
      /rope_scaling\.factor: found 0.5, expected a number of at least 1/,
    ],
    [
      'YaRN without original length',
      { rope_scaling: { ...yarn, original_max_position_embeddings: null } },
      /original_max_position_embeddings: found null/,
    ],
    [
      'beta_fast below beta_slow',
      { rope_scaling: { ...yarn, beta_fast: 1, beta_slow: 32 } },
      /beta_fast: found 1, expected at least beta_slow, 32/,
    ],
    ['beta_slow 0', { rope_scaling: { ...yarn, beta_slow: 0 } }, /beta_slow: found 0/],
    [
      'two rope types',
      { rope_scaling: { ...yarn, rope_type: 'default' } },
      /type: found "yarn", expected the same as rope_type/,
    ],
    [
      'two thetas',
      { rope_parameters: { rope_type: 'default', rope_theta: 5 } },
      /rope_parameters\.rope_theta: found 5, expected the same as the rope_theta beside it, 10000/,
    ],
    [
      'two ropes',
      { rope_scaling: yarn, rope_parameters: { rope_type: 'default' } },
      /rope_scaling and rope_parameters disagree/,
    ],
    [
      'eos beyond the vocabulary',
      { eos_token_id: 32 },
      /eos_token_id: found 32, expected token ids below vocab_size, 32/,
    ],
    ['eos negative', { eos_token_id: [1, -1] }, /eos_token_id: found \[1, -1\]/],
    ['eos a string', { eos_token_id: '</s>' }, /eos_token_id/],
    [
      'eos absent where families differ',
      { model_type: 'glm4_moe_lite', eos_token_id: undefined },
      /eos_token_id: found nothing/,
    ],
    ['bos beyond the vocabulary', { bos_token_id: 32 }, /bos_token_id: found 32/],
    ['17 MTP layers', { num_nextn_predict_layers: 17 }, /num_nextn_predict_layers: found 17/],
    [
      'quantization_config a string',
      { quantization_config: 'fp8' },
      /quantization_config: found "fp8", expected an object/,
    ],
    ['quantization_config without method', { quantization_config: {} }, /quant_method: found nothing/],
    ['text_config missing', { model_type: 'kimi_k25' }, /text_config: found nothing/],
  ];
  test.each(bad)('%s', async (_, changes, text) => {
    await fails(() => parse({ ...TINY, ...changes }), 'ERR_CONFIG', text);
  });

  const texts: [string, string, RegExp][] = [
    ['empty', '', /broken JSON at byte 0: found the end of the text, expected a value/],
    ['an array', '[]', /found \[\], expected an object/],
    ['a string', '"x"', /found "x", expected an object/],
    ['NaN', JSON.stringify(TINY).replace('"hidden_size":16', '"hidden_size":NaN'), /found "N", expected a value/],
    ['Infinity', '{"a":Infinity}', /found "I"/],
    ['1e400', '{"a":1e400}', /too large/],
    ['2^53 + 1', '{"a":9007199254740993}', /too large/],
    ['a key twice', JSON.stringify(TINY).replace('{', '{"hidden_size":16,'), /found the key "hidden_size" twice/],
    ['too deep', `{"a":${'['.repeat(70)}${']'.repeat(70)}}`, /nesting deeper than 64/],
    ['much too deep', '['.repeat(1_000_000), /nesting deeper than 64/],
    ['a trailing comma', '{"a":1,}', /expected a key in quotes/],
    ['a comment', '{} // x', /expected the end of the text/],
    ['not UTF-8', Buffer.from([0x7b, 0xff, 0x7d]).toString('latin1'), /found byte 0xc3/],
  ];
  test.each(texts)('text: %s', async (_, text, message) => {
    await fails(() => parseConfig(text, 'here'), 'ERR_CONFIG', message);
  });
  test('bytes that are not UTF-8, and too many of them', async () => {
    await fails(() => parseConfig(Buffer.from([0x7b, 0xff, 0x7d])), 'ERR_CONFIG', /not UTF-8/);
    await fails(() => parseConfig(Buffer.alloc((4 << 20) + 1, ' ')), 'ERR_CONFIG', /expected at most 4194304/);
    await fails(() => parseConfig(7 as never), 'ERR_INVALID_ARG', /json: expected text or bytes/);
  });
  test('keys named like parts of an object are only keys', () => {
    const text = JSON.stringify(TINY).replace(
      '{',
      '{"__proto__":{"attention_bias":true},"constructor":1,"toString":2,',
    );
    expect(parseConfig(text)).toEqual(parse(TINY));
    expect(({} as Json).attention_bias).toBeUndefined();
  });
});
