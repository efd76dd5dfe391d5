// tokenizer-spec.ts - reads the JSON of tokenizer.json and tokenizer_config.json into a checked description. Everything that
// this package does not implement is refused by name: a tokenizer that is nearly right gives text that is nearly right.
import { describe, MlaError } from '../errors';
import type { AddedToken } from './added-tokens';
import {
  MAX_ADDED_TOKEN_LENGTH,
  MAX_ADDED_TOKENS,
  MAX_MERGES,
  MAX_PATTERN_LENGTH,
  MAX_PRE_TOKENIZER_STAGES,
  MAX_TOKEN_ID,
} from './limits';
import { parseJson } from './tokenizer-files';

/** A Unicode normalization form, applied to text before it is split. */
export type NormalizationForm = 'NFC' | 'NFD' | 'NFKC' | 'NFKD';

/** One step of the pre-tokenizer. Each step cuts the pieces of the step before into smaller ones. */
export type PreTokenizerStage =
  | { readonly kind: 'split'; readonly pattern: { readonly Regex: string } | { readonly String: string } }
  | { readonly kind: 'prefix-space' };

/** What a tokenizer.json and its tokenizer_config.json say, checked. */
export interface TokenizerSpec {
  readonly vocab: ReadonlyMap<string, number>;
  readonly merges: readonly (readonly [string, string])[];
  readonly ignoreMerges: boolean;
  readonly added: readonly AddedToken[];
  readonly normalization: readonly NormalizationForm[];
  readonly stages: readonly PreTokenizerStage[];
  /** Highest id of all tokens plus one. */
  readonly vocabSize: number;
  /** Texts of bos_token, eos_token, pad_token and unk_token, where tokenizer_config.json has them. */
  readonly named: Readonly<Partial<Record<SpecialName, string>>>;
  /** Whether a raw prompt starts with bos_token. */
  readonly addBos: boolean;
}

/** The tokens that have a role of their own in tokenizer_config.json. */
export type SpecialName = (typeof SPECIAL_NAMES)[number];
const SPECIAL_NAMES = ['bos_token', 'eos_token', 'pad_token', 'unk_token'] as const;

type Json = Record<string, unknown>;

/** The pattern that a ByteLevel pre-tokenizer with `use_regex` splits by (GPT-2's). */
const GPT2_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/**
 * Parses and checks both files.
 * @param source the bytes of tokenizer.json
 * @param config the text of tokenizer_config.json
 * @throws ERR_TOKENIZER
 */
export function parseTokenizerSpec(source: SharedArrayBuffer, config: string): TokenizerSpec {
  const file = parseJson(Buffer.from(source).toString('utf8'), 'tokenizer.json', 'ERR_TOKENIZER');
  return readTokenizerSpec(file, parseJson(config, 'tokenizer_config.json', 'ERR_TOKENIZER'));
}

/**
 * Checks both files.
 * @param file parsed tokenizer.json
 * @param config parsed tokenizer_config.json, `{}` where there is none
 * @throws ERR_TOKENIZER naming the field, what was expected and what was found
 */
export function readTokenizerSpec(file: unknown, config: unknown): TokenizerSpec {
  const root = record(file, 'tokenizer.json');
  const settings = record(config, 'tokenizer_config.json');
  const model = record(root.model, 'model');
  const { vocab, owners, merges, ignoreMerges } = readModel(model);
  const added = readAddedTokens(root.added_tokens, vocab, owners);
  requireByteLevelDecoder(root.decoder);
  const stages = readPreTokenizer(root.pre_tokenizer);
  let highest = -1;
  for (const id of vocab.values()) highest = Math.max(highest, id);
  for (const token of added) highest = Math.max(highest, token.id);
  const named = readNamedTokens(settings);
  return {
    vocab,
    merges,
    ignoreMerges,
    added,
    normalization: readNormalizer(root.normalizer),
    stages,
    vocabSize: highest + 1,
    named,
    addBos: readAddBos(settings, root.post_processor, named),
  };
}

