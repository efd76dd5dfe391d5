// What every operation refuses: one thing at a time is changed in a valid call.
import { type Device, DTYPE_BYTES, type DType, openDevice, type Verbs } from '../../lib/native';
import { type Argument, CALLS, isTensor, specsOf } from './operations';

let device: Device;
beforeAll(() => {
  device = openDevice('cpu', { threads: 1 });
});
afterAll(() => device.dispose());

/** What workspaceBytes says of a call: undefined if it is accepted, the message if it is refused. */
function refusal(verb: keyof Verbs, call: Record<string, unknown>): string | undefined {
  try {
    device.workspaceBytes(verb, call as never);
    return undefined;
  } catch (error) {
    expect(error).toMatchObject({ name: 'MlaError', code: 'ERR_INVALID_ARG' });
    return (error as Error).message;
  }
}

const VERBS = Object.keys(CALLS) as (keyof Verbs)[];
const OPTIONAL: Partial<Record<keyof Verbs, string[]>> = {
  latentCompress: ['q_norm', 'fp8_activations'],
  gemm: ['residual', 'fp8_activations'],
  swiglu: ['fp8_activations'],
  moeRoute: ['bias'],
  moeGateUp: ['fp8_activations'],
  moeDown: ['residual', 'fp8_activations'],
  sample: ['counts', 'mask', 'logprobs'],
  copy: ['src_offset', 'src_stride', 'dst_offset'],
};

/** Sizes that one argument alone decides: "argument[dimension]" may grow by one. Everything else must be refused. */
const FREE: Partial<Record<keyof Verbs, string[]>> = {
  gatherRows: ['table[0]'],
  latentCompress: ['cos_sin[0]', 'cache[0]'],
  rope: ['q[1]', 'q[2]', 'cos_sin[0]', 'cos_sin[1]'],
  queryAbsorb: ['cos_sin[0]'],
  decodePlan: ['plan[0]'],
  mlaDecode: ['cache[0]', 'block_table[1]', 'plan[0]', 'out[2]'],
  mhaDecode: ['cache[0]', 'block_table[1]'],
  loadLatent: ['cache[0]', 'block_table[1]'],
  advance: ['block_table[1]', 'stop_ids[1]'],
  copyPages: ['pairs[0]', 'cache[0]', 'cache[1]', 'cache[3]'],
  copy: ['src[0]', 'src[1]', 'dst[0]', 'dst[1]'],
  logProbs: ['head[0]'],
  fillRandom: ['out[0]', 'out[1]'],
  checksum: ['x[0]', 'x[1]', 'sums[0]'],
};

/** Element types an argument may have when it is changed alone; its own is always among them. */
const TYPES: Partial<Record<keyof Verbs, Record<string, DType[]>>> = {
  gatherRows: { table: ['f32', 'bf16'], out: ['f32', 'bf16'] },
  rmsNorm: { weight: ['f32', 'bf16'] },
  addRmsNorm: { weight: ['f32', 'bf16'] },
  latentCompress: {
    norm: ['f32', 'bf16'],
    q_norm: ['f32', 'bf16'],
    latent_norm: ['f32', 'bf16'],
    cache: ['f32', 'bf16'],
  },
  rope: { q: ['f32', 'bf16'] },
  queryAbsorb: { w_uk: ['f32', 'bf16'] },
  mlaDecode: { cache: ['f32', 'bf16'] },
  valueExpand: { w_uv: ['f32', 'bf16'] },
  loadLatent: { cache: ['f32', 'bf16'] },
  mergeAttention: { a: ['f32', 'bf16'], b: ['f32', 'bf16'], out: ['f32', 'bf16'] },
  gemm: { y: ['f32', 'bf16'] },
  moeRoute: { norm: ['f32', 'bf16'], gate: ['f32', 'bf16'] },
  logProbs: { x: ['f32', 'bf16'], head: ['f32', 'bf16'] },
  copyPages: { cache: ['f32', 'bf16', 'f8e4m3'] },
  copy: { src: ['f32', 'i32', 'u32', 'i64'], dst: ['bf16', 'f16', 'f32', 'i32', 'u32', 'i64'] },
  cast: { x: ['f32', 'bf16', 'f16'], out: ['f32', 'bf16', 'f16'] },
  quantize: { x: ['f32', 'bf16'] },
  dequantize: { scale: ['f32', 'f8e8m0'], out: ['f32', 'bf16'] },
  fillRandom: { out: ['f32', 'bf16'] },
  checksum: { x: ['bf16', 'f16', 'f32', 'f8e4m3', 'f8e8m0', 'i32', 'i64', 'u32', 'u8'] },
};

test('the table has every operation', () => {
  expect(VERBS).toHaveLength(28);
});

test.each(VERBS)('%s: the call of the table is accepted', (verb) => {
  expect(refusal(verb, specsOf(CALLS[verb]))).toBeUndefined();
});

