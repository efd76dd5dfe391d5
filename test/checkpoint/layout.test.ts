// Which tensor is which weight: every variant of names, and each missing, misshapen or surplus tensor refused by name.
import * as fs from 'node:fs';
import * as path from 'node:path';
import {
  checkRouterBiases,
  type ModelLayout,
  openCheckpoint,
  parameterCounts,
  parseConfig,
  type ResolvedConfig,
  resolveLayout,
} from '../../lib/checkpoint';
import {
  configOf,
  fails,
  inMemory,
  type Json,
  REAL,
  removeFolders,
  type Spec,
  type TensorOptions,
  TINY,
  tensorsFor,
  writeModel,
} from './support';

afterAll(removeFolders);

const FP8: Json = { quantization_config: { quant_method: 'fp8', fmt: 'e4m3', weight_block_size: [128, 128] } };
const lay = (json: Json, options: TensorOptions = { bias: true }): ModelLayout => {
  const config = configOf(json, options.bias);
  return resolveLayout(inMemory(config, tensorsFor(config, options)));
};

describe('parameters of the published models', () => {
  // Totals and activated parameters in billions, as the models' makers and MODELS publish them.
  const rows: [string, number, number | null, number | null][] = [
    ['v2-lite', 15.706, 2.66, null],
    ['v2', 235.74, 21.38, null],
    ['v3', 671.03, 37.55, 11.6],
    ['moonlight', 15.96, 2.92, null],
    ['kimi-k2', 1026.4, 32.9, null],
    ['glm-4.7-flash', 29.94, 3.9, 0.64],
  ];
  test.each(rows)('%s: %d billion', (name, total, active, mtp) => {
    const json = REAL[name] as Json;
    const layout = lay(json, {
      bias: !name.startsWith('v2'),
      fp8: json.quantization_config !== undefined,
      mtp: mtp === null ? 0 : 1,
    });
    const counts = parameterCounts(layout);
    const digits = (value: number, like: number): number =>
      Number((value / 1e9).toPrecision(String(like).replace('.', '').length));
    expect(digits(counts.total, total)).toBe(total);
    if (active) expect(Math.abs(counts.active / 1e9 - active)).toBeLessThan(0.051);
    const { mtp: own, total: all, active: _, ...parts } = counts;
    expect(Object.values(parts).reduce((a, b) => a + b)).toBe(all);
    if (mtp === null) expect(own).toBe(0);
    else expect(Math.abs(own / 1e9 - mtp)).toBeLessThan(0.06);
    expect(layout.layers.filter(({ ffn }) => ffn.kind === 'moe').length).toBe(layout.config.moe_layers.length);
  });

  test('V3: shapes of weights and scales', () => {
    const layer = lay(REAL.v3 as Json, { bias: true, fp8: true }).layers[60];
    const { attention, ffn } = layer as ModelLayout['layers'][number];
    if (attention.kind !== 'lora' || ffn.kind !== 'moe' || ffn.experts.kind !== 'separate')
      throw new Error('wrong kind');
    const shapes = (source: { tensor: { shape: readonly number[] }; scale?: { shape: readonly number[] } }) => [
      source.tensor.shape,
      source.scale?.shape,
    ];
    expect(shapes(attention.qA)).toEqual([
      [1536, 7168],
      [12, 56],
    ]);
    expect(shapes(attention.qB)).toEqual([
      [24576, 1536],
      [192, 12],
    ]);
    expect(shapes(attention.kvA)).toEqual([
      [576, 7168],
      [5, 56],
    ]);
    expect(shapes(attention.kvB)).toEqual([
      [32768, 512],
      [256, 4],
    ]);
    expect(shapes(attention.o)).toEqual([
      [7168, 16384],
      [56, 128],
    ]);
    expect(shapes(ffn.experts.down[255] as never)).toEqual([
      [7168, 2048],
      [56, 16],
    ]);
    expect(shapes(ffn.router)).toEqual([[256, 7168], undefined]);
    expect(ffn.bias?.tensor.name).toBe('model.layers.60.mlp.gate.e_score_correction_bias');
  });
});

