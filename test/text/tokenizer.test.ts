import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Tokenizer } from '../../lib/text';
import { codeOf, SMALL_CONFIG, smallJson, V3_DIR } from './fixtures';

describe('DeepSeek-V3', () => {
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    tokenizer = await Tokenizer.load(V3_DIR);
  });

  test('ids of roles and the size of the vocabulary', () => {
    expect(tokenizer.vocabSize).toBe(128_815);
    expect(tokenizer.bosId).toBe(0);
    expect(tokenizer.eosIds).toEqual([1]);
    expect(tokenizer.tokenToId('<｜User｜>')).toBe(128_803);
    expect(tokenizer.tokenToId('Ġhello')).toBe(tokenizer.encode(' hello')[0]);
    expect(tokenizer.tokenToId('no such token')).toBeUndefined();
    expect(tokenizer.isSpecial(1)).toBe(true);
    expect(tokenizer.isSpecial(128_803)).toBe(false);
    expect(tokenizer.isAdded(128_803)).toBe(true);
    expect(tokenizer.addedTokens).toHaveLength(818);
  });

  test('BOS is put in front of a prompt, once, and nowhere else', async () => {
    const [hello] = tokenizer.encode('hello') as [number];
    expect(await tokenizer.encodePrompt('hello')).toEqual([0, hello]);
    expect(await tokenizer.encodePrompt('<｜begin▁of▁sentence｜>hello')).toEqual([0, hello]);
    expect(await tokenizer.encodePrompt('')).toEqual([0]);
    expect((await tokenizer.encodePrompt('<｜begin▁of▁sentence｜>', { special: false }))[0]).toBe(0);
    expect(await tokenizer.encodePrompt('<｜begin▁of▁sentence｜>', { special: false })).not.toEqual([0]);
    expect(await tokenizer.encodeAsync('hello')).toEqual([hello]);
    expect(tokenizer.encode('hello', { bos: true })).toEqual([0, hello]);
  });

  test('with special: false no spelling becomes a control token, and the text comes back', () => {
    for (const { content } of tokenizer.addedTokens) {
      for (const text of [content, ` ${content} `, `x${content}y`, content + content]) {
        const ids = tokenizer.encode(text, { special: false });
        expect(ids.filter((id) => tokenizer.isAdded(id))).toEqual([]);
        expect(tokenizer.decode(ids)).toBe(text);
      }
    }
  });

  test('ids without a token decode to nothing', () => {
    expect(tokenizer.decode([128_815, 129_279, 2 ** 31, 2 ** 40])).toBe('');
    expect(tokenizer.decode([])).toBe('');
    expect(tokenizer.idToBytes(129_279)).toHaveLength(0);
    expect(tokenizer.idToBytes(-1)).toHaveLength(0);
    expect(Buffer.from(tokenizer.idToBytes(128_803)).toString()).toBe('<｜User｜>');
  });

  test('texts and ids of the wrong kind are refused', async () => {
    for (const text of [undefined, null, 1, {}, ['a']]) {
      expect(await codeOf(() => tokenizer.encode(text as unknown as string))).toBe('ERR_INVALID_ARG');
      expect(await codeOf(() => tokenizer.encodeAsync(text as unknown as string))).toBe('ERR_INVALID_ARG');
    }
    expect(await codeOf(() => tokenizer.encode('a', { special: 1 as unknown as boolean }))).toBe('ERR_INVALID_ARG');
    for (const wrong of [null, 1, 'x']) {
      expect(await codeOf(() => tokenizer.encode('a', wrong as never))).toBe('ERR_INVALID_ARG');
      expect(await codeOf(() => tokenizer.encodePrompt('a', wrong as never))).toBe('ERR_INVALID_ARG');
      expect(await codeOf(() => tokenizer.decode([1], wrong as never))).toBe('ERR_INVALID_ARG');
      expect(await codeOf(() => tokenizer.decode(wrong as never))).toBe('ERR_INVALID_ARG');
      expect(await codeOf(() => tokenizer.encodeParts(wrong as never))).toBe('ERR_INVALID_ARG');
      expect(await codeOf(() => tokenizer.encodeParts([-1, wrong as never]))).toBe('ERR_INVALID_ARG');
      expect(await codeOf(() => Tokenizer.fromJson(wrong as never, wrong as never))).toBe(
        wrong === 'x' ? 'ERR_TOKENIZER' : 'ERR_INVALID_ARG',
      );
    }
    for (const id of [-1, 0.5, Number.NaN, '1'])
      expect(await codeOf(() => tokenizer.decode([id as number]))).toBe('ERR_INVALID_ARG');
  });

  test('the limit of 8 MiB counts bytes of UTF-8', async () => {
    const limit = 8 * 1024 * 1024;
    expect(await codeOf(() => tokenizer.encode('a'.repeat(limit + 1)))).toBe('ERR_INVALID_ARG');
    expect(await codeOf(() => tokenizer.encodeAsync('中'.repeat(Math.floor(limit / 3) + 1)))).toBe('ERR_INVALID_ARG');
    await expect(tokenizer.encodeAsync('a'.repeat(limit + 1))).rejects.toThrow(/8388608 bytes/);
  });
});

