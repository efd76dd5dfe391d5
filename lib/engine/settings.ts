// engine/settings.ts - options checked before anything starts, and what they mean for one model.
import { randomInt } from 'node:crypto';
import { describe, invalidArg, MlaError } from '../errors';
import type { UsedSettings } from './options';
import type { GenerationDefaults } from './step-model';

/** {@link UsedSettings} before the length of the prompt is known: `maxTokens` null is the default. */
export interface PlannedSettings extends Omit<UsedSettings, 'maxTokens'> {
  readonly maxTokens: number | null;
  readonly cacheSalt: string;
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
const MAX_STOP_STRINGS = 16;
const MAX_STOP_LENGTH = 1000;
const MAX_BIASES = 1024;
const MAX_SALT_LENGTH = 256;
const MAX_TOP = 20;
const MAX_COMPLETIONS = 64;
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
  'stop',
  'minTokens',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'logitBias',
  'topLogprobs',
  'priority',
  'cacheSalt',
  'signal',
] as const;
/** Names of the options of complete. */
export const COMPLETE_OPTIONS = [...GENERATE_OPTIONS, 'n'] as const;
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
  const minTokens = integer('minTokens', given.minTokens, 0, 0, Number.MAX_SAFE_INTEGER);
  const maxTokens =
    given.maxTokens === undefined ? null : integer('maxTokens', given.maxTokens, 1, 1, Number.MAX_SAFE_INTEGER);
  if (maxTokens !== null && minTokens > maxTokens) {
    throw invalidArg('minTokens', `at most maxTokens, which is ${maxTokens}`, minTokens);
  }
  const penalty = (name: 'presencePenalty' | 'frequencyPenalty') =>
    given[name] === undefined ? 0 : number(name, given[name], { min: -100, max: 100 });
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
      given.seed === undefined ? randomInt(2 ** 48 - 1) : integer('seed', given.seed, 0, 0, Number.MAX_SAFE_INTEGER),
    maxTokens,
    minTokens,
    stopTokens,
    stop: stopStrings(given.stop),
    repetitionPenalty: setting('repetitionPenalty', given.repetitionPenalty, 'repetition_penalty', 1, {
      above: 0,
      max: 100,
    }),
    presencePenalty: penalty('presencePenalty'),
    frequencyPenalty: penalty('frequencyPenalty'),
    logitBias: given.logitBias === undefined ? {} : logitBias(given.logitBias, vocabSize),
    topLogprobs: integer('topLogprobs', given.topLogprobs, 0, 0, Math.min(MAX_TOP, vocabSize)),
    priority: integer('priority', given.priority, 0, -100, 100),
    cacheSalt: shortString('cacheSalt', given.cacheSalt, MAX_SALT_LENGTH),
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
    top: integer('top', given.top, 0, 0, MAX_TOP),
    logits: boolean('logits', given.logits),
    signal: abortSignal(given.signal),
  };
}

/** Checks how many continuations `complete` is to make. */
export function completions(n: unknown): number {
  return integer('n', n, 1, 1, MAX_COMPLETIONS);
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

function integer(name: string, value: unknown, fallback: number, min: number, max: number): number {
  return value === undefined ? fallback : number(name, value, { min, max, integer: true });
}

function shortString(name: string, value: unknown, max: number): string {
  if (value === undefined) return '';
  if (typeof value !== 'string' || value.length > max) throw invalidArg(name, `a string of up to ${max}`, value);
  return value;
}

function stopStrings(value: unknown): readonly string[] {
  if (value === undefined) return [];
  const all: unknown[] = Array.isArray(value) ? Array.from(value) : [value];
  if (all.length > MAX_STOP_STRINGS) throw invalidArg('stop', `at most ${MAX_STOP_STRINGS} strings`, value);
  for (const one of all) {
    if (typeof one !== 'string' || one.length === 0 || one.length > MAX_STOP_LENGTH) {
      throw invalidArg('stop', `strings of 1 to ${MAX_STOP_LENGTH} characters`, one);
    }
  }
  return [...new Set(all as string[])];
}

function logitBias(value: unknown, vocabSize: number): Record<number, number> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidArg('logitBias', 'an object of token ids and numbers', value);
  }
  const copy: Record<number, number> = {};
  const keys = Object.keys(value);
  if (keys.length > MAX_BIASES) throw invalidArg('logitBias', `at most ${MAX_BIASES} token ids`, value);
  for (const key of keys) {
    const id = Number(key);
    if (!Number.isInteger(id) || id < 0 || id >= vocabSize || String(id) !== key) {
      throw invalidArg('logitBias', `token ids, integers from 0 to ${vocabSize - 1}`, key);
    }
    copy[id] = number(`logitBias[${key}]`, (value as Record<string, unknown>)[key], { min: -1000, max: 1000 });
  }
  return copy;
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
