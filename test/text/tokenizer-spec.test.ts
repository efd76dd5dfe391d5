// Broken and hostile tokenizer.json files: each is refused with ERR_TOKENIZER, and the message names the field.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Tokenizer as Native } from 'tokenizers';
import { Tokenizer } from '../../lib/text';
import { codeOf, SMALL_CONFIG, seeded, smallJson } from './fixtures';

const small = JSON.parse(smallJson()) as {
  model: { vocab: Record<string, number>; merges: string[] };
  added_tokens: object[];
};
const { vocab } = small.model;
/** Random damages; MLA_FUZZ_INPUTS sets how many. */
const INPUTS = Number(process.env.MLA_FUZZ_INPUTS ?? 3000);

const root = (change: object) => smallJson({ root: change as Record<string, unknown> });
const model = (change: object) => smallJson({ model: change as Record<string, unknown> });
const added = (change: object) => root({ added_tokens: [{ id: 300, content: '<x>', special: true, ...change }] });
const split = (change: object) =>
  root({
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: 'a' }, behavior: 'Isolated', invert: false, ...change },
        { type: 'ByteLevel', use_regex: false },
      ],
    },
  });
const nested = (depth: number): object =>
  depth === 0 ? { type: 'ByteLevel' } : { type: 'Sequence', pretokenizers: [nested(depth - 1)] };

const BROKEN: Record<string, [string, RegExp]> = {
  'empty file': ['', /not valid JSON/],
  'cut off': [smallJson().slice(0, -100), /not valid JSON/],
  'a Git LFS pointer': ['version https://git-lfs.github.com/spec/v1\noid sha256:0', /not valid JSON/],
  'an array': ['[]', /tokenizer\.json: expected an object/],
  'a number': ['1', /expected an object/],
  null: ['null', /expected an object/],
  'no model': [JSON.stringify({ ...small, model: undefined }), /model: expected an object, got undefined/],
  'model is a string': [`{"model":"BPE"}`, /model/],
  'another model type': [model({ type: 'Unigram' }), /model\.type/],
  'byte fallback': [model({ byte_fallback: true }), /byte_fallback/],
  'a word suffix': [model({ end_of_word_suffix: '</w>' }), /end_of_word_suffix/],
  dropout: [model({ dropout: 0.1 }), /dropout/],
  'vocab is an array': [model({ vocab: [] }), /model\.vocab/],
  'vocab is missing': [model({ vocab: undefined }), /model\.vocab/],
  'an id that is a string': [model({ vocab: { ...vocab, zz: '9' } }), /model\.vocab\["zz"\]/],
  'a negative id': [model({ vocab: { ...vocab, zz: -1 } }), /model\.vocab\["zz"\]/],
  'a fractional id': [model({ vocab: { ...vocab, zz: 1.5 } }), /model\.vocab\["zz"\]/],
  'a huge id': [model({ vocab: { ...vocab, zz: 2 ** 31 } }), /model\.vocab\["zz"\]/],
  'an id of 2^53': [model({ vocab: { ...vocab, zz: 2 ** 53 } }), /model\.vocab\["zz"\]/],
  'two tokens with one id': [model({ vocab: { ...vocab, zz: 5 } }), /an id of its own/],
  'a byte without a token': [
    model({ vocab: Object.fromEntries(Object.entries(vocab).filter(([token]) => token !== 'a')), merges: [] }),
    /no token for 1 of/,
  ],
  'no merges': [model({ merges: undefined }), /model\.merges/],
  'merges is an object': [model({ merges: {} }), /model\.merges/],
  'a merge of one token': [model({ merges: ['he'] }), /model\.merges\[0\]/],
  'a merge of three tokens': [model({ merges: ['h e l'] }), /model\.merges\[0\]/],
  'a merge of numbers': [model({ merges: [[1, 2]] }), /model\.merges\[0\]/],
  'a merge of unknown tokens': [model({ merges: ['zz yy'] }), /model\.merges\[0\].*not in model\.vocab/],
  'a merge with an unknown result': [model({ merges: ['q q'] }), /not in model\.vocab/],
  'added tokens that are no array': [root({ added_tokens: {} }), /added_tokens/],
  'an added token that is a string': [root({ added_tokens: ['<x>'] }), /added_tokens\[0\]/],
  'an added token without text': [added({ content: '' }), /added_tokens\[0\]\.content/],
  'an added token of 10^5 characters': [added({ content: 'x'.repeat(100_000) }), /added_tokens\[0\]\.content/],
  'an added token with a huge id': [added({ id: 4_000_000_000 }), /added_tokens\[0\]\.id/],
  'an added token with the id of a byte': [added({ id: 65 }), /added_tokens\[0\]/],
  'an added token with the text of another id': [added({ content: 'he' }), /added_tokens\[0\]/],
  'two added tokens with one id': [
    root({
      added_tokens: [
        { id: 300, content: 'x1' },
        { id: 300, content: 'x2' },
      ],
    }),
    /added_tokens\[1\]/,
  ],
  'two added tokens with one text': [
    root({
      added_tokens: [
        { id: 300, content: 'x1' },
        { id: 301, content: 'x1' },
      ],
    }),
    /added_tokens\[1\]/,
  ],
  '70,000 added tokens': [
    root({ added_tokens: Array.from({ length: 70_000 }, (_, i) => ({ id: 265 + i, content: `<${i}>` })) }),
    /added_tokens/,
  ],
  'no decoder': [root({ decoder: null }), /decoder/],
  'another decoder': [root({ decoder: { type: 'Metaspace' } }), /decoder/],
  'no pre-tokenizer': [root({ pre_tokenizer: null }), /pre_tokenizer/],
  'another pre-tokenizer': [root({ pre_tokenizer: { type: 'Metaspace' } }), /pre_tokenizer/],
  'an unknown step': [
    root({ pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Punctuation' }, { type: 'ByteLevel' }] } }),
    /Punctuation/,
  ],
  'byte level in the middle': [
    root({ pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'ByteLevel' }, { type: 'ByteLevel' }] } }),
    /last step/,
  ],
  '100 steps': [
    root({
      pre_tokenizer: { type: 'Sequence', pretokenizers: Array.from({ length: 100 }, () => ({ type: 'ByteLevel' })) },
    }),
    /at most 32/,
  ],
  'steps nested 1000 deep': [root({ pre_tokenizer: nested(1000) }), /nested/],
  'a split that removes': [split({ behavior: 'Removed' }), /behavior/],
  'an inverted split': [split({ invert: true }), /invert/],
  'a split without a pattern': [split({ pattern: {} }), /pattern/],
  'a pattern that is a number': [split({ pattern: { Regex: 1 } }), /pattern/],
  'a pattern that does not compile': [split({ pattern: { Regex: '(' } }), /cannot be translated/],
  'a pattern of 10^5 characters': [split({ pattern: { Regex: 'a'.repeat(100_000) } }), /pattern/],
  'another normalizer': [root({ normalizer: { type: 'Lowercase' } }), /normalizer/],
};

