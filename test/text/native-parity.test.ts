// Every id and every decoded text against the native `tokenizers` library, on DeepSeek-V3's real tokenizer and on others.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer as Native } from 'tokenizers';
import { Tokenizer } from '../../lib/text';
import { wellFormed } from '../../lib/text/well-formed';
import { CORPUS } from './corpus';
import { randomText, SMALL_CONFIG, seeded, smallJson, V3_DIR, v3FirstMerges, v3Json } from './fixtures';

/** Texts whose ids differ. */
async function differences(ours: Tokenizer, native: Native, texts: readonly string[]): Promise<string[]> {
  const expected = await native.encodeBatch([...texts], { addSpecialTokens: false });
  return texts.filter((text, index) => {
    const ids = expected[index]?.getIds() ?? [];
    const got = ours.encode(text);
    return ids.length !== got.length || ids.some((id, i) => id !== got[i]);
  });
}

/** A native tokenizer from the text of a tokenizer.json. */
function nativeFrom(json: string): Native {
  return Native.fromString(json);
}

describe('DeepSeek-V3', () => {
  let ours: Tokenizer;
  let native: Native;
  const random = seeded(20250101);
  const spelled = [
    '<｜User｜>',
    '<｜Assistant｜>',
    '<｜end▁of▁sentence｜>',
    '<|EOT|>',
    '<｜place▁holder▁no▁7｜>',
    '<｜tool▁sep｜>',
  ];
  const randomTexts = Array.from({ length: 800 }, () => randomText(random, 1 + Math.floor(random() * 80), spelled));

  beforeAll(async () => {
    ours = await Tokenizer.load(V3_DIR);
    native = nativeFrom(v3Json());
  });

  test('ids of texts by hand and of 800 random texts are the same', async () => {
    expect(CORPUS.length).toBeGreaterThan(90);
    expect(await differences(ours, native, CORPUS)).toEqual([]);
    expect(await differences(ours, native, randomTexts)).toEqual([]);
  });

  test('ids of whole documents are the same, in one piece and line by line', async () => {
    const documents = ['README.md', 'src/runtime.ts'].map((name) =>
      readFileSync(join(V3_DIR, '..', '..', '..', '@huggingface', 'jinja', name), 'utf8'),
    );
    expect(await differences(ours, native, documents)).toEqual([]);
    const lines = documents.flatMap((text) => text.split('\n').map((line) => `${line}\n`));
    expect(lines.length).toBeGreaterThan(1000);
    expect(await differences(ours, native, lines)).toEqual([]);
  });

  test('a lone surrogate counts as U+FFFD', async () => {
    const texts = ['\ud800', 'a\ud800b', '\udc00 x', '1\udfff2', '.\ud9ab.', '中\udd00文', '\udc00\ud800'];
    expect(await differences(ours, native, texts)).toEqual([]);
    for (const text of texts)
      expect(ours.encode(text)).toEqual(ours.encode(text.replace(/[\ud800-\udfff]/g, '\ufffd')));
  });

  // Characters that Unicode 17 added: a Node whose ICU has them knows their class, the native library does not. All 415,744
  // assigned and unassigned code points outside planes 4 to 13 were compared once: 4,787 differ, all of them in this list.
  const UNICODE_17 =
    `1acf-1add 1ae0-1aeb 20c1 2b96 a7ce-a7cf a7d2 a7d4 a7f1 fbc3-fbd2 fd90-fd91 fdc8-fdce 10940-10959 10ec5-10ec7
    10ed0-10ed8 10efa-10efb 11b60-11b67 11db0-11ddb 16ea0-16eb8 16ebb-16ed3 16ff2-16ff3 187f8-187ff 18d09-18d1e 18d80-18df2
    1ccfa-1ccfc 1ceba-1ced0 1cee0-1cef0 1e6c0-1e6de 1e6e0-1e6f5 1e6fe-1e6ff 1f6d8 1f777-1f77a 1f8d0-1f8d8 1fa54-1fa57 1fa8a 1fa8e
    1fac8 1facd 1faea 1faef 1fbfa 2b73a-2b73f 2cea2-2cead 323b0-33479`
      .split(/\s+/)
      .map((range) => range.split('-').map((hex) => Number.parseInt(hex, 16)));

  test('single characters in context are the same, but for those that Unicode 17 added', async () => {
    const isNew = (code: number) =>
      UNICODE_17.some(([first, last]) => code >= (first as number) && code <= (last ?? (first as number)));
    const codes = new Set<number>();
    while (codes.size < 5000) {
      const code = Math.floor(random() * (random() < 0.6 ? 0x10000 : 0x34000));
      if (code < 0xd800 || code > 0xdfff) codes.add(code);
    }
    const inContext = (code: number) => {
      const c = String.fromCodePoint(code);
      return `a ${c} ${c}${c}\n.${c}\n 1${c}2 中${c}。${c}`;
    };
    const old = [...codes].filter((code) => !isNew(code));
    expect(old.length).toBeGreaterThan(4500);
    expect(await differences(ours, native, old.map(inContext))).toEqual([]);
  });

  test('decoded texts are the same, with and without special tokens, for valid and random ids', async () => {
    const sequences = [...CORPUS, ...randomTexts.slice(0, 200)].map((text) => ours.encode(text));
    for (let i = 0; i < 300; i++) {
      sequences.push(
        Array.from({ length: 1 + Math.floor(random() * 40) }, () => Math.floor(random() * ours.vocabSize)),
      );
    }
    for (const skipSpecial of [true, false]) {
      const expected = await native.decodeBatch(sequences, skipSpecial);
      expect(sequences.map((ids) => ours.decode(ids, { skipSpecial }))).toEqual(expected);
    }
  });

  test('every id has the same text', async () => {
    const all = Array.from({ length: ours.vocabSize }, (_, id) => [id]);
    const expected = await native.decodeBatch(all, false);
    const wrong = all.filter(([id], i) => ours.decode([id as number], { skipSpecial: false }) !== expected[i]);
    expect(ours.vocabSize).toBe(128_815);
    expect(wrong).toEqual([]);
  });
});

