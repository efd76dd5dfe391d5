// gpu/resident-step.test.ts - a decode step of one row, as one graph, against its operations one by one: on Hopper one
// kernel does it (csrc/cuda/resident). Guard bytes lie around all tensors, NaN stands in what no sequence owns; and sizes
// are the smallest ones, so that the sanitizers' tools see that kernel too (recording.ts). Whole models: resident.test.ts.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { compareClose } from './closeness';
import { closeDevices, compareTogether, Inputs, openTested, type Step, TESTED_DEVICE } from './harness';

const hopper = TESTED_DEVICE === 'cuda:0' && openTested().info().path === 'sm_90a';

after(closeDevices);

type Weight = 'bf16' | 'f8e4m3';
type Cache = 'bf16' | 'fp8';

/** Of `dense` and of a row's chosen experts (4 x 320) each multiprocessor has at least 8 columns, or there is no kernel. */
const D = { d: 256, heads: 2, n: 128, r: 64, c: 512, v: 128, dense: 1280, inner: 320, vocab: 1600 };
const ROUTER = { experts: 8, top_k: 4, shared: 2 };
/** Of the scores: few keys outweigh all others, or their mean would hardly count. */
const SCALE = 0.1;

const blocks = (size: number) => Math.ceil(size / 128);

/** The newest token of a sequence through a dense layer, two with experts, and the head. */
function stepOf(make: Inputs, weight: Weight, cacheType: Cache, length: number) {
  const { d, heads, n, r, c, v, dense, inner, vocab } = D;
  const { experts, top_k, shared } = ROUTER;
  const columns = top_k + shared;
  const [E, eps] = [experts + shared, 1e-6];
  const weights = (shape: readonly number[], scaleShape: readonly number[]) => {
    const size = 1 / Math.sqrt(shape.at(-1) as number);
    if (weight === 'bf16') return { w: make.normal(weight, shape, size) };
    return { w: make.normal(weight, shape, 50), w_scale: make.normal('f32', scaleShape, size / 200, size / 50) };
  };
  const norm = (width: number) => make.normal('bf16', [width], 0.2, 1);

  const paged = make.pagedCache(cacheType, [length], c, r);
  const q_start = make.values('i32', [2], [0, 1]);
  const places = {
    positions: make.values('i32', [1], [length - 1]),
    cos_sin: make.cosSin(length, r),
  };
  const x = make.inout(make.normal('bf16', [1, d]));
  const q = make.output('bf16', [1, heads * (n + r)]);
  const absorbed = make.output('bf16', [1, heads, c + r]);
  const decode = {
    q: absorbed,
    q_start,
    block_table: paged.blockTable,
    lengths: paged.lengths,
    plan: make.plan(heads, q_start, paged.lengths),
    out: make.output('bf16', [1, heads, c]),
    lse: make.output('f32', [1, heads]),
    scale: SCALE,
  };
  const slots = make.values('i32', [1], [paged.slot(0, length - 1)]);
  const o = make.output('bf16', [1, heads * v]);
  const normed = make.output('bf16', [1, d]);
  const hidden = make.output('bf16', [1, dense]);
  const routed = {
    ids: make.output('i32', [1, columns]),
    weights: make.output('f32', [1, columns]),
    offsets: make.output('i32', [E + 1]),
    order: make.output('i32', [columns]),
    slots: make.output('i32', [1, columns]),
  };
  const h = make.output('bf16', [columns, inner]);
  const logits = make.output('f32', [1, vocab]);

  const attention = (): Step[] => {
    const cache = make.inout(paged.cache);
    const { w, w_scale } = weights([heads * (n + r) + c + r, d], [blocks(heads * (n + r) + c + r), blocks(d)]);
    const compress = { norm: norm(d), weight: w, weight_scale: w_scale, latent_norm: norm(c), eps, latent_eps: eps };
    const w_uk = make.normal('bf16', [heads, n, c], 1 / Math.sqrt(n));
    const w_uv = make.normal('bf16', [heads, v, c], 1 / Math.sqrt(c));
    return [
      { verb: 'latentCompress', args: { ...compress, ...places, x, slots, q, cache } },
      { verb: 'queryAbsorb', args: { ...places, q: q.reshaped([1, heads, n + r]), w_uk, out: absorbed } },
      { verb: 'mlaDecode', args: { ...decode, cache } },
      { verb: 'valueExpand', args: { u: decode.out, w_uv, out: o } },
      { verb: 'gemm', args: { ...weights([d, heads * v], [blocks(d), blocks(heads * v)]), x: o, residual: x, y: x } },
    ];
  };
  const denseNetwork = (): Step[] => [
    { verb: 'rmsNorm', args: { x, weight: norm(d), out: normed, eps } },
    { verb: 'swiglu', args: { ...weights([2 * dense, d], [2, blocks(dense), blocks(d)]), x: normed, out: hidden } },
    { verb: 'gemm', args: { ...weights([d, dense], [blocks(d), blocks(dense)]), x: hidden, residual: x, y: x } },
  ];
  const expertNetwork = (): Step[] => {
    const { ids: _, ...grouped } = routed;
    const { offsets, order } = grouped;
    const gate = make.normal('bf16', [experts, d], 1 / Math.sqrt(d));
    const choice = { top_k, shared, n_group: 1, topk_group: 1, expert_begin: 0, expert_end: experts, scale: 1 };
    const formulas = { sigmoid: false, group_top2: false, norm_topk: false };
    const up = weights([E, 2 * inner, d], [E, 2, blocks(inner), blocks(d)]);
    const down = weights([E, d, inner], [E, blocks(d), blocks(inner)]);
    return [
      {
        verb: 'moeRoute',
        args: { x, norm: norm(d), gate, positions: places.positions, normed, ...routed, eps, ...choice, ...formulas },
      },
      { verb: 'moeGateUp', args: { ...up, x: normed, offsets, order, h, shared } },
      { verb: 'moeDown', args: { ...down, ...grouped, h, residual: x, out: x } },
    ];
  };
  const head = make.normal('bf16', [vocab, d], 1 / Math.sqrt(d));
  const steps: Step[] = [
    ...attention(),
    ...denseNetwork(),
    ...[1, 2].flatMap(() => [...attention(), ...expertNetwork()]),
    { verb: 'rmsNorm', args: { x, weight: norm(d), out: normed, eps } },
    { verb: 'gemm', args: { x: normed, w: head, y: logits } },
  ];
  return { steps, x, logits };
}

