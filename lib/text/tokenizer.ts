// tokenizer.ts - the tokenizer of a checkpoint: byte-level BPE as tokenizer.json describes it.
import { describe, invalidArg, MlaError } from '../errors';
import { type AddedToken, AddedTokenFinder, type Segment } from './added-tokens';
import { EncodeThread } from './encode-thread';
import { type EncodeParts, Encoder, lengthOf } from './encoder';
import { MAX_INLINE_LENGTH, MAX_PROMPT_BYTES, MAX_TOKENIZER_BYTES, MAX_TOKENIZER_CONFIG_BYTES } from './limits';
import { TokenTable } from './token-table';
import { readFolderFile } from './tokenizer-files';
import { parseTokenizerSpec, type TokenizerSpec } from './tokenizer-spec';

export interface EncodeOptions {
  /**
   * Whether the spelling of an added token, such as `<｜User｜>`, becomes that token. Default true. With false the text is only
   * text: no id of an added token can come out.
   */
  special?: boolean;
  /** Whether to put BOS first, unless the text already starts with it. Default false. */
  bos?: boolean;
}

export interface DecodeOptions {
  /** Leave out tokens marked special. Default true. DeepSeek's role tokens are not marked, and so are kept. */
  skipSpecial?: boolean;
}

/** Text to token ids and back. Load one per model; `dispose` it to end its worker thread. */
export class Tokenizer {
  private readonly encoder: Encoder;
  private readonly table: TokenTable;
  private readonly added: AddedTokenFinder;
  private readonly thread: EncodeThread;
  private readonly vocab: ReadonlyMap<string, number>;
  private readonly addedIds: ReadonlyMap<string, number>;

  /** Number of ids: the highest id plus one. A model's logits may have more columns; those ids decode to ''. */
  readonly vocabSize: number;
  /** Id of bos_token, or null. */
  readonly bosId: number | null;
  /** Ids that end a text, as far as tokenizer_config.json says (generation_config.json may name more). */
  readonly eosIds: readonly number[];
  /** Whether tokenizer_config.json asks for BOS in front of a raw prompt. tokenizer.json alone never does. */
  readonly addsBos: boolean;
  /** Texts of bos_token, eos_token, pad_token and unk_token, for templates. */
  readonly named: TokenizerSpec['named'];
  /** All added tokens. */
  readonly addedTokens: readonly AddedToken[];

  private constructor(source: SharedArrayBuffer, config: string) {
    const spec = parseTokenizerSpec(source, config);
    this.table = new TokenTable(spec.vocabSize, spec.vocab, spec.added);
    this.encoder = new Encoder(spec, this.table);
    this.added = new AddedTokenFinder(spec.added);
    this.thread = new EncodeThread({ source, config });
    this.vocab = spec.vocab;
    this.addedIds = new Map(spec.added.map((token) => [token.content, token.id]));
    this.vocabSize = spec.vocabSize;
    this.named = spec.named;
    this.addedTokens = spec.added;
    this.addsBos = spec.addBos;
    this.bosId = this.namedId('bos_token');
    const eos = this.namedId('eos_token');
    this.eosIds = eos === null ? [] : [eos];
  }

  /**
   * Reads tokenizer.json and, where it exists, tokenizer_config.json of a checkpoint folder.
   * @throws ERR_TOKENIZER when there is no tokenizer.json, or it is broken or of a kind that is not supported
   */
  static async load(dir: string): Promise<Tokenizer> {
    if (typeof dir !== 'string' || dir === '') throw invalidArg('dir', 'a folder', dir);
    const [file, config] = await Promise.all([
      readFolderFile(dir, 'tokenizer.json', MAX_TOKENIZER_BYTES, 'ERR_TOKENIZER'),
      readFolderFile(dir, 'tokenizer_config.json', MAX_TOKENIZER_CONFIG_BYTES, 'ERR_TOKENIZER'),
    ]);
    if (file === null) {
      const tiktoken = await readFolderFile(dir, 'tiktoken.model', MAX_TOKENIZER_BYTES, 'ERR_TOKENIZER');
      const found = tiktoken === null ? '' : ' It has tiktoken.model, which is not supported yet.';
      throw new MlaError(
        'ERR_TOKENIZER',
        `${dir} has no tokenizer.json.${found} Token ids still work: pass an array of ids as the prompt, or --tokens on the command line.`,
      );
    }
    return Tokenizer.fromJson(file, config?.toString('utf8'));
  }

  /**
   * Makes a tokenizer from the contents of the two files.
   * @param file tokenizer.json
   * @param config tokenizer_config.json; without it no token has a role and no BOS is added
   * @throws ERR_TOKENIZER as `load` does
   */
  static fromJson(file: string | Uint8Array, config = '{}'): Tokenizer {
    if (typeof file !== 'string' && !(file instanceof Uint8Array))
      throw invalidArg('file', 'the text or bytes of tokenizer.json', file);
    if (typeof config !== 'string') throw invalidArg('config', 'the text of tokenizer_config.json', config);
    const bytes = typeof file === 'string' ? Buffer.from(file, 'utf8') : file;
    if (bytes.length > MAX_TOKENIZER_BYTES) {
      throw new MlaError(
        'ERR_TOKENIZER',
        `tokenizer.json: ${bytes.length} bytes; at most ${MAX_TOKENIZER_BYTES} are read.`,
      );
    }
    // Shared, so that the worker thread can read the same bytes without a copy.
    const source = new SharedArrayBuffer(bytes.length);
    new Uint8Array(source).set(bytes);
    return new Tokenizer(source, config);
  }

