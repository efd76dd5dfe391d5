// safetensors.ts - reads and checks the header of a safetensors file.
// Format: u64 little-endian N; N bytes of JSON {name: {dtype, shape, data_offsets: [a, b)}, "__metadata__"?: {string: string}};
// then the data, which the tensors tile from its first byte to the end of the file with no hole and no overlap.
// Every rule is checked before anything but the header is allocated, and every refusal names its rule.
import type { promises } from 'node:fs';
import { invalidArg, MlaError } from '../errors';
import { closeQuietly } from '../files';
import { openRegular, readExactly, regularStat } from './files';
import { JsonReader } from './json';
import { quoted, shapeText } from './messages';

/** Bytes of one element of each dtype that is understood. */
export const DTYPE_BYTES = {
  BF16: 2,
  F16: 2,
  F32: 4,
  F64: 8,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  I8: 1,
  U8: 1,
  I16: 2,
  U16: 2,
  I32: 4,
  U32: 4,
  I64: 8,
  U64: 8,
  BOOL: 1,
} as const;

/** A dtype as safetensors spells it. */
export type SafetensorsDtype = keyof typeof DTYPE_BYTES;

const DTYPES = new Map<string, number>(Object.entries(DTYPE_BYTES));
const SUB_BYTE = new Set(['F4', 'F6_E2M3', 'F6_E3M2', 'I4', 'U4', 'U2', 'U1', 'I2']);

/** Largest JSON header of the format. */
export const MAX_HEADER_BYTES = 100_000_000;
/** Most tensors in one file. The largest published models have about 200,000 in all their files together. */
export const MAX_TENSORS = 500_000;
/** Most dimensions of a tensor. */
export const MAX_RANK = 32;

/** The rules of the format, as they appear in messages. */
export type SafetensorsRule =
  | 'file-size'
  | 'header-size'
  | 'header-in-file'
  | 'header-start'
  | 'header-utf8'
  | 'header-json'
  | 'duplicate-key'
  | 'tensor-count'
  | 'metadata'
  | 'entry'
  | 'dtype'
  | 'sub-byte-dtype'
  | 'shape'
  | 'rank'
  | 'shape-product'
  | 'data-offsets'
  | 'offsets-order'
  | 'offsets-size'
  | 'offsets-in-file'
  | 'overlap'
  | 'hole'
  | 'data-end';

/** One tensor of a file. */
export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** First byte, counted from the start of the file. Not aligned: old writers do not pad. */
  readonly offset: number;
  readonly bytes: number;
}

/** A header that obeys every rule. */
export interface SafetensorsHeader {
  /** Bytes of the whole file. */
  readonly fileSize: number;
  /** Where the data begins: 8 + length of the JSON. */
  readonly dataOffset: number;
  readonly metadata: ReadonlyMap<string, string>;
  /** By name, in the order of the header. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
}

/**
 * Reads the header of a file and checks every rule of the format against the file's length.
 * @param file a path (links are followed) or an open handle, which stays open
 * @throws ERR_SAFETENSORS naming file, tensor, rule, found and expected; ERR_FILE when it cannot be read
 */
export async function readSafetensorsHeader(file: string | promises.FileHandle): Promise<SafetensorsHeader> {
  if (typeof file === 'string') {
    const open = await openRegular(file, true);
    try {
      return await readHeaderOf(open.fd, open.size, file);
    } finally {
      await closeQuietly(open.fd);
    }
  }
  if (typeof file !== 'object' || file === null || typeof file.fd !== 'number') {
    throw invalidArg('file', 'a path or an open FileHandle', file);
  }
  const name = `file descriptor ${file.fd}`;
  return readHeaderOf(file.fd, Number((await regularStat(file.fd, name)).size), name);
}

/** The same for an open descriptor of a regular file of `size` bytes; `name` is for messages. */
export async function readHeaderOf(fd: number, size: number, name: string): Promise<SafetensorsHeader> {
  if (size < 8) throw broken(name, 'file-size', null, `${size} bytes`, 'at least 8');
  // One byte more than the length: a file that is not safetensors at all is known before its header is allocated.
  const start = await readExactly(fd, name, 0, Math.min(9, size));
  const length = headerLength(start, size, name);
  return parseSafetensorsHeader(await readExactly(fd, name, 8, length), size, name);
}

/** Checks the first bytes of a file (8, or 9 where the file has them); gives the length of the JSON. */
export function headerLength(start: Buffer, fileSize: number, name: string): number {
  const length = start.readBigUInt64LE(0);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw broken(name, 'header-size', null, `a header of ${length} bytes`, `at most ${MAX_HEADER_BYTES}`);
  }
  if (length > BigInt(fileSize - 8)) {
    const left = `at most the ${fileSize - 8} bytes that follow in the file`;
    throw broken(name, 'header-in-file', null, `a header of ${length} bytes`, left);
  }
  if (length === 0n || start[8] !== 0x7b) {
    const found = length === 0n ? 'an empty header' : `byte 0x${(start[8] ?? 0).toString(16).padStart(2, '0')}`;
    throw broken(name, 'header-start', null, found, '"{" as the first byte of the header');
  }
  return Number(length);
}