describe('variants of one model', () => {
  const good: [string, Json, TensorOptions, (layout: ModelLayout) => void][] = [
    ['float32', TINY, { bias: true, dtype: 'F32' }, (l) => expect(l.embed.tensor.dtype).toBe('F32')],
    [
      'fp8',
      { ...TINY, ...FP8 },
      { bias: true, fp8: true },
      (l) => expect(l.layers[0]?.attention.o.scale?.name).toBe('model.layers.0.self_attn.o_proj.weight_scale_inv'),
    ],
    [
      'fp8 with e8m0 scales',
      { ...TINY, ...FP8 },
      { bias: true, fp8: true, scaleDtype: 'F8_E8M0' },
      (l) => expect(l.layers[0]?.attention.o.scale?.dtype).toBe('F8_E8M0'),
    ],
    [
      'bf16 although config.json says fp8',
      { ...TINY, ...FP8 },
      { bias: true },
      (l) => expect(l.layers[0]?.attention.o.scale).toBeUndefined(),
    ],
    [
      'fused experts',
      TINY,
      { bias: true, fused: true },
      (l) => {
        const ffn = l.layers[1]?.ffn;
        if (ffn?.kind !== 'moe' || ffn.experts.kind !== 'fused') throw new Error('not fused');
        expect(ffn.experts.gateUp.tensor.shape).toEqual([4, 16, 16]);
        expect(ffn.experts.down.tensor.shape).toEqual([4, 16, 8]);
      },
    ],
    [
      'fused experts in fp8',
      { ...TINY, ...FP8 },
      { bias: true, fused: true, fp8: true },
      (l) => {
        const ffn = l.layers[1]?.ffn;
        if (ffn?.kind !== 'moe' || ffn.experts.kind !== 'fused') throw new Error('not fused');
        expect(ffn.experts.gateUp.scale?.shape).toEqual([4, 1, 1]);
      },
    ],
    [
      'no query rank',
      { ...TINY, q_lora_rank: null },
      { bias: true },
      (l) => expect(l.layers[0]?.attention.kind).toBe('direct'),
    ],
    [
      'no shared experts',
      { ...TINY, n_shared_experts: null },
      { bias: true },
      (l) => expect(l.layers[1]?.ffn).not.toHaveProperty('shared'),
    ],
    [
      'a prefix',
      TINY,
      { bias: true, prefix: 'language_model.' },
      (l) => expect(l.head.tensor.name).toBe('language_model.lm_head.weight'),
    ],
    [
      'an MTP layer',
      { ...TINY, num_nextn_predict_layers: 1 },
      { bias: true, mtp: 1 },
      (l) => expect(l.mtp.map((m) => [m.layer, m.block.ffn.kind])).toEqual([[2, 'moe']]),
    ],
    [
      'MTP layers announced and left out',
      { ...TINY, num_nextn_predict_layers: 1 },
      { bias: true },
      (l) => expect(l.mtp).toEqual([]),
    ],
    [
      'dense layers only',
      { ...TINY, n_routed_experts: null },
      { bias: false },
      (l) => expect(l.layers.map((x) => x.ffn.kind)).toEqual(['dense', 'dense']),
    ],
    [
      'a copy of the embedding as head of a tied model',
      { ...TINY, tie_word_embeddings: true },
      { bias: true },
      (l) => expect(l.head).toBe(l.embed),
    ],
    [
      'no bias',
      { ...TINY, topk_method: 'greedy', scoring_func: 'softmax' },
      { bias: false },
      (l) => expect(l.layers[1]?.ffn).not.toHaveProperty('bias'),
    ],
  ];
  test.each(good)('%s', (_, json, options, check) => {
    check(lay(json, options));
  });
});