function readModel(model: Json) {
  if (model.type !== undefined && model.type !== 'BPE') throw unsupported('model.type', '"BPE"', model.type);
  for (const field of ['continuing_subword_prefix', 'end_of_word_suffix'] as const) {
    if ((model[field] ?? '') !== '') throw unsupported(`model.${field}`, 'none (byte-level BPE)', model[field]);
  }
  for (const field of ['byte_fallback', 'dropout'] as const) {
    if (model[field]) throw unsupported(`model.${field}`, 'none (byte-level BPE)', model[field]);
  }

  const vocab = new Map<string, number>();
  const owners: (string | undefined)[] = [];
  const entries = record(model.vocab, 'model.vocab');
  for (const token of Object.keys(entries)) {
    const id = entries[token];
    const where = () => `model.vocab[${JSON.stringify(token).slice(0, 80)}]`;
    if (!isTokenId(id)) throw unsupported(where(), `an id from 0 to ${MAX_TOKEN_ID}`, id);
    const owner = owners[id];
    if (owner !== undefined)
      throw unsupported(where(), `an id of its own (${JSON.stringify(owner).slice(0, 80)} has it)`, id);
    vocab.set(token, id);
    owners[id] = token;
  }

  if (!Array.isArray(model.merges)) throw unsupported('model.merges', 'an array', model.merges);
  if (model.merges.length > MAX_MERGES)
    throw unsupported('model.merges', `at most ${MAX_MERGES} entries`, model.merges);
  const merges = model.merges.map((merge: unknown, index): [string, string] => {
    const pair = typeof merge === 'string' ? merge.split(' ') : merge;
    if (Array.isArray(pair) && pair.length === 2 && typeof pair[0] === 'string' && typeof pair[1] === 'string') {
      return [pair[0], pair[1]];
    }
    throw unsupported(`model.merges[${index}]`, 'two tokens', merge);
  });
  return { vocab, owners, merges, ignoreMerges: model.ignore_merges === true };
}

function readAddedTokens(
  list: unknown,
  vocab: ReadonlyMap<string, number>,
  owners: readonly (string | undefined)[],
): AddedToken[] {
  if (list === undefined || list === null) return [];
  if (!Array.isArray(list)) throw unsupported('added_tokens', 'an array', list);
  if (list.length > MAX_ADDED_TOKENS) throw unsupported('added_tokens', `at most ${MAX_ADDED_TOKENS} entries`, list);
  const contents = new Map<string, number>();
  const ids = new Set<number>();
  return list.map((entry: unknown, index): AddedToken => {
    const where = `added_tokens[${index}]`;
    const { content, id, special, normalized, single_word, lstrip, rstrip } = record(entry, where);
    if (typeof content !== 'string' || content.length === 0 || content.length > MAX_ADDED_TOKEN_LENGTH) {
      throw unsupported(`${where}.content`, `a text of 1 to ${MAX_ADDED_TOKEN_LENGTH} characters`, content);
    }
    if (!isTokenId(id)) throw unsupported(`${where}.id`, `an id from 0 to ${MAX_TOKEN_ID}`, id);
    const clash = (owners[id] ?? content) !== content || (vocab.get(content) ?? id) !== id;
    if (clash || ids.has(id) || contents.has(content)) {
      throw unsupported(
        where,
        'an id and a text that no other token has',
        `${id} ${JSON.stringify(content).slice(0, 80)}`,
      );
    }
    ids.add(id);
    contents.set(content, id);
    const isSpecial = special === true;
    return {
      id,
      content,
      special: isSpecial,
      normalized: typeof normalized === 'boolean' ? normalized : !isSpecial,
      singleWord: single_word === true,
      lstrip: lstrip === true,
      rstrip: rstrip === true,
    };
  });
}

function requireByteLevelDecoder(decoder: unknown): void {
  const { type, decoders } = record(decoder, 'decoder');
  const types =
    type === 'Sequence' && Array.isArray(decoders)
      ? decoders.map((step) => record(step, 'decoder.decoders[]').type)
      : [type];
  if (types.length !== 1 || types[0] !== 'ByteLevel') throw unsupported('decoder', 'ByteLevel', types.join(', '));
}

function readNormalizer(normalizer: unknown): NormalizationForm[] {
  return flatten(normalizer, 'normalizer', 'normalizers').map(({ type }) => {
    if (type === 'NFC' || type === 'NFD' || type === 'NFKC' || type === 'NFKD') return type;
    throw unsupported('normalizer', 'NFC, NFD, NFKC, NFKD or none', type);
  });
}