/** Checks the JSON of a header against the file's size. Exported for tests; {@link readSafetensorsHeader} is the way in. */
export function parseSafetensorsHeader(
  json: Buffer,
  fileSize: number,
  name: string,
  maxTensors = MAX_TENSORS,
): SafetensorsHeader {
  const dataOffset = 8 + json.length;
  const dataBytes = fileSize - dataOffset;
  if (json[0] !== 0x7b) throw broken(name, 'header-start', null, 'another byte', '"{" as the first byte of the header');
  const reader = new JsonReader(json, (text, at, kind) => {
    return brokenRule(name, kind === 'utf8' ? 'header-utf8' : 'header-json', ` at byte ${at} of the header`, text);
  });
  const tensors = new Map<string, SafetensorsEntry>();
  let metadata: Map<string, string> | null = null;

  reader.expect(0x7b, 'at the start');
  if (!reader.take(0x7d)) {
    do {
      const key = reader.string('the name of a tensor');
      reader.expect(0x3a, 'after a name');
      if (key === '__metadata__') {
        if (metadata) throw broken(name, 'duplicate-key', null, '"__metadata__" twice', 'each key once');
        metadata = readMetadata(reader, name);
      } else {
        if (tensors.has(key)) throw broken(name, 'duplicate-key', key, 'the name twice', 'each name once');
        if (tensors.size === maxTensors) {
          throw broken(name, 'tensor-count', null, `more than ${maxTensors} tensors`, 'fewer');
        }
        tensors.set(key, readEntry(reader, name, key, dataOffset, dataBytes));
      }
    } while (reader.take(0x2c));
    reader.expect(0x7d, 'or "," after an entry');
  }
  reader.end();
  checkTiling([...tensors.values()], dataOffset, fileSize, name);
  return { fileSize, dataOffset, metadata: metadata ?? new Map(), tensors };
}

function readMetadata(reader: JsonReader, name: string): Map<string, string> {
  const metadata = new Map<string, string>();
  const text = (what: string): string => {
    if (reader.peek() !== 0x22) throw broken(name, 'metadata', null, reader.describeNext(), what);
    return reader.string();
  };
  if (!reader.take(0x7b)) {
    throw broken(name, 'metadata', null, `"__metadata__" is ${reader.describeNext()}`, 'an object of strings');
  }
  if (reader.take(0x7d)) return metadata;
  do {
    const key = text('a string as key in "__metadata__"');
    reader.expect(0x3a, 'after a key');
    if (metadata.has(key)) {
      throw broken(name, 'duplicate-key', null, `${quoted(key)} twice in "__metadata__"`, 'each key once');
    }
    if (metadata.size === MAX_TENSORS) throw broken(name, 'metadata', null, `more than ${MAX_TENSORS} keys`, 'fewer');
    metadata.set(key, text(`a string as the value of ${quoted(key)} in "__metadata__"`));
  } while (reader.take(0x2c));
  reader.expect(0x7d, 'or "," in "__metadata__"');
  return metadata;
}

