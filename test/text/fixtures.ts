// fixtures.ts - tokenizers and texts that the tests of lib/text share.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { BYTE_TO_CHAR } from '../../lib/text/byte-level';

const root = join(__dirname, '..', '..');

/** Folder with DeepSeek-V3's real tokenizer.json and tokenizer_config.json. */
export const V3_DIR = join(root, 'node_modules', '@lenml', 'tokenizer-deepseek_v3', 'models');

/** The text of V3's tokenizer.json. */
export function v3Json(): string {
  return readFileSync(join(V3_DIR, 'tokenizer.json'), 'utf8');
}

/** V3's tokenizer.json with `<think>` and `</think>` where R1 and V3.1 have them. */
export function v31Json(): string {
  return v3Json().replace('<｜place▁holder▁no▁798｜>', '<think>').replace('<｜place▁holder▁no▁799｜>', '</think>');
}

/** V3's tokenizer.json with its first 8192 merges only and no added tokens: quick to load, for tests of everything around the merges. */
export function v3FirstMerges(): Record<string, unknown> {
  const json = JSON.parse(v3Json()) as { model: { vocab: Record<string, number>; merges: string[] } };
  const merges = json.model.merges.slice(0, 8192);
  const tokens = new Set([...BYTE_TO_CHAR, ...merges.map((merge) => merge.replace(' ', ''))]);
  const vocab = Object.fromEntries([...tokens].map((token, id) => [token, id]));
  return { ...json, added_tokens: [], model: { ...json.model, vocab, merges } };
}

/** Throws when dist/text is missing or older than lib/text: tests of threads and processes run the compiled files. */
export function requireFreshDist(): void {
  for (const name of readdirSync(join(root, 'lib', 'text'))) {
    const compiled = join(root, 'dist', 'text', name.replace(/\.ts$/, '.js'));
    if (!existsSync(compiled) || statSync(compiled).mtimeMs < statSync(join(root, 'lib', 'text', name)).mtimeMs) {
      throw new Error(`${compiled} is missing or old: run "npm run build" (or npx tsc -p tsconfig.json) first.`);
    }
  }
}

/** The compiled package part, as users get it. */
export function loadDist(): typeof import('../../lib/text') {
  requireFreshDist();
  return require('../../dist/text') as typeof import('../../lib/text');
}

type Json = Record<string, unknown>;

/** A small byte-level tokenizer.json: 256 bytes, a few merges, three added tokens. Fields can be replaced. */
export function smallJson(change: { root?: Json; model?: Json } = {}): string {
  const vocab: Record<string, number> = {};
  for (const char of BYTE_TO_CHAR) vocab[char] = Object.keys(vocab).length;
  const merges = ['h e', 'l l', 'he ll', 'hell o', 'Ġ w', 'o r', 'Ġw or', '< s', '<s >'];
  for (const merge of merges) vocab[merge.replace(' ', '')] = Object.keys(vocab).length;
  return JSON.stringify({
    version: '1.0',
    added_tokens: [
      { id: 265, content: '<bos>', special: true, normalized: false, single_word: false, lstrip: false, rstrip: false },
      { id: 266, content: '<eos>', special: true, normalized: false, single_word: false, lstrip: false, rstrip: false },
      {
        id: 267,
        content: '<user>',
        special: false,
        normalized: true,
        single_word: false,
        lstrip: false,
        rstrip: false,
      },
    ],
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    ...change.root,
    model: { type: 'BPE', unk_token: null, vocab, merges, ...change.model },
  });
}

/** tokenizer_config.json for {@link smallJson}. */
export const SMALL_CONFIG = JSON.stringify({
  add_bos_token: true,
  bos_token: '<bos>',
  eos_token: { content: '<eos>' },
});

/** A seeded generator of numbers in [0, 1): tests must fail the same way twice. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** First and last code point of ranges to draw random characters from. */
const SCRIPTS: readonly (readonly [number, number])[] = [
  [0x20, 0x7e], // ASCII
  [0x09, 0x0d], // white space controls
  [0xa0, 0x17f], // Latin-1, Latin Extended-A
  [0x300, 0x36f], // combining accents
  [0x370, 0x3ff], // Greek
  [0x400, 0x4ff], // Cyrillic
  [0x5d0, 0x5ea], // Hebrew
  [0x600, 0x6ff], // Arabic, with its digits
  [0x900, 0x97f], // Devanagari
  [0xe00, 0xe7f], // Thai
  [0x2000, 0x206f], // general punctuation, joiners
  [0x2070, 0x218f], // super- and subscripts, currency, number forms
  [0x3000, 0x30ff], // CJK punctuation, kana
  [0x4e00, 0x9fff], // CJK
  [0xac00, 0xd7a3], // Hangul
  [0xfe00, 0xfe0f], // variation selectors
  [0xff00, 0xffef], // full-width forms
  [0x1f300, 0x1f64f], // emoji
  [0x1d400, 0x1d7ff], // mathematical letters and digits
];

/** A random text of `length` characters from two or three scripts, now and then with a spelled token. */
export function randomText(random: () => number, length: number, tokens: readonly string[] = []): string {
  const pick = <T>(items: readonly T[]) => items[Math.floor(random() * items.length)] as T;
  const scripts = [pick(SCRIPTS), pick(SCRIPTS), SCRIPTS[0] as readonly [number, number]];
  let text = '';
  for (let i = 0; i < length; i++) {
    if (tokens.length > 0 && random() < 0.03) text += pick(tokens);
    const [first, last] = pick(scripts);
    const character = String.fromCodePoint(first + Math.floor(random() * (last - first + 1)));
    text += random() < 0.1 ? character.repeat(1 + Math.floor(random() * 6)) : character;
  }
  return text;
}

/** Resolves to the code of the error that `work` ends with, or 'none'. */
export async function codeOf(work: () => unknown): Promise<string> {
  try {
    await work();
    return 'none';
  } catch (error) {
    const { name, code } = error as { name?: string; code?: string };
    return name === 'MlaError' ? String(code) : `not an MlaError: ${String(error)}`;
  }
}