/**
 * The kernel splits attention over blocks in another way, so probabilities are rounded to bf16 relative to other maxima,
 * and what follows them rounds to other neighbours: through three layers of random weights that is 0.5 to 1.5 % of the norm
 * (measured by scores that are off by 2^-11). A page too few is 25 % and more.
 */
const SPLIT = { ulps: 2, element: 0.15, norm: 5e-2, absolute: 0 };

for (const [weight, cache] of [
  ['bf16', 'bf16'],
  ['f8e4m3', 'bf16'],
  ['f8e4m3', 'fp8'],
] as const) {
  // Within a page of the last one; and of more pages than a GPU has multiprocessors.
  for (const length of [130, 9000]) {
    const label = `${weight} weights, ${cache} cache, ${length} tokens`;
    test(`a step of one row as one graph, ${label}`, async () => {
      const { steps, x, logits } = stepOf(new Inputs(length), weight, cache, length);
      const launches = await compareTogether(label, steps, (together, apart) => {
        for (const [name, { dtype, shape }] of [
          ['latentCompress.x', x],
          ['gemm.y', logits],
        ] as const) {
          const [ours, theirs] = [together[name], apart[name]] as [Uint8Array, Uint8Array];
          const result = compareClose(dtype as 'bf16', shape, ours, theirs, SPLIT);
          assert(result.complaint === undefined, `${label}, ${name}: ${result.complaint}`);
          console.log(
            `${label}, ${name}: ${result.norm.toExponential(1)}, worst ${result.worst.toFixed(2)} of its bound`,
          );
        }
      });
      if (hopper) assert.equal(launches, 1);
    });
  }
}