function readEntry(
  reader: JsonReader,
  file: string,
  name: string,
  dataOffset: number,
  dataBytes: number,
): SafetensorsEntry {
  let dtype: string | undefined;
  let shape: number[] | undefined;
  let offsets: number[] | undefined;
  const expected = 'an object {dtype, shape, data_offsets}';
  if (!reader.take(0x7b)) throw broken(file, 'entry', name, reader.describeNext(), expected);
  if (!reader.take(0x7d)) {
    do {
      const key = reader.string('a key of a tensor');
      reader.expect(0x3a, 'after a key');
      const twice = key === 'dtype' ? dtype : key === 'shape' ? shape : key === 'data_offsets' ? offsets : undefined;
      if (twice !== undefined) throw broken(file, 'duplicate-key', name, `${quoted(key)} twice`, 'each key once');
      if (key === 'dtype') {
        if (reader.peek() !== 0x22) throw broken(file, 'dtype', name, reader.describeNext(), 'a string');
        dtype = reader.string();
      } else if (key === 'shape') {
        shape = readIntegers(reader, file, name, 'shape', MAX_RANK);
      } else if (key === 'data_offsets') {
        offsets = readIntegers(reader, file, name, 'data-offsets', 2);
      } else {
        throw broken(file, 'entry', name, `the key ${quoted(key)}`, expected);
      }
    } while (reader.take(0x2c));
    reader.expect(0x7d, 'or "," in a tensor');
  }
  if (dtype === undefined) throw broken(file, 'entry', name, 'no dtype', expected);
  if (shape === undefined) throw broken(file, 'entry', name, 'no shape', expected);
  if (offsets === undefined) throw broken(file, 'entry', name, 'no data_offsets', expected);
  const size = DTYPES.get(dtype);
  if (size === undefined) {
    if (SUB_BYTE.has(dtype)) throw broken(file, 'sub-byte-dtype', name, dtype, 'elements of whole bytes');
    throw broken(file, 'dtype', name, quoted(dtype), `one of ${[...DTYPES.keys()].join(' ')}`);
  }
  let bytes = size;
  for (const n of shape) {
    bytes *= n;
    if (bytes > Number.MAX_SAFE_INTEGER) {
      throw broken(file, 'shape-product', name, shapeText(shape), 'fewer than 2^53 bytes');
    }
  }
  const [a, b] = offsets as [number, number];
  if (offsets.length !== 2) throw broken(file, 'data-offsets', name, `${offsets.length} numbers`, '[begin, end]');
  if (b < a) throw broken(file, 'offsets-order', name, `[${a}, ${b}]`, 'an end that is not before the beginning');
  if (b > dataBytes) {
    throw broken(file, 'offsets-in-file', name, `[${a}, ${b}]`, `an end within the ${dataBytes} bytes of data`);
  }
  if (b - a !== bytes) {
    const why = `${bytes} (${dtype} ${shapeText(shape)})`;
    throw broken(file, 'offsets-size', name, `[${a}, ${b}], ${b - a} bytes`, why);
  }
  return { name, dtype: dtype as SafetensorsDtype, shape, offset: dataOffset + a, bytes };
}

/** An array of at most `most` non-negative integers below 2^53. */
function readIntegers(
  reader: JsonReader,
  file: string,
  name: string,
  rule: 'shape' | 'data-offsets',
  most: number,
): number[] {
  const what = 'an array of integers from 0 to 2^53 - 1';
  if (!reader.take(0x5b)) throw broken(file, rule, name, reader.describeNext(), what);
  const items: number[] = [];
  if (reader.take(0x5d)) return items;
  do {
    if (!reader.uint()) throw broken(file, rule, name, reader.describeNext(), what);
    if (items.length === most) {
      if (rule === 'shape') throw broken(file, 'rank', name, `more than ${most} dimensions`, `at most ${most}`);
      throw broken(file, rule, name, 'more than 2 numbers', '[begin, end]');
    }
    items.push(reader.integer);
  } while (reader.take(0x2c));
  if (!reader.take(0x5d)) throw broken(file, rule, name, reader.describeNext(), 'an integer, "," or "]"');
  return items;
}

/** The tensors must follow each other without hole or overlap from the first byte of data to the end of the file. */
function checkTiling(entries: SafetensorsEntry[], dataOffset: number, fileSize: number, file: string): void {
  // An empty tensor sorts before the one that begins at the same byte.
  entries.sort((x, y) => x.offset - y.offset || x.bytes - y.bytes);
  let end = dataOffset;
  for (const { name, offset, bytes } of entries) {
    const found = `a beginning at data byte ${offset - dataOffset}`;
    if (offset < end) throw broken(file, 'overlap', name, found, `${end - dataOffset}, where the one before it ends`);
    if (offset > end) throw broken(file, 'hole', name, found, `${end - dataOffset}, where the one before it ends`);
    end = offset + bytes;
  }
  if (end !== fileSize) {
    const found = `tensors that end at byte ${end} of the file`;
    throw broken(file, 'data-end', entries.at(-1)?.name ?? null, found, `${fileSize}, the end of the file`);
  }
}

function broken(file: string, rule: SafetensorsRule, tensor: string | null, found: string, expected: string): MlaError {
  const where = tensor === null ? '' : ` by tensor ${quoted(tensor)}`;
  return brokenRule(file, rule, where, `found ${found}, expected ${expected}`);
}

function brokenRule(file: string, rule: SafetensorsRule, where: string, what: string): MlaError {
  return new MlaError('ERR_SAFETENSORS', `${quoted(file)}: safetensors rule ${rule} broken${where}: ${what}.`);
}