  /**
   * Encodes a text on the calling thread: about 0.1 ms, and up to 0.6 ms per KB. Use `encodeAsync` for texts of unknown length.
   * @throws ERR_INVALID_ARG for what is not a text or is over 8 MiB; ERR_TOKENIZER when a pattern gives up on it
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    checkText(text);
    const { special, bos } = readEncodeOptions(options);
    return this.withBos(this.encoder.encode([text], special), bos);
  }

  /** As `encode`, but a long text is encoded in a worker thread. */
  async encodeAsync(text: string, options: EncodeOptions = {}): Promise<number[]> {
    checkText(text);
    const { special, bos } = readEncodeOptions(options);
    return this.withBos(await this.encodeAnywhere([text], special), bos);
  }

  /** Encodes texts as only text, apart from each other; ids between them stay. This is how scaffold and content are joined. */
  async encodeParts(parts: EncodeParts): Promise<number[]> {
    if (!Array.isArray(parts)) throw invalidArg('parts', 'an array of texts and ids', parts);
    parts.forEach((part: unknown, index) => {
      if (typeof part === 'number') checkId(part, `parts[${index}]`);
      else checkText(part, `parts[${index}]`);
    });
    const length = lengthOf(parts);
    if (length > MAX_PROMPT_BYTES) throw invalidArg('parts', `at most ${MAX_PROMPT_BYTES} characters in all`, length);
    return this.encodeAnywhere(parts, false);
  }

  /** Encodes a prompt that the model is to continue: with BOS where tokenizer_config.json asks for it. */
  async encodePrompt(text: string, options: Pick<EncodeOptions, 'special'> = {}): Promise<number[]> {
    return this.encodeAsync(text, { ...checkOptions(options), bos: this.addsBos });
  }

  /**
   * The text of token ids. Ids without a token give nothing; bytes that are not UTF-8 give U+FFFD.
   * @throws ERR_INVALID_ARG for an id that is not an integer of 0 or more
   */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const { skipSpecial = true } = checkOptions(options);
    if (typeof ids !== 'object' || ids === null || !Number.isInteger(ids.length))
      throw invalidArg('ids', 'an array of ids', ids);
    for (let i = 0; i < ids.length; i++) checkId(ids[i], `ids[${i}]`);
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(this.table.join(ids, skipSpecial));
  }

  /** The bytes of one token: a view, not to be written to; empty for an id without a token. */
  idToBytes(id: number): Uint8Array {
    return this.table.bytesOf(id);
  }

  /** The text of a token whose bytes are whole characters by themselves, '' for an id without a token; null for the others. */
  idToText(id: number): string | null {
    return this.table.textOf(id);
  }

  /** The id of a token as tokenizer.json writes it (added tokens as they are, others in the byte-level alphabet), if there is one. */
  tokenToId(token: string): number | undefined {
    return this.addedIds.get(token) ?? this.vocab.get(token);
  }

  /** Whether a token is marked special, and so left out by default when decoding. */
  isSpecial(id: number): boolean {
    return this.table.isSpecial(id);
  }

  /** Whether an id belongs to an added token: the ids that content never yields. */
  isAdded(id: number): boolean {
    return this.table.isAdded(id);
  }

  /** Cuts a text at the spellings of added tokens; what is between stays text. */
  splitAtAddedTokens(text: string): Segment[] {
    return this.added.split(text);
  }

  /** Ends the worker thread, if there is one. The tokenizer stays usable; calling it twice does no harm. */
  dispose(): Promise<void> {
    return this.thread.dispose();
  }

  private async encodeAnywhere(parts: EncodeParts, special: boolean): Promise<number[]> {
    if (lengthOf(parts) <= MAX_INLINE_LENGTH) return this.encoder.encode(parts, special);
    return this.thread.encode(parts, special);
  }

  private withBos(ids: number[], bos: boolean): number[] {
    if (!bos || this.bosId === null || ids[0] === this.bosId) return ids;
    ids.unshift(this.bosId);
    return ids;
  }

  private namedId(name: 'bos_token' | 'eos_token'): number | null {
    const text = this.named[name];
    if (text === undefined) return null;
    const id = this.tokenToId(text);
    if (id === undefined) {
      throw new MlaError(
        'ERR_TOKENIZER',
        `tokenizer_config.json: ${name} ${describe(text)} is not a token of tokenizer.json.`,
      );
    }
    return id;
  }
}

function checkId(id: unknown, name: string): void {
  if (!Number.isInteger(id) || (id as number) < 0) throw invalidArg(name, 'a token id (an integer, 0 or more)', id);
}

function checkOptions<T extends object>(options: T): T {
  if (typeof options !== 'object' || options === null) throw invalidArg('options', 'an object', options);
  return options;
}

function checkText(text: unknown, name = 'text'): asserts text is string {
  if (typeof text !== 'string') throw invalidArg(name, 'a string', text);
  // A UTF-16 unit is at least one byte, so only texts near the limit are counted exactly.
  if (
    text.length > MAX_PROMPT_BYTES ||
    (text.length > MAX_PROMPT_BYTES / 3 && Buffer.byteLength(text) > MAX_PROMPT_BYTES)
  ) {
    throw invalidArg(name, `at most ${MAX_PROMPT_BYTES} bytes of UTF-8 (8 MiB)`, text);
  }
}

function readEncodeOptions(options: EncodeOptions): { special: boolean; bos: boolean } {
  const { special = true, bos = false } = checkOptions(options);
  if (typeof special !== 'boolean') throw invalidArg('special', 'true or false', special);
  if (typeof bos !== 'boolean') throw invalidArg('bos', 'true or false', bos);
  return { special, bos };
}