test.each(Object.entries(BROKEN))('%s', async (_, [json, message]) => {
  expect(await codeOf(() => Tokenizer.fromJson(json, '{}'))).toBe('ERR_TOKENIZER');
  expect(() => Tokenizer.fromJson(json, '{}')).toThrow(message);
});

test.each([
  ['not JSON', '{', /not valid JSON/],
  ['an array', '[]', /tokenizer_config\.json/],
  ['bos_token is a number', '{"bos_token":1}', /bos_token/],
  ['bos_token is unknown', '{"bos_token":"<none>"}', /bos_token.*not a token/],
  ['eos_token without content', '{"eos_token":{}}', /eos_token/],
  ['add_bos_token is a string', '{"bos_token":"<bos>","add_bos_token":"yes"}', /add_bos_token/],
])('tokenizer_config.json: %s', async (_, config, message) => {
  expect(await codeOf(() => Tokenizer.fromJson(smallJson(), config))).toBe('ERR_TOKENIZER');
  expect(() => Tokenizer.fromJson(smallJson(), config)).toThrow(message);
});

test(`${INPUTS} random damages: refused with ERR_TOKENIZER, or the ids of the native library`, async () => {
  const good = smallJson();
  const random = seeded(13);
  const fragments = [
    'null',
    '{}',
    '[]',
    '-1',
    '1e400',
    '"',
    '"x"',
    ',',
    '}',
    ']',
    '0',
    '__proto__',
    'true',
    '\\u0000',
    '',
  ];
  const text = 'hello wor <user> é';
  const outcomes: Record<string, number> = {};
  let slowest = 0;
  const before = process.memoryUsage().rss;
  for (let i = 0; i < INPUTS; i++) {
    const at = Math.floor(random() * good.length);
    const cut = Math.floor(random() * 12);
    const damaged = good.slice(0, at) + fragments[Math.floor(random() * fragments.length)] + good.slice(at + cut);
    const begun = process.cpuUsage();
    let ids: readonly number[] = [];
    const outcome = await codeOf(() => {
      ids = Tokenizer.fromJson(damaged, SMALL_CONFIG).encode(text, { bos: true });
    });
    const { user, system } = process.cpuUsage(begun);
    slowest = Math.max(slowest, (user + system) / 1000);
    const verdict = outcome === 'none' ? await nativeVerdict(damaged, text, ids) : outcome;
    outcomes[verdict] = (outcomes[verdict] ?? 0) + 1;
  }
  const grown = (process.memoryUsage().rss - before) / 2 ** 20;
  console.log(
    `tokenizer.json fuzz: ${INPUTS} inputs, ${JSON.stringify(outcomes)}, slowest ${slowest.toFixed(0)} ms, ${grown.toFixed(0)} MiB more`,
  );
  const explained = [
    'ERR_TOKENIZER',
    'same ids',
    'refused by the native library alone',
    'added tokens with other numbers',
  ];
  expect(Object.keys(outcomes).filter((verdict) => !explained.includes(verdict))).toEqual([]);
  expect(outcomes.ERR_TOKENIZER).toBeGreaterThan(INPUTS / 3);
  expect(outcomes['same ids']).toBeGreaterThan(INPUTS / 100);
  expect(slowest).toBeLessThan(1000);
  expect(grown).toBeLessThan(512);
}, 600_000);