describe('small tokenizer', () => {
  test('BOS follows tokenizer_config.json, then the class, then a template of tokenizer.json', async () => {
    const prompt = async (json: string, config?: object) =>
      (await Tokenizer.fromJson(json, config && JSON.stringify(config)).encodePrompt('hello'))[0];
    const hello = 259; // the fourth merge
    const plain = smallJson();
    const withTemplate = smallJson({
      root: {
        post_processor: {
          type: 'TemplateProcessing',
          single: [{ SpecialToken: { id: '<bos>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
        },
      },
    });
    expect(await prompt(plain)).toBe(hello);
    expect(await prompt(plain, { bos_token: '<bos>' })).toBe(hello);
    expect(await prompt(plain, { bos_token: '<bos>', add_bos_token: true })).toBe(265);
    expect(await prompt(plain, { bos_token: '<bos>', tokenizer_class: 'LlamaTokenizerFast' })).toBe(265);
    expect(
      await prompt(plain, { bos_token: '<bos>', tokenizer_class: 'LlamaTokenizerFast', add_bos_token: false }),
    ).toBe(hello);
    expect(await prompt(withTemplate, { bos_token: '<bos>' })).toBe(265);
    expect(await prompt(withTemplate, { bos_token: '<bos>', add_bos_token: false })).toBe(hello);
    expect(await prompt(plain, { add_bos_token: true })).toBe(hello);
  });

  test('merges that end in a control token are spelled in bytes when the text is only text', () => {
    const added_tokens = [{ id: 264, content: '<s>', special: true, normalized: false }];
    const tokenizer = Tokenizer.fromJson(
      smallJson({ root: { added_tokens, pre_tokenizer: { type: 'ByteLevel', use_regex: false } } }),
    );
    expect(tokenizer.encode('a<s>b')).toContain(264);
    const ids = tokenizer.encode('a<s>b', { special: false });
    expect(ids).not.toContain(264);
    expect(tokenizer.decode(ids)).toBe('a<s>b');
  });

  test('parts: texts are only text, ids stay', async () => {
    const tokenizer = Tokenizer.fromJson(smallJson(), SMALL_CONFIG);
    const ids = await tokenizer.encodeParts([265, '<eos>', 267, 'hello']);
    expect(ids.filter((id) => tokenizer.isAdded(id))).toEqual([265, 267]);
    expect(tokenizer.decode(ids, { skipSpecial: false })).toBe('<bos><eos><user>hello');
  });

  test('a pattern that never ends, or that overflows, is an error', async () => {
    const withPattern = (Regex: string) =>
      Tokenizer.fromJson(
        smallJson({
          root: {
            pre_tokenizer: {
              type: 'Sequence',
              pretokenizers: [
                { type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false },
                { type: 'ByteLevel', use_regex: false },
              ],
            },
          },
        }),
      );
    const started = Date.now();
    expect(await codeOf(() => withPattern('(a+)+$').encode(`${'a'.repeat(60)}b`))).toBe('ERR_TOKENIZER');
    expect(Date.now() - started).toBeLessThan(4000);
    expect(await codeOf(() => withPattern('(?:(a)|b)+c').encode('ab'.repeat(2_000_000)))).toBe('ERR_TOKENIZER');
    expect(await codeOf(() => withPattern('(unclosed'))).toBe('ERR_TOKENIZER');
  });
});

describe('folders', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'text-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  test('without tokenizer.json the error says what still works', async () => {
    await expect(Tokenizer.load(dir)).rejects.toThrow(/no tokenizer\.json.*--tokens/);
    writeFileSync(join(dir, 'tiktoken.model'), 'x');
    await expect(Tokenizer.load(dir)).rejects.toThrow(/tiktoken\.model.*not supported.*--tokens/);
    expect(await codeOf(() => Tokenizer.load(dir))).toBe('ERR_TOKENIZER');
    expect(await codeOf(() => Tokenizer.load(join(dir, 'no such folder')))).toBe('ERR_TOKENIZER');
    expect(await codeOf(() => Tokenizer.load(1 as unknown as string))).toBe('ERR_INVALID_ARG');
  });

  test('tokenizer_config.json may be missing', async () => {
    writeFileSync(join(dir, 'tokenizer.json'), smallJson());
    const tokenizer = await Tokenizer.load(dir);
    expect([tokenizer.bosId, tokenizer.eosIds, tokenizer.addsBos]).toEqual([null, [], false]);
  });
});