test.each(VERBS)('%s: each argument is needed, unless it is optional', (verb) => {
  for (const name of Object.keys(CALLS[verb])) {
    const call = specsOf(CALLS[verb]);
    delete call[name];
    const message = refusal(verb, call);
    if (OPTIONAL[verb]?.includes(name)) expect([name, message]).toEqual([name, undefined]);
    else expect(message).toMatch(new RegExp(`^${verb}: .*(${name}|together)`));
  }
});

test.each(VERBS)('%s: each dimension is compared', (verb) => {
  const free: string[] = [];
  for (const [name, argument] of Object.entries(CALLS[verb])) {
    if (!isTensor(argument)) continue;
    for (let i = 0; i + 1 < argument.length; i++) {
      const changed = [...argument] as [DType, ...number[]];
      changed[i + 1] = (changed[i + 1] as number) + 1;
      const message = refusal(verb, specsOf({ ...CALLS[verb], [name]: changed }));
      if (message === undefined) free.push(`${name}[${i}]`);
      else expect(message).toMatch(new RegExp(`^${verb}: .*; got |^${verb}: `));
    }
  }
  expect(free).toEqual(FREE[verb] ?? []);
});

test.each(VERBS)('%s: rank and element type are compared', (verb) => {
  for (const [name, argument] of Object.entries(CALLS[verb])) {
    if (!isTensor(argument)) continue;
    const [dtype, ...shape] = argument;
    const anyShape = ['copy', 'cast', 'fillRandom'].includes(verb) || (name === 'x' && verb === 'checksum');
    if (!anyShape && shape.length < 4)
      expect(refusal(verb, specsOf({ ...CALLS[verb], [name]: [dtype, ...shape, 1] }))).toMatch(`${verb}: ${name} must`);
    const accepted = (Object.keys(DTYPE_BYTES) as DType[]).filter(
      (other) => refusal(verb, specsOf({ ...CALLS[verb], [name]: [other, ...shape] as Argument })) === undefined,
    );
    expect([name, ...accepted.sort()]).toEqual([name, ...(TYPES[verb]?.[name] ?? [dtype]).sort()]);
  }
});

test.each(VERBS)('%s: numbers must be numbers of the right kind', (verb) => {
  for (const [name, argument] of Object.entries(CALLS[verb])) {
    if (isTensor(argument)) continue;
    const integer = typeof argument === 'number' && !['eps', 'latent_eps', 'scale', 'mean', 'stddev'].includes(name);
    const wrong: unknown[] =
      typeof argument === 'boolean'
        ? [0, 1, 'true', null, {}]
        : [NaN, Infinity, -Infinity, '1', null, {}, true, 1n, [1], () => 1];
    if (integer) wrong.push(0.5, 2 ** 53, -(2 ** 53));
    else if (typeof argument === 'number') wrong.push(1e39);
    for (const value of wrong)
      expect(refusal(verb, { ...specsOf(CALLS[verb]), [name]: value })).toMatch(`${verb}: ${name} must be `);
  }
});

test.each(VERBS)('%s: an unknown argument is named', (verb) => {
  expect(refusal(verb, { ...specsOf(CALLS[verb]), colour: 1 })).toBe(`${verb} has no argument "colour".`);
});

test('no rows, no sequences and no pairs are allowed', () => {
  const none: [keyof Verbs, Record<string, Argument>][] = [
    ['gatherRows', { ids: ['i32', 0], out: ['f32', 0, 32] }],
    ['gemm', { x: ['bf16', 0, 32], residual: ['bf16', 0, 24], y: ['bf16', 0, 24] }],
    ['moeGateUp', { x: ['f32', 0, 32], order: ['i32', 0], h: ['f32', 0, 16] }],
    ['copyPages', { pairs: ['i32', 0, 2] }],
    ['fillRandom', { out: ['f32', 0] }],
    ['decodePlan', { q_start: ['i32', 1], lengths: ['i32', 0] }],
  ];
  for (const [verb, change] of none)
    expect([verb, refusal(verb, specsOf({ ...CALLS[verb], ...change }))]).toEqual([verb, undefined]);
});