describe("other pre-tokenizers and normalizers, on some of V3's merges", () => {
  const random = seeded(7);
  const texts = [...CORPUS, ...Array.from({ length: 300 }, () => randomText(random, 1 + Math.floor(random() * 60)))];
  const split = (Regex: string) => ({ type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false });
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
  const sequence = (...pretokenizers: object[]) => ({ type: 'Sequence', pretokenizers });
  const variants: Record<string, { pre_tokenizer: object; normalizer?: object }> = {
    'shaped like V2: newlines, letters, punctuation, white space at the end, CJK, single digits': {
      pre_tokenizer: sequence(
        split('[\\r\\n]'),
        split('\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+'),
        split('\\s?[!-/:-~！-／：-～‘-‟　-。]+'),
        split('\\s+$'),
        split('[一-龥ࠀ-一가-퟿]+'),
        { type: 'Digits', individual_digits: true },
        byteLevel,
      ),
    },
    'digits in runs': { pre_tokenizer: sequence({ type: 'Digits', individual_digits: false }, byteLevel) },
    'GPT-2': { pre_tokenizer: { ...byteLevel, use_regex: true } },
    'GPT-2 with a space in front': { pre_tokenizer: { ...byteLevel, use_regex: true, add_prefix_space: true } },
    'split, then a space in front of each piece': {
      pre_tokenizer: sequence(split('\\p{L}+'), { ...byteLevel, add_prefix_space: true }),
    },
    'GPT-4': {
      pre_tokenizer: sequence(
        split(
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        ),
        byteLevel,
      ),
    },
    'a literal pattern': {
      pre_tokenizer: sequence(
        { type: 'Split', pattern: { String: '. ' }, behavior: 'Isolated', invert: false },
        byteLevel,
      ),
    },
    NFC: { pre_tokenizer: byteLevel, normalizer: { type: 'Sequence', normalizers: [{ type: 'NFC' }] } },
    NFKC: { pre_tokenizer: { ...byteLevel, use_regex: true }, normalizer: { type: 'NFKC' } },
  };
  const base = v3FirstMerges();

  test.each(Object.keys(variants))('%s', async (name) => {
    const json = JSON.stringify({ ...base, ...variants[name] });
    expect(await differences(Tokenizer.fromJson(json), nativeFrom(json), texts)).toEqual([]);
  });
});

describe('added tokens', () => {
  const token = (id: number, content: string, flags: object = {}) => ({
    id,
    content,
    special: true,
    normalized: false,
    single_word: false,
    lstrip: false,
    rstrip: false,
    ...flags,
  });

  test('white space swallowed on either side, whole words only, longest first, before and after normalization', async () => {
    const added_tokens = [
      token(265, '<l>', { lstrip: true }),
      token(266, '<r>', { rstrip: true }),
      token(267, '<both>', { lstrip: true, rstrip: true }),
      token(268, 'word', { single_word: true }),
      token(269, '<a>'),
      token(270, '<a>b'),
      token(271, '<n>', { special: false, normalized: true }),
      token(272, 'né', { special: false, normalized: true }),
    ];
    const json = smallJson({ root: { added_tokens, normalizer: { type: 'NFC' } } });
    const pieces = [
      '<l>',
      '<r>',
      '<both>',
      'word',
      '<a>',
      '<a>b',
      '<n>',
      'né',
      'ne\u0301',
      ' ',
      '  ',
      '\n',
      'x',
      '_',
      '1',
      'ä',
      '<',
      '>',
      'hello',
      '.',
    ];
    const random = seeded(5);
    const texts = Array.from({ length: 1500 }, () =>
      Array.from({ length: 1 + Math.floor(random() * 9) }, () => pieces[Math.floor(random() * pieces.length)]).join(''),
    );
    expect(await differences(Tokenizer.fromJson(json), nativeFrom(json), texts)).toEqual([]);
  });

  test('whole words first, when the model says so', async () => {
    const json = smallJson({ model: { ignore_merges: true, merges: ['h e'] } });
    const texts = ['hello', 'hell', 'he', 'hello world', ' wor', '<s>', 'hehello'];
    expect(await differences(Tokenizer.fromJson(json, SMALL_CONFIG), nativeFrom(json), texts)).toEqual([]);
  });
});

// Tokenizers that ship with the package: every one there is.
const models = join(__dirname, '..', '..', 'models');
const shipped = existsSync(models)
  ? readdirSync(models).filter((name) => existsSync(join(models, name, 'tokenizer.json')))
  : [];
if (shipped.length > 0) {
  describe('shipped tokenizers', () => {
    test.each(shipped)('%s', async (name) => {
      const ours = await Tokenizer.load(join(models, name));
      const native = Native.fromFile(join(models, name, 'tokenizer.json'));
      const random = seeded(11);
      const texts = [
        ...CORPUS,
        ...Array.from({ length: 300 }, () => randomText(random, 1 + Math.floor(random() * 60))),
      ];
      expect(await differences(ours, native, texts)).toEqual([]);
      for (const text of texts) expect(ours.decode(ours.encode(text, { special: false }))).toBe(wellFormed(text));
    });
  });
}
