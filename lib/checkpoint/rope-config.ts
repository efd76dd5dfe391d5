// rope-config.ts - the two spellings of rotary positions in config.json, made one:
// rope_theta + rope_scaling {type | rope_type, ...} (older) and rope_parameters {rope_theta, rope_type, ...} (transformers 5).
import type { Fields } from './fields';

/** YaRN: which frequencies are stretched, and by how much. */
export interface YarnConfig {
  /** How much longer the context became. At least 1. */
  readonly factor: number;
  readonly original_max_position_embeddings: number;
  readonly beta_fast: number;
  readonly beta_slow: number;
  readonly mscale: number;
  /** 0 means that the softmax scale is not touched. */
  readonly mscale_all_dim: number;
}

/** Rotary positions. */
export interface RopeConfig {
  readonly theta: number;
  readonly yarn: YarnConfig | null;
}

/** What every program assumes when rope_theta is not given. */
const DEFAULT_THETA = 10000;
const COMMON_KEYS = ['type', 'rope_type', 'rope_theta', 'partial_rotary_factor'];
const YARN_KEYS = ['factor', 'original_max_position_embeddings', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim'];
const YARN_CHECKED_KEYS = ['attention_factor', 'truncate'];

/** m(s, x) of YaRN: 1 for s <= 1, else 0.1 x ln(s) + 1. */
export function yarnMagnitude(factor: number, mscale: number): number {
  return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
}

/** Reads either spelling; both at once must say the same. */
export function readRope(fields: Fields): RopeConfig {
  const older = fields.nested('rope_scaling');
  const newer = fields.nested('rope_parameters');
  const found = [older, newer].filter((block) => block !== undefined).map((block) => readBlock(fields, block));
  const [first, second] = found;
  if (first === undefined) return { theta: readTheta(fields), yarn: null };
  if (second !== undefined && JSON.stringify(first) !== JSON.stringify(second)) {
    throw fields.contradiction('rope_scaling and rope_parameters disagree, expected one of them or the same values');
  }
  return first;
}

function readTheta(fields: Fields): number {
  // YaRN divides by ln(theta); a theta of 1 or less has no meaning.
  return fields.number('rope_theta', 1, 1e12, DEFAULT_THETA);
}

function readBlock(fields: Fields, block: Fields): RopeConfig {
  const type = block.text('rope_type') ?? block.text('type') ?? 'default';
  if (block.has('rope_type') && block.has('type') && block.text('type') !== type) {
    throw block.broken('type', `the same as rope_type, ${JSON.stringify(type)}`);
  }
  if (type !== 'default' && type !== 'yarn') {
    throw block.unsupported(block.has('rope_type') ? 'rope_type' : 'type', '"default" and "yarn"');
  }
  const known = type === 'yarn' ? [...COMMON_KEYS, ...YARN_KEYS, ...YARN_CHECKED_KEYS] : COMMON_KEYS;
  for (const key of Object.keys(block.object)) {
    if (block.has(key) && !known.includes(key)) {
      throw block.unsupported(key, `for rope type "${type}" only ${known.join(', ')}`);
    }
  }
  if (block.number('partial_rotary_factor', 0, 1, 1) !== 1) {
    throw block.unsupported('partial_rotary_factor', '1 (qk_rope_head_dim says how much is rotated)');
  }
  const theta = block.has('rope_theta') ? readTheta(block) : readTheta(fields);
  if (block.has('rope_theta') && fields.has('rope_theta') && readTheta(fields) !== theta) {
    throw block.broken('rope_theta', `the same as the rope_theta beside it, ${readTheta(fields)}`);
  }
  return { theta, yarn: type === 'yarn' ? readYarn(block) : null };
}

function readYarn(block: Fields): YarnConfig {
  const yarn: YarnConfig = {
    factor: block.number('factor', 0, 1e6),
    original_max_position_embeddings: block.integer('original_max_position_embeddings', 1, 2 ** 31),
    beta_fast: block.number('beta_fast', 0, 1e6, 32),
    beta_slow: block.number('beta_slow', 0, 1e6, 1),
    mscale: block.has('mscale') ? readMscale(block, 'mscale') : 1,
    mscale_all_dim: block.has('mscale_all_dim') ? readMscale(block, 'mscale_all_dim') : 0,
  };
  if (yarn.factor < 1) throw block.broken('factor', 'a number of at least 1');
  if (yarn.beta_fast < yarn.beta_slow) throw block.broken('beta_fast', `at least beta_slow, ${yarn.beta_slow}`);
  const ratio = yarnMagnitude(yarn.factor, yarn.mscale) / yarnMagnitude(yarn.factor, yarn.mscale_all_dim);
  // DeepSeek's code takes absent as mscale 1 and mscale_all_dim 0; transformers ignores both unless both are non-zero.
  const both = block.has('mscale') && yarn.mscale !== 0 && yarn.mscale_all_dim !== 0;
  const others = both ? ratio : yarnMagnitude(yarn.factor, 1);
  if (Math.abs(others - ratio) > 1e-12) {
    throw block.unsupported('mscale', 'mscale and mscale_all_dim both given and not 0 (programs disagree on the rest)');
  }
  if (block.has('attention_factor') && Math.abs(block.number('attention_factor', 0, 1e6) - ratio) > 1e-6) {
    throw block.unsupported('attention_factor', `absent, or the value that mscale and factor give, ${ratio}`);
  }
  if (!block.boolean('truncate', true)) throw block.unsupported('truncate', 'true');
  return yarn;
}

function readMscale(block: Fields, name: string): number {
  const value = block.get(name);
  if (typeof value !== 'number' || value < 0 || value > 100) throw block.broken(name, 'a number from 0 to 100');
  return value;
}