function readPreTokenizer(preTokenizer: unknown): PreTokenizerStage[] {
  const steps = flatten(preTokenizer, 'pre_tokenizer', 'pretokenizers');
  if (steps.length > MAX_PRE_TOKENIZER_STAGES)
    throw unsupported('pre_tokenizer', `at most ${MAX_PRE_TOKENIZER_STAGES} steps`, steps);
  if (steps.at(-1)?.type !== 'ByteLevel')
    throw unsupported('pre_tokenizer', 'ByteLevel as the last step', steps.at(-1)?.type);
  return steps.flatMap((step, index): PreTokenizerStage[] => {
    const where = `pre_tokenizer step ${index}`;
    switch (step.type) {
      case 'Split':
        return [readSplit(step, where)];
      case 'Digits':
        // Every numeric character (\p{N}, not only 0-9) is cut off, alone or in runs.
        return [{ kind: 'split', pattern: { Regex: step.individual_digits === true ? '\\p{N}' : '\\p{N}+' } }];
      case 'ByteLevel': {
        if (index !== steps.length - 1)
          throw unsupported(where, 'ByteLevel only as the last step', 'more steps after it');
        const stages: PreTokenizerStage[] = step.add_prefix_space === true ? [{ kind: 'prefix-space' }] : [];
        return step.use_regex === false ? stages : [...stages, { kind: 'split', pattern: { Regex: GPT2_PATTERN } }];
      }
      default:
        throw unsupported(where, 'Split, Digits or ByteLevel', step.type);
    }
  });
}

function readSplit(step: Json, where: string): PreTokenizerStage {
  if (step.behavior !== 'Isolated') throw unsupported(`${where}: behavior`, '"Isolated"', step.behavior);
  if (step.invert === true) throw unsupported(`${where}: invert`, 'false', true);
  const { Regex, String: literal } = record(step.pattern, `${where}: pattern`);
  const source = Regex ?? literal;
  if (typeof source !== 'string' || source.length === 0 || source.length > MAX_PATTERN_LENGTH) {
    throw unsupported(`${where}: pattern`, `a Regex or String of 1 to ${MAX_PATTERN_LENGTH} characters`, source);
  }
  return { kind: 'split', pattern: Regex === undefined ? { String: source } : { Regex: source } };
}

function readNamedTokens(settings: Json): TokenizerSpec['named'] {
  const named: Partial<Record<SpecialName, string>> = {};
  for (const name of SPECIAL_NAMES) {
    const value = settings[name];
    if (value === undefined || value === null) continue;
    const text = typeof value === 'string' ? value : record(value, `tokenizer_config.json: ${name}`).content;
    if (typeof text !== 'string')
      throw unsupported(`tokenizer_config.json: ${name}`, 'a text or an object with content', text);
    named[name] = text;
  }
  return named;
}

/** add_bos_token decides; without it the class that implements it (on by default) or a template of tokenizer.json does. */
function readAddBos(settings: Json, postProcessor: unknown, named: TokenizerSpec['named']): boolean {
  const flag = settings.add_bos_token;
  if (typeof flag === 'boolean') return flag && named.bos_token !== undefined;
  if (flag !== undefined && flag !== null)
    throw unsupported('tokenizer_config.json: add_bos_token', 'true or false', flag);
  if (named.bos_token === undefined) return false;
  if (/^Llama/.test(String(settings.tokenizer_class))) return true;
  return flatten(postProcessor, 'post_processor', 'processors').some((step) => {
    const first =
      step.type === 'TemplateProcessing' && Array.isArray(step.single)
        ? record(step.single[0], 'post_processor.single')
        : {};
    return (first.SpecialToken as Json | undefined)?.id === named.bos_token;
  });
}

/** The steps of a component that is null, one step, or a (nested) Sequence of steps under `field`. */
function flatten(component: unknown, where: string, field: string, depth = 0): Json[] {
  if (component === undefined || component === null) return [];
  const step = record(component, where);
  if (step.type !== 'Sequence') return [step];
  const inner = step[field];
  if (!Array.isArray(inner) || depth > 4)
    throw unsupported(`${where}.${field}`, 'an array, nested at most 4 deep', inner);
  return inner.flatMap((part) => flatten(part, where, field, depth + 1));
}

function isTokenId(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_TOKEN_ID;
}

function record(value: unknown, where: string): Json {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json;
  throw unsupported(where, 'an object', value);
}

function unsupported(where: string, expected: string, actual: unknown): MlaError {
  return new MlaError('ERR_TOKENIZER', `${where}: expected ${expected}, got ${describe(actual)}.`);
}