/**
 * What the native library makes of a file that we accept, with ids of ours that begin with BOS. Two differences are known:
 * it also checks what is never used; and it numbers added tokens by how many tokens there are, whatever ids the file
 * gives them, which shows where a vocabulary has a hole or such an id was damaged.
 */
async function nativeVerdict(json: string, text: string, ids: readonly number[]): Promise<string> {
  let native: Native;
  try {
    native = Native.fromString(json);
  } catch {
    return 'refused by the native library alone';
  }
  const theirs = (await native.encode(text, null, { addSpecialTokens: false })).getIds();
  const ours = ids.slice(1);
  const others = ours.filter((id, i) => id !== theirs[i]);
  if (theirs.length === ours.length && others.length === 0) return 'same ids';
  const added = (JSON.parse(json) as { added_tokens: { id: number }[] }).added_tokens.map(({ id }) => id);
  return theirs.length === ours.length && others.every((id) => added.includes(id))
    ? 'added tokens with other numbers'
    : `other ids: ${theirs.join()} for ${ours.join()}, ${json}`;
}

describe('what lies in the folder', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'text-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  test('a folder, a pipe, a device and a 65 MiB file in place of tokenizer.json are refused at once', async () => {
    const path = join(dir, 'tokenizer.json');
    const refused = async () => {
      expect(await codeOf(() => Tokenizer.load(dir))).toBe('ERR_TOKENIZER');
      rmSync(path, { recursive: true });
    };
    mkdirSync(path);
    await refused();
    execFileSync('mkfifo', [path]);
    await refused();
    symlinkSync('/dev/zero', path);
    await refused();
    writeFileSync(path, '');
    truncateSync(path, 65 * 1024 * 1024);
    await refused();
  });

  test('an error does not quote the file it found', async () => {
    writeFileSync(join(dir, 'secret'), 'root:x:0:0:password');
    symlinkSync(join(dir, 'secret'), join(dir, 'tokenizer.json'));
    await expect(Tokenizer.load(dir)).rejects.toThrow(/not valid JSON/);
    await expect(Tokenizer.load(dir)).rejects.not.toThrow(/root|password/);
  });

  test('names from Object.prototype are ordinary tokens', () => {
    const json = smallJson({ model: { vocab: { ...vocab, constructor: 290, toString: 291 } } }).replace(
      '"constructor"',
      '"__proto__":289,"constructor"',
    );
    const tokenizer = Tokenizer.fromJson(json);
    expect(tokenizer.tokenToId('__proto__')).toBe(289);
    expect(tokenizer.tokenToId('constructor')).toBe(290);
    expect(tokenizer.tokenToId('hasOwnProperty')).toBeUndefined();
  });
});