test.each<[keyof Verbs, Record<string, Argument>, RegExp]>([
  [
    'gemm',
    { w: ['f32', 7, 31] },
    /^gemm: w must be \[N, 32\] \(f32, bf16 or f8e4m3\) because x is bf16 \[3, 32\]; got f32 \[7, 31\]\.$/,
  ],
  [
    'gemm',
    { y: ['f16', 3, 24] },
    /^gemm: y must be \[3, 24\] \(f32 or bf16\) because x is .* and w is .*; got f16 \[3, 24\]\.$/,
  ],
  ['gemm', { w: ['bf16', 24, 32] }, /w_scale must be left out because w is bf16/],
  ['gemm', { x: ['bf16', 3, 0], w: ['f8e4m3', 24, 0] }, /^gemm: x must be/],
  ['rmsNorm', { eps: -1 }, /eps must be a finite number, 0 or more; got -1/],
  ['swiglu', { w: ['f8e4m3', 24, 32], out: ['f32', 3, 12] }, /multiple of 8; got 12/],
  ['moeRoute', { top_k: 5 }, /top_k must be from 1 to 4; got 5/],
  ['moeRoute', { top_k: 0 }, /top_k must be from 1/],
  ['moeRoute', { n_group: 3 }, /n_group must divide the 4 experts; got 3/],
  ['moeRoute', { topk_group: 3 }, /topk_group must be from 1 to 2/],
  ['moeRoute', { n_group: 4, top_k: 2 }, /top_k must be at most 1/],
  ['moeRoute', { n_group: 4, topk_group: 2 }, /group_top2 needs groups of at least 2/],
  ['moeRoute', { expert_begin: 5 }, /expert_begin must be from 0 to 4/],
  ['moeRoute', { expert_begin: 3, expert_end: 2 }, /expert_end must be from 3 to 4/],
  ['moeRoute', { shared: -1 }, /shared must be from 0/],
  ['moeRoute', { gate: ['f32', 2000, 32], bias: ['f32', 2000] }, /must be from 1 to 1024; got 2000/],
  ['moeGateUp', { order: ['i32', 10], h: ['f32', 10, 16] }, /multiple of 3 entries/],
  ['sample', { vocab: 41 }, /vocab must be from 1 to 40/],
  ['sample', { vocab: 0 }, /vocab must be from 1/],
  ['logProbs', { top_ids: ['i32', 3, 50], top_logprobs: ['f32', 3, 50] }, /from 1 to 40; got 50/],
  ['decodePlan', { heads: 0 }, /heads must be from 1/],
  ['mlaDecode', { out: ['f32', 3, 2, 21] }, /wider than a cache row/],
  ['mhaDecode', { cache: ['f32', 2, 64, 2, 20] }, /no value behind a key of 20/],
  ['rope', { cos_sin: ['f32', 64, 7, 2] }, /more channels than a head of q/],
  [
    'mergeAttention',
    { lse_a: ['f32', 3, 3], lse_b: ['f32', 3, 3], lse: ['f32', 3, 3] },
    /not a multiple of the 3 heads/,
  ],
  ['copy', { blocks: -1 }, /blocks must be from 0/],
  ['copy', { block_bytes: 65, src_stride: 0, dst_stride: 65 }, /end beyond src/],
  ['copy', { src_offset: 1 }, /end beyond src/],
  ['copy', { dst_offset: 17 }, /end beyond dst/],
  ['copy', { blocks: Number.MAX_SAFE_INTEGER, src_stride: Number.MAX_SAFE_INTEGER }, /end beyond src/],
  ['copy', { dst_stride: 15 }, /dst_stride must be at least block_bytes/],
  ['cast', { out: ['bf16', 15] }, /as many elements as x/],
  ['fillRandom', { stddev: -1 }, /stddev must be/],
])('%s refuses %j', (verb, change, expected) => {
  expect(refusal(verb, specsOf({ ...CALLS[verb], ...change }))).toMatch(expected);
});

test('written memory may not overlap other arguments, except where the operation says so', async () => {
  const stream = device.stream();
  stream.useWorkspace(await device.allocate('u8', [1 << 20]));
  const block = await device.allocate('f32', [256]);
  const x = block.view('f32', [4, 8]);
  const weight = await device.allocate('f32', [8]);
  const out = await device.allocate('f32', [4, 8]);
  stream.rmsNorm({ x, weight, out, eps: 0 });
  expect(() => stream.rmsNorm({ x, weight, out: x, eps: 0 })).toThrow(
    'out is written and must not overlap the memory of x',
  );
  const shifted = block.view('f32', [4, 8], 4);
  expect(() => stream.rmsNorm({ x, weight, out: shifted, eps: 0 })).toThrow('must not overlap');
  stream.rmsNorm({ x, weight, out: block.view('f32', [4, 8], 128), eps: 0 });
  const w = await device.allocate('f32', [8, 8]);
  stream.gemm({ x, w, residual: out, y: out });
  const rest = await device.allocate('f32', [65]);
  expect(() => stream.gemm({ x, w, residual: rest.view('f32', [4, 8]), y: rest.view('f32', [4, 8], 4) })).toThrow(
    'must not overlap',
  );
  expect(() => stream.copy({ src: block, dst: block, blocks: 1, block_bytes: 8, dst_offset: 4 })).toThrow(
    'must not overlap',
  );
  stream.copy({ src: block, dst: block, blocks: 1, block_bytes: 8, dst_offset: 8 });
  await stream.record().done;
});

test('a plan that is too short for the backend is refused before it is used', async () => {
  const stream = device.stream();
  const [q_start, lengths, plan] = await Promise.all([
    device.allocate('i32', [101]),
    device.allocate('i32', [100]),
    device.allocate('i32', [device.decodePlanInts(100, 16) - 1]),
  ]);
  expect(() => stream.decodePlan({ q_start, lengths, plan, heads: 16 })).toThrow('plan must have at least');
});
