// engine/options.ts - what callers may ask for, checked before anything starts, and what that means for one model.
import { randomInt } from 'node:crypto';
import { describe, invalidArg, MlaError } from '../errors';
import type { GenerationDefaults } from './step-model';

/** Options of `Model.generate`; every one has a default. */
export interface GenerateOptions {
  /**
   * New tokens at most. Default 256, or less where the context ends before that; a number that does not fit the context
   * is refused with ERR_CONTEXT_LENGTH.
   */
  maxTokens?: number | undefined;
  /**
   * 0 always takes the likeliest token; up to 100. Default: as generation_config.json says, else 0. Where it is 0, topK,
   * topP, minP and seed change nothing.
   */
  temperature?: number | undefined;
  /** Sample from this many of the likeliest tokens only; 0 is all. Default: as generation_config.json says, else 0. */
  topK?: number | undefined;
  /** Sample from the likeliest tokens that make up this probability; above 0, up to 1. Default as topK's, else 1. */
  topP?: number | undefined;
  /** Leave out tokens less likely than this share of the likeliest one's probability; 0 to 1. Default as topK's, else 0. */
  minP?: number | undefined;
  /** Non-negative integer up to 2^53 - 1: the same seed gives the same text. Default: random; the Result says which. */
  seed?: number | undefined;
  /** Token ids that end the text besides the model's own; at most 16 in all. */
  stopTokens?: readonly number[] | undefined;
  /** Go on where the model ends its text. Default false. */
  ignoreEos?: boolean | undefined;
  /** Ends the generation; everything then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** Options of `Model.score`. */
export interface ScoreOptions {
  /** For each position, this many of the likeliest tokens, 0 to 20. Default 0. */
  top?: number | undefined;
  /** Whether to return the logits after the last token. Default false. */
  logits?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

/** The settings a generation ran with. */
export interface UsedSettings {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly seed: number;
  readonly maxTokens: number;
  /** the model's own end-of-text ids (unless they were ignored) and `stopTokens` */
  readonly stopTokens: readonly number[];
}

/** {@link UsedSettings} before the length of the prompt is known: `maxTokens` null is the default. */
export interface PlannedSettings extends Omit<UsedSettings, 'maxTokens'> {
  readonly maxTokens: number | null;
  readonly signal: AbortSignal | undefined;
}

/** What settings depend on. */
export interface SettingsContext {
  readonly vocabSize: number;
  readonly eosIds: readonly number[];
  readonly defaults: GenerationDefaults;
}

const DEFAULT_MAX_TOKENS = 256;
const MAX_STOP_TOKENS = 16;
const MAX_TOP = 20;
/** Names of the options of generate. */
export const GENERATE_OPTIONS = [
  'maxTokens',
  'temperature',
  'topK',
  'topP',
  'minP',
  'seed',
  'stopTokens',
  'ignoreEos',
  'signal',
] as const;
const SCORE_OPTIONS = ['top', 'logits', 'signal'] as const;

/**
 * Copies the known options out of what the caller gave, each read once.
 * @throws ERR_INVALID_ARG for what is not an object, an unknown name, or a property that cannot be read
 */
export function readOptions<K extends string>(options: unknown, known: readonly K[]): Partial<Record<K, unknown>> {
  if (options === undefined) return {};
  const read: Partial<Record<K, unknown>> = {};
  try {
    if (typeof options !== 'object' || options === null || Array.isArray(options)) {
      throw invalidArg('options', 'an object', options);
    }
    for (const name of Object.keys(options)) {
      if (!known.includes(name as K)) throw invalidArg('options', `only ${known.join(', ')}`, name);
    }
    for (const name of known) read[name] = (options as Record<string, unknown>)[name];
  } catch (cause) {
    if (cause instanceof MlaError) throw cause;
    throw new MlaError('ERR_INVALID_ARG', 'options: expected readable properties; reading one of them threw.', {
      cause,
    });
  }
  return read;
}

/** Checks the options of generate (chat has them too) and fills in what the model's files say. */
export function planSettings(
  given: Partial<Record<(typeof GENERATE_OPTIONS)[number], unknown>>,
  { vocabSize, eosIds, defaults }: SettingsContext,
): PlannedSettings {
  const ignoreEos = boolean('ignoreEos', given.ignoreEos);
  const own = ignoreEos ? [] : eosIds;
  const extra = given.stopTokens === undefined ? [] : tokenIds('stopTokens', given.stopTokens, vocabSize);
  const stopTokens = [...new Set([...own, ...extra])];
  if (stopTokens.length > MAX_STOP_TOKENS) {
    throw invalidArg('stopTokens', `at most ${MAX_STOP_TOKENS} ids, the model's own among them`, stopTokens);
  }
  // Without do_sample, a temperature in the file means that one should sample with it.
  const sampled = defaults.do_sample ?? defaults.temperature !== undefined;
  const setting = (name: string, value: unknown, key: keyof GenerationDefaults, fallback: number, range: Range) =>
    value === undefined
      ? number(`${key} of generation_config.json`, defaults[key] ?? fallback, range)
      : number(name, value, range);
  return {
    temperature:
      given.temperature === undefined && !sampled
        ? 0
        : setting('temperature', given.temperature, 'temperature', 1, { min: 0, max: 100 }),
    topK: setting('topK', given.topK, 'top_k', 0, { min: 0, max: 2 ** 24, integer: true }),
    topP: setting('topP', given.topP, 'top_p', 1, { above: 0, max: 1 }),
    minP: setting('minP', given.minP, 'min_p', 0, { min: 0, max: 1 }),
    seed:
      given.seed === undefined
        ? randomInt(2 ** 48 - 1)
        : number('seed', given.seed, { min: 0, max: Number.MAX_SAFE_INTEGER, integer: true }),
    maxTokens:
      given.maxTokens === undefined
        ? null
        : number('maxTokens', given.maxTokens, { min: 1, max: Number.MAX_SAFE_INTEGER, integer: true }),
    stopTokens,
    signal: abortSignal(given.signal),
  };
}

/**
 * How many tokens may follow a prompt.
 * @throws ERR_CONTEXT_LENGTH when the prompt leaves no room for one, or for as many as were asked for
 */
export function resolveMaxTokens(asked: number | null, promptTokens: number, context: number): number {
  const room = context - promptTokens;
  if (room < 1) {
    throw new MlaError(
      'ERR_CONTEXT_LENGTH',
      `The prompt has ${promptTokens} tokens; expected at most ${context - 1}, so that one more fits the context of ${context}.`,
    );
  }
  if (asked !== null && asked > room) {
    throw new MlaError(
      'ERR_CONTEXT_LENGTH',
      `The prompt has ${promptTokens} tokens and maxTokens is ${asked}; expected at most ${room} new ones in the context of ${context}. Ask for fewer, or load the model with a larger context.`,
    );
  }
  return Math.min(asked ?? DEFAULT_MAX_TOKENS, room);
}

/** Checks the options of score. */
export function readScoreOptions(options: unknown): { top: number; logits: boolean; signal: AbortSignal | undefined } {
  const given = readOptions(options, SCORE_OPTIONS);
  return {
    top: given.top === undefined ? 0 : number('top', given.top, { min: 0, max: MAX_TOP, integer: true }),
    logits: boolean('logits', given.logits),
    signal: abortSignal(given.signal),
  };
}

/**
 * A copy of a list of token ids.
 * @throws ERR_INVALID_ARG when it is not an array of integers from 0 to vocabSize - 1
 */
export function tokenIds(name: string, value: unknown, vocabSize: number): number[] {
  if (!Array.isArray(value)) throw invalidArg(name, 'an array of token ids', value);
  const copy: unknown[] = Array.from(value);
  for (const [i, id] of copy.entries()) {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= vocabSize) {
      throw invalidArg(`${name}[${i}]`, `a token id, an integer from 0 to ${vocabSize - 1}`, id);
    }
  }
  return copy as number[];
}

interface Range {
  min?: number;
  above?: number;
  max: number;
  integer?: boolean;
}

function number(name: string, value: unknown, { min, above, max, integer = false }: Range): number {
  const ok =
    typeof value === 'number' &&
    (min === undefined || value >= min) &&
    (above === undefined || value > above) &&
    value <= max &&
    (!integer || Number.isInteger(value));
  if (ok) return value;
  const kind = integer ? 'an integer' : 'a number';
  throw invalidArg(name, `${kind} ${above === undefined ? `from ${min}` : `above ${above}, up`} to ${max}`, value);
}

function boolean(name: string, value: unknown): boolean {
  if (value === undefined) return false;
  if (typeof value !== 'boolean') throw invalidArg(name, 'true or false', value);
  return value;
}

/** @throws ERR_INVALID_ARG for what is neither an AbortSignal nor undefined */
export function abortSignal(value: unknown): AbortSignal | undefined {
  if (value === undefined || value instanceof AbortSignal) return value;
  throw new MlaError('ERR_INVALID_ARG', `signal: expected an AbortSignal, got ${describe(value)}.`);
}