describe('changed tensors', () => {
  const config = configOf({ ...TINY, ...FP8, num_nextn_predict_layers: 1 });
  const fp8 = tensorsFor(config, { bias: true, fp8: true, mtp: 1 });
  const resolve = (specs: Record<string, Spec>, with_: ResolvedConfig = config): ModelLayout =>
    resolveLayout(inMemory(with_, specs));

  test('each tensor is needed: without it, with another shape, or as F16 it is refused by its name', async () => {
    resolve(fp8);
    const copies = /embed_tokens|shared_head\.head/;
    let refused = 0;
    for (const [name, spec] of Object.entries(fp8)) {
      const quoted = new RegExp(`tensor "${name.replaceAll('.', '\\.')}": found`);
      const { [name]: _, ...rest } = fp8;
      if (copies.test(name) && name.startsWith('model.layers')) resolve(rest);
      else
        await fails(
          () => resolve(rest),
          'ERR_CHECKPOINT',
          new RegExp(`${quoted.source} no such tensor, expected one of shape`),
        );
      const longer = { ...spec, shape: [...spec.shape.slice(0, -1), (spec.shape.at(-1) as number) + 1] };
      await fails(
        () => resolve({ ...fp8, [name]: longer }),
        'ERR_CHECKPOINT',
        new RegExp(`${quoted.source} shape .* expected`),
      );
      await fails(() => resolve({ ...fp8, [name]: { ...spec, shape: [...spec.shape, 1] } }), 'ERR_CHECKPOINT', quoted);
      await fails(
        () => resolve({ ...fp8, [name]: { ...spec, dtype: 'F16' } }),
        'ERR_UNSUPPORTED_MODEL',
        new RegExp(`${quoted.source} dtype F16`),
      );
      await fails(
        () => resolve({ ...fp8, [name]: { ...spec, dtype: 'I32' } }),
        'ERR_CHECKPOINT',
        new RegExp(`${quoted.source} dtype I32`),
      );
      refused += 5;
    }
    console.log(`layout: ${Object.keys(fp8).length} tensors, ${refused} changes tried`);
  });

  const extra: Spec = { dtype: 'BF16', shape: [16] };
  const weight = 'model.layers.0.self_attn.o_proj.weight';
  const bad: [string, Record<string, Spec>, RegExp][] = [
    [
      'a bias',
      { 'model.layers.0.self_attn.o_proj.bias': extra },
      /tensor "model\.layers\.0\.self_attn\.o_proj\.bias": found in the files, expected only/,
    ],
    ['an indexer', { 'model.layers.0.self_attn.indexer.wq_b.weight': extra }, /indexer\.wq_b/],
    ['another MTP layer', { 'model.layers.3.enorm.weight': extra }, /model\.layers\.3\.enorm/],
    ['one expert more', { 'model.layers.1.mlp.experts.4.up_proj.weight': extra }, /experts\.4\.up_proj/],
    ['several', { x: extra, y: extra, z: extra }, /tensor "x" \(and 2 more\)/],
    [
      'fused experts beside separate ones',
      { 'model.layers.1.mlp.experts.gate_up_proj': { dtype: 'BF16', shape: [4, 16, 16] } },
      /experts\.down_proj": found no such tensor/,
    ],
    [
      'the scale of a weight that has none',
      { [weight]: { dtype: 'BF16', shape: [16, 16] } },
      /o_proj\.weight_scale_inv": found in the files/,
    ],
    [
      'a bf16 scale',
      { [`${weight}_scale_inv`]: { dtype: 'BF16', shape: [1, 1] } },
      /weight_scale_inv": found dtype BF16, expected F32 or F8_E8M0/,
    ],
    [
      'an fp8 embedding',
      { 'model.embed_tokens.weight': { dtype: 'F8_E4M3', shape: [32, 16] } },
      /embed_tokens\.weight": found dtype F8_E4M3, expected BF16 or F32/,
    ],
    ['a line break in a name', { 'x\ny': extra }, /tensor "x\\ny"/],
  ];
  test.each(bad)('%s', async (_, changes, text) => {
    await fails(() => resolve({ ...fp8, ...changes }), 'ERR_CHECKPOINT', text);
  });
  test('tables that old programs saved are ignored', () => {
    const inv: Spec = { dtype: 'F32', shape: [2] };
    expect(resolve({ ...fp8, 'model.layers.0.self_attn.rotary_emb.inv_freq': inv }).layers.length).toBe(2);
  });
  test('e5m2 is refused as unsupported', async () => {
    await fails(
      () => resolve({ ...fp8, [weight]: { dtype: 'F8_E5M2', shape: [16, 16] } }),
      'ERR_UNSUPPORTED_MODEL',
      /found dtype F8_E5M2/,
    );
  });
  test('fp8 weights without a quantization_config', async () => {
    const plain = configOf(TINY);
    const specs = tensorsFor(plain, { bias: true, fp8: true });
    await fails(() => resolve(specs, plain), 'ERR_CHECKPOINT', /found dtype F8_E4M3, expected a quantization_config/);
  });
  test('a tied model needs no head, an untied one does', async () => {
    const tied = configOf({ ...TINY, tie_word_embeddings: true });
    const { 'lm_head.weight': _, ...specs } = tensorsFor(tied, { bias: true });
    const layout = resolve(specs, tied);
    expect(layout.head).toBe(layout.embed);
    expect(parameterCounts(layout).head).toBe(0);
    await fails(() => resolve(specs, configOf(TINY)), 'ERR_CHECKPOINT', /"lm_head\.weight": found no such tensor/);
  });
  test('a bias in one MoE layer and not in the other', async () => {
    const two = configOf({ ...TINY, first_k_dense_replace: 0 });
    const { 'model.layers.1.mlp.gate.e_score_correction_bias': _, ...specs } = tensorsFor(two, { bias: true });
    await fails(
      () => resolve(specs, two),
      'ERR_CHECKPOINT',
      /model\.layers\.1\.mlp\.gate\.e_score_correction_bias": found no such/,
    );
  });
  test('parts of a wrapped model that see', async () => {
    const wrapped = parseConfig(
      JSON.stringify({ model_type: 'kimi_k25', text_config: { ...TINY, model_type: 'kimi_k2' } }),
    );
    const specs = { ...tensorsFor(wrapped, { bias: true, prefix: 'language_model.' }), 'vision_tower.x': extra };
    const settled = { ...configOf(TINY), wrapped: true };
    expect(resolve(specs, settled).layers.length).toBe(2);
    await fails(() => resolve(specs, configOf(TINY)), 'ERR_CHECKPOINT', /tensor "vision_tower\.x": found in the files/);
  });
});

test('biases that are not finite are refused', async () => {
  const dir = writeModel({ ...TINY, num_nextn_predict_layers: 1 }, { bias: true, mtp: 1 });
  const name = 'model.layers.2.mlp.gate.e_score_correction_bias';
  for (const [value, good] of [
    [3.4e38, true],
    [Number.NaN, false],
    [Number.POSITIVE_INFINITY, false],
    [-1, true],
  ] as const) {
    const checkpoint = await openCheckpoint(dir);
    const layout = resolveLayout(checkpoint);
    const data = Buffer.alloc(4);
    data.writeFloatLE(value);
    const fd = fs.openSync(path.join(dir, 'model.safetensors'), 'r+');
    fs.writeSync(fd, data, 0, 4, (checkpoint.tensors.get(name)?.offset as number) + 12);
    fs.closeSync(fd);
    if (good) await checkRouterBiases(layout);
    else
      await fails(
        () => checkRouterBiases(layout),
        'ERR_CHECKPOINT',
        /tensor "model\.layers\.2.*": found a value that is not finite at 3/,
      );
    await checkpoint.close();
  }
});
