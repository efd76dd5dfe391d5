// model/memory-plan.ts - how much memory a model takes, known before anything is allocated.

import { latentCacheSpec, pagesFor } from '../cache';
import type { ModelConfig } from '../checkpoint';
import { invalidArg, MlaError } from '../errors';
import type { DeviceInfo } from '../native';
import type { Limits } from './buffers';
import type { Dims, Precision } from './dims';
import { specBytes, treeBytes } from './specs';
import type { LatentModelOptions } from './types';

/** Bytes on the device, by use. */
export interface MemoryPlan {
  weights: number;
  cache: number;
  activations: number;
  workspace: number;
  total: number;
  /** bytes of cache that one token takes */
  cachePerToken: number;
}

/** Default of the `context` option, where the model allows it. */
const DEFAULT_CONTEXT = 4096;
/**
 * Up to this many new tokens of a sequence take the absorbed form, where the cache holds none of it before and where it
 * does. Per head the expanded form pays 2(n + v)c operations once per key and then 2(n + r + v) per pair, the absorbed
 * form 2(2c + r) per pair; with 128/64/128/512 they meet near 170 tokens. On a GPU the expanded form also writes what it
 * has expanded and reads it again. Tokens/s absorbed / expanded (H200, 2026-11-26, `mla bench prefill --attention`):
 *
 *   V2-Lite, 16 heads   128 new        192            256            384
 *   nothing cached      12577 / 12329  17388 / 18115  22684 / 23477  30739 / 32285
 *   256 cached          12212 / 11968  17450 / 16835  22271 / 21762  31346 / 30318
 *   1024 cached         11670 / 10954  16557 / 15819  21495 / 20981  29649 / 29429
 *   4096 cached         10747 /  8899  14805 / 13242  18816 / 17326  23869 / 24431
 *   32768 cached         6252 /  3399                  9181 /  6669
 *   V3, 128 heads, 3 layers
 *   1024 cached         51576 / 47788  56531 / 54078  66372 / 66140  78606 / 86564
 *   4096 cached         33478 / 32940  40126 / 39698  46085 / 47756  52430 / 57232
 */
export const ABSORBED_MAX_TOKENS = { cpu: { first: 128, later: 128 }, cuda: { first: 128, later: 256 } } as const;

/** Resolves the options that are numbers. @throws ERR_INVALID_ARG */
export function limitsOf(options: LatentModelOptions, config: ModelConfig, kind: DeviceInfo['kind']): Limits {
  const integer = (name: string, value: number, low: number, high: number): number => {
    if (!Number.isInteger(value) || value < low || value > high) {
      throw invalidArg(name, `an integer from ${low} to ${high}`, value);
    }
    return value;
  };
  const most = config.max_position_embeddings;
  const context = integer('context', options.context ?? Math.min(most, DEFAULT_CONTEXT), 1, most);
  const maxSequences = integer('maxSequences', options.maxSequences ?? 8, 1, 1024);
  const pages = integer('pages', options.pages ?? pagesFor(context) * maxSequences, 1, 2 ** 24);
  const prefillRows = integer('prefillChunk', options.prefillChunk ?? 512, 1, 16384);
  const absorbed = ABSORBED_MAX_TOKENS[kind];
  return {
    context,
    maxSequences,
    pages,
    prefillRows,
    // as many as a pass brings new ones: the expansion's buffers then stay in proportion to the pass's own
    contextRows: Math.max(prefillRows, 64),
    // where that is the only form, prompts need not go in small passes
    absorbedRows:
      options.deterministic || options.attention === 'absorbed' ? prefillRows : Math.min(absorbed.later, prefillRows),
    absorbedFirst: Math.min(absorbed.first, prefillRows),
    maxTop: Math.min(20, config.vocab_size),
  };
}

/** Adds up the plan: trees of specs for the weights and for all buffers beside them. */
export function planMemory(
  dims: Dims,
  precision: Precision,
  limits: Limits,
  weights: object,
  buffers: object,
  workspace: number,
): MemoryPlan {
  const { layers, c, r } = dims;
  const cache = specBytes(latentCacheSpec({ layers, pages: limits.pages, c, r, dtype: precision.cache }));
  const weightBytes = treeBytes(weights);
  const activations = treeBytes(buffers);
  return {
    weights: weightBytes,
    cache,
    activations,
    workspace,
    total: weightBytes + cache + activations + workspace,
    cachePerToken: cache / (limits.pages * 64),
  };
}

/** @throws ERR_OUT_OF_MEMORY or ERR_OUT_OF_DEVICE_MEMORY when the plan cannot fit */
export function checkFits(plan: MemoryPlan, device: DeviceInfo): void {
  if (plan.total <= device.memoryFree) return;
  const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
  throw new MlaError(
    device.kind === 'cpu' ? 'ERR_OUT_OF_MEMORY' : 'ERR_OUT_OF_DEVICE_MEMORY',
    `The model needs ${gib(plan.total)} (weights ${gib(plan.weights)}, cache ${gib(plan.cache)}, ` +
      `buffers ${gib(plan.activations + plan.workspace)}) and ${device.name} has ${gib(device.memoryFree)} free; ` +
      'a smaller context, maxSequences or pages makes the cache smaller.',
  );
}
