// Each rule of the format from both sides: the broken file is refused by the name of its rule, its neighbour loads.
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { readSafetensorsHeader } from '../../lib/checkpoint';
import { headerLength, MAX_HEADER_BYTES, MAX_TENSORS, parseSafetensorsHeader } from '../../lib/checkpoint/safetensors';
import { least } from '../least';
import { cpuTime, fails, fileOf, removeFolders, tempFolder } from './support';

let dir: string;
beforeAll(() => {
  dir = tempFolder();
});
afterAll(removeFolders);

const x = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}';
const one = (entry: string): string => `{"a":${entry}}`;
const two = (first: string, second: string): string => `{"a":${first},"b":${second}}`;
const f32 = (shape: string, a: number | string, b: number | string): string =>
  `{"dtype":"F32","shape":${shape},"data_offsets":[${a},${b}]}`;
const u8 = (a: number, b: number): string => `{"dtype":"U8","shape":[${b - a}],"data_offsets":[${a},${b}]}`;
const big = '9007199254740993'; // 2^53 + 1, which a double rounds

interface Case {
  what: string;
  rule: string;
  bad: Buffer;
  good: Buffer;
  says?: RegExp;
}

const good8 = fileOf(one(x), 8);
const cases: Case[] = [
  {
    what: 'empty file',
    rule: 'file-size',
    bad: Buffer.alloc(0),
    good: fileOf('{}', 0),
    says: /found 0 bytes, expected at least 8/,
  },
  { what: '7 bytes', rule: 'file-size', bad: good8.subarray(0, 7), good: good8 },
  { what: 'no header after the length', rule: 'header-start', bad: fileOf('', 0), good: fileOf('{}', 0) },
  { what: 'header of length 0 with data', rule: 'header-start', bad: fileOf('', 3), good: good8 },
  {
    what: 'length above the limit',
    rule: 'header-size',
    bad: fileOf(one(x), 8, BigInt(MAX_HEADER_BYTES) + 1n),
    good: good8,
  },
  { what: 'length 2^64 - 1', rule: 'header-size', bad: fileOf(one(x), 8, 2n ** 64n - 1n), good: good8 },
  { what: 'length 2^63', rule: 'header-size', bad: fileOf(one(x), 8, 2n ** 63n), good: good8 },
  {
    what: 'header one byte beyond the file',
    rule: 'header-in-file',
    bad: fileOf('{}', 0, 3n),
    good: fileOf('{}', 0, 2n),
  },
  {
    what: 'a limit-sized header in a small file',
    rule: 'header-in-file',
    bad: fileOf('{}', 0, 100_000_000n),
    good: fileOf('{}', 0),
  },
  {
    what: 'space before {',
    rule: 'header-start',
    bad: fileOf(` ${one(x)}`, 8),
    good: fileOf(`${one(x)} `, 8),
    says: /byte 0x20/,
  },
  { what: 'byte order mark', rule: 'header-start', bad: fileOf(`\ufeff${one(x)}`, 8), good: good8 },
  { what: 'array at the top', rule: 'header-start', bad: fileOf('[]', 0), good: fileOf('{}', 0) },
  {
    what: 'a truncated UTF-8 sequence',
    rule: 'header-utf8',
    bad: fileOf(Buffer.from([0x7b, 0x22, 0xc3, 0x22, 0x3a]), 0),
    good: fileOf(one(x).replace('"a"', '"\u00e9"'), 8),
  },
  {
    what: 'an encoded surrogate',
    rule: 'header-utf8',
    bad: fileOf(Buffer.from('7b22eda08022', 'hex'), 0),
    good: fileOf(one(x).replace('"a"', '"\u{1f600}"'), 8),
  },
  { what: 'an overlong encoding', rule: 'header-utf8', bad: fileOf(Buffer.from('7b22c08022', 'hex'), 0), good: good8 },
  { what: 'a cut header', rule: 'header-json', bad: fileOf('{"a":{"dtype":"F32"', 0), good: good8 },
  { what: 'a trailing comma', rule: 'header-json', bad: fileOf(`{"a":${x},}`, 8), good: good8 },
  { what: 'a second value', rule: 'header-json', bad: fileOf(`${one(x)}{}`, 8), good: fileOf(`${one(x)}\n\t `, 8) },
  { what: 'NUL padding', rule: 'header-json', bad: fileOf(`${one(x)}\0`, 8), good: fileOf(`${one(x)} `, 8) },
  { what: 'single quotes', rule: 'header-json', bad: fileOf(one(x).replaceAll('"', "'"), 8), good: good8 },
  {
    what: 'a raw newline in a name',
    rule: 'header-json',
    bad: fileOf(one(x).replace('"a"', '"a\n"'), 8),
    good: fileOf(one(x).replace('"a"', '"a\\n"'), 8),
  },
  {
    what: 'a lone surrogate escape',
    rule: 'header-json',
    bad: fileOf(one(x).replace('"a"', '"\\ud800"'), 8),
    good: fileOf(one(x).replace('"a"', '"\\ud83d\\ude00"'), 8),
  },
  {
    what: 'an unknown escape',
    rule: 'header-json',
    bad: fileOf(one(x).replace('"a"', '"\\x61"'), 8),
    good: fileOf(one(x).replace('"a"', '"\\u0061"'), 8),
  },
  { what: 'a missing colon', rule: 'header-json', bad: fileOf(`{"a"${x}}`, 8), good: good8 },
  {
    what: 'two tensors of one name',
    rule: 'duplicate-key',
    bad: fileOf(`{"a":${f32('[2]', 0, 8)},"a":${f32('[2]', 8, 16)}}`, 16),
    good: fileOf(two(f32('[2]', 0, 8), f32('[2]', 8, 16)), 16),
    says: /by tensor "a"/,
  },
  {
    what: 'one name in two spellings',
    rule: 'duplicate-key',
    bad: fileOf(`{"a":${f32('[2]', 0, 8)},"\\u0061":${f32('[2]', 8, 16)}}`, 16),
    good: fileOf(`{"a":${f32('[2]', 0, 8)},"\\u0062":${f32('[2]', 8, 16)}}`, 16),
  },
  {
    what: 'a key of a tensor twice',
    rule: 'duplicate-key',
    bad: fileOf('{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    good: fileOf(one(u8(0, 1)), 1),
  },
  {
    what: 'metadata twice',
    rule: 'duplicate-key',
    bad: fileOf(`{"__metadata__":{},"__metadata__":{},"a":${x}}`, 8),
    good: fileOf(`{"__metadata__":{},"a":${x}}`, 8),
  },
  {
    what: 'a metadata key twice',
    rule: 'duplicate-key',
    bad: fileOf('{"__metadata__":{"f":"pt","f":"pt"}}', 0),
    good: fileOf('{"__metadata__":{"f":"pt","g":"pt"}}', 0),
  },
  {
    what: 'metadata that is a string',
    rule: 'metadata',
    bad: fileOf('{"__metadata__":"pt"}', 0),
    good: fileOf('{"__metadata__":{"format":"pt"}}', 0),
  },
  {
    what: 'a number in metadata',
    rule: 'metadata',
    bad: fileOf('{"__metadata__":{"n":1}}', 0),
    good: fileOf('{"__metadata__":{"n":"1"}}', 0),
    says: /value of "n"/,
  },
  {
    what: 'an object in metadata',
    rule: 'metadata',
    bad: fileOf('{"__metadata__":{"n":{}}}', 0),
    good: fileOf('{"__metadata__":{}}', 0),
  },
  { what: 'a tensor that is an array', rule: 'entry', bad: fileOf('{"a":[]}', 0), good: good8 },
  { what: 'a tensor that is empty', rule: 'entry', bad: fileOf('{"a":{}}', 0), good: good8, says: /no dtype/ },
  {
    what: 'no shape',
    rule: 'entry',
    bad: fileOf('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4),
    good: fileOf(one(f32('[]', 0, 4)), 4),
    says: /no shape/,
  },
  {
    what: 'no data_offsets',
    rule: 'entry',
    bad: fileOf('{"a":{"dtype":"F32","shape":[0]}}', 0),
    good: fileOf(one(f32('[0]', 0, 0)), 0),
    says: /no data_offsets/,
  },
  {
    what: 'an unknown key',
    rule: 'entry',
    bad: fileOf('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]}}', 1),
    good: fileOf(one(u8(0, 1)), 1),
    says: /"strides"/,
  },
  {
    what: 'a dtype that is a number',
    rule: 'dtype',
    bad: fileOf('{"a":{"dtype":1,"shape":[1],"data_offsets":[0,1]}}', 1),
    good: fileOf(one(u8(0, 1)), 1),
  },
  {
    what: 'an unknown dtype',
    rule: 'dtype',
    bad: fileOf(one(u8(0, 1).replace('U8', 'Q8')), 1),
    good: fileOf(one(u8(0, 1).replace('U8', 'I8')), 1),
    says: /found "Q8", expected one of BF16/,
  },
  { what: 'a dtype in small letters', rule: 'dtype', bad: fileOf(one(x.replace('F32', 'f32')), 8), good: good8 },
  {
    what: 'a dtype named like a method',
    rule: 'dtype',
    bad: fileOf(one(x.replace('F32', 'toString')), 8),
    good: good8,
  },
  {
    what: 'F4',
    rule: 'sub-byte-dtype',
    bad: fileOf(one(u8(0, 1).replace('U8', 'F4')), 1),
    good: fileOf(one(u8(0, 1).replace('U8', 'F8_E8M0')), 1),
    says: /found F4/,
  },
  {
    what: 'F6_E2M3',
    rule: 'sub-byte-dtype',
    bad: fileOf(one(u8(0, 3).replace('U8', 'F6_E2M3')), 3),
    good: fileOf(one(u8(0, 3).replace('U8', 'F8_E5M2')), 3),
  },
  { what: 'a shape that is a number', rule: 'shape', bad: fileOf(one(f32('2', 0, 8)), 8), good: good8 },
  {
    what: 'a negative dimension',
    rule: 'shape',
    bad: fileOf(one(f32('[-2]', 0, 8)), 8),
    good: good8,
    says: /found -2/,
  },
  { what: 'a fractional dimension', rule: 'shape', bad: fileOf(one(f32('[2.0]', 0, 8)), 8), good: good8 },
  { what: 'a dimension with an exponent', rule: 'shape', bad: fileOf(one(f32('[2e0]', 0, 8)), 8), good: good8 },
  {
    what: 'a dimension with a leading zero',
    rule: 'shape',
    bad: fileOf(one(f32('[02]', 0, 8)), 8),
    good: fileOf(one(f32('[0]', 0, 0)), 0),
  },
  { what: 'a dimension that is a string', rule: 'shape', bad: fileOf(one(f32('["2"]', 0, 8)), 8), good: good8 },
  {
    what: 'a dimension of 2^53 + 1',
    rule: 'shape',
    bad: fileOf(one(f32(`[0,${big}]`, 0, 0)), 0),
    good: fileOf(one(f32('[0,9007199254740991]', 0, 0)), 0),
  },
  { what: 'a shape not closed', rule: 'shape', bad: fileOf(one('{"dtype":"U8","shape":[1}'), 0), good: good8 },
  {
    what: '33 dimensions',
    rule: 'rank',
    bad: fileOf(one(f32(`[${'1,'.repeat(32)}1]`, 0, 4)), 4),
    good: fileOf(one(f32(`[${'1,'.repeat(31)}1]`, 0, 4)), 4),
  },
  {
    what: 'a product of 2^64 that wraps to 0',
    rule: 'shape-product',
    bad: fileOf(one(f32('[4294967296,4294967296]', 0, 0)), 0),
    good: fileOf(one(f32('[0,4294967296]', 0, 0)), 0),
  },
  {
    what: 'a product of 2^53 bytes',
    rule: 'shape-product',
    bad: fileOf(one(f32('[2251799813685248]', 0, 8)), 8),
    good: good8,
  },
  {
    what: 'one offset',
    rule: 'data-offsets',
    bad: fileOf(one('{"dtype":"U8","shape":[0],"data_offsets":[0]}'), 0),
    good: fileOf(one(u8(0, 0)), 0),
  },
  {
    what: 'three offsets',
    rule: 'data-offsets',
    bad: fileOf(one('{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}'), 0),
    good: fileOf(one(u8(0, 0)), 0),
  },
  { what: 'a negative offset', rule: 'data-offsets', bad: fileOf(one(f32('[2]', -8, 0)), 8), good: good8 },
  {
    what: 'an offset of 2^53 + 1',
    rule: 'data-offsets',
    bad: fileOf(one(f32('[2]', 0, big)), 8),
    good: good8,
    says: /9007199254740993/,
  },
  {
    what: 'an offset of 2^64',
    rule: 'data-offsets',
    bad: fileOf(one(f32('[2]', 0, '18446744073709551616')), 8),
    good: good8,
  },
  { what: 'null offsets', rule: 'data-offsets', bad: fileOf(one(f32('[2]', 0, 'null')), 8), good: good8 },
  {
    what: 'an end before the beginning',
    rule: 'offsets-order',
    bad: fileOf(one(f32('[2]', 8, 0)), 8),
    good: good8,
    says: /found \[8, 0\]/,
  },
  {
    what: 'an end one byte beyond the data',
    rule: 'offsets-in-file',
    bad: fileOf(one(u8(0, 9)), 8),
    good: fileOf(one(u8(0, 8)), 8),
  },
  { what: 'a file that was cut', rule: 'offsets-in-file', bad: good8.subarray(0, good8.length - 1), good: good8 },
  {
    what: 'one byte too few for the shape',
    rule: 'offsets-size',
    bad: fileOf(one(f32('[2]', 0, 7)), 7),
    good: good8,
    says: /7 bytes, expected 8 \(F32 \[2\]\)/,
  },
  {
    what: 'bytes for an empty shape',
    rule: 'offsets-size',
    bad: fileOf(one(f32('[0]', 0, 4)), 4),
    good: fileOf(one(f32('[]', 0, 4)), 4),
  },
  {
    what: 'a hole of one byte',
    rule: 'hole',
    bad: fileOf(two(u8(0, 4), u8(5, 9)), 9),
    good: fileOf(two(u8(0, 4), u8(4, 8)), 8),
    says: /by tensor "b"/,
  },
  { what: 'a hole at the beginning', rule: 'hole', bad: fileOf(one(u8(1, 5)), 5), good: fileOf(one(u8(0, 5)), 5) },
  {
    what: 'an overlap of one byte',
    rule: 'overlap',
    bad: fileOf(two(u8(0, 4), u8(3, 7)), 7),
    good: fileOf(two(u8(4, 8), u8(0, 4)), 8),
  },
  {
    what: 'the same bytes twice',
    rule: 'overlap',
    bad: fileOf(two(u8(0, 4), u8(0, 4)), 4),
    good: fileOf(two(u8(0, 4), u8(4, 4)), 4),
  },
  {
    what: 'an empty tensor inside another',
    rule: 'overlap',
    bad: fileOf(two(u8(0, 4), u8(2, 2)), 4),
    good: fileOf(two(u8(0, 4), u8(0, 0)), 4),
  },
  { what: 'one byte after the data', rule: 'data-end', bad: fileOf(one(x), 9), good: good8 },
  { what: 'data and no tensor', rule: 'data-end', bad: fileOf('{}', 1), good: fileOf('{}', 0) },
];

describe('the rules of the format', () => {
  test('the table is large enough', () => {
    expect(cases.length).toBeGreaterThanOrEqual(40);
    console.log(`safetensors: ${cases.length} broken files, ${new Set(cases.map((c) => c.rule)).size} rules`);
  });

  test.each(cases)('$rule: $what', async ({ rule, bad, good, says }) => {
    const file = path.join(dir, 'model.safetensors');
    fs.writeFileSync(file, bad);
    const error = await fails(
      () => readSafetensorsHeader(file),
      'ERR_SAFETENSORS',
      new RegExp(`model\\.safetensors": safetensors rule ${rule} broken.*: found .*, expected .*\\.$`),
    );
    if (says) expect(error.message).toMatch(says);
    fs.writeFileSync(file, good);
    await expect(readSafetensorsHeader(file)).resolves.toBeDefined();
  });
});

test('gives every tensor with its place in the file', async () => {
  const file = path.join(dir, 'two.safetensors');
  const header = `{"__metadata__":{"format":"pt"},"b":${f32('[1,2]', 4, 12)},"__proto__":${u8(0, 4)},"e":${u8(12, 12)}}  `;
  fs.writeFileSync(file, fileOf(header, 12));
  const { tensors, metadata, dataOffset, fileSize } = await readSafetensorsHeader(file);
  expect(dataOffset).toBe(8 + header.length);
  expect(fileSize).toBe(dataOffset + 12);
  expect([...metadata]).toEqual([['format', 'pt']]);
  expect([...tensors.values()]).toEqual([
    { name: 'b', dtype: 'F32', shape: [1, 2], offset: dataOffset + 4, bytes: 8 },
    { name: '__proto__', dtype: 'U8', shape: [4], offset: dataOffset, bytes: 4 },
    { name: 'e', dtype: 'U8', shape: [0], offset: dataOffset + 12, bytes: 0 },
  ]);
  const handle = await fs.promises.open(file);
  try {
    const again = await readSafetensorsHeader(handle);
    expect([...again.tensors.keys()]).toEqual(['b', '__proto__', 'e']);
  } finally {
    await handle.close();
  }
});

test('the largest header has 100,000,000 bytes', () => {
  const start = (length: bigint): Buffer => fileOf('{', 0, length);
  expect(headerLength(start(100_000_000n), 200_000_000, 'f')).toBe(100_000_000);
  expect(headerLength(start(100_000_000n), 100_000_008, 'f')).toBe(100_000_000);
  expect(() => headerLength(start(100_000_000n), 100_000_007, 'f')).toThrow(/rule header-in-file/);
  expect(() => headerLength(start(100_000_001n), 200_000_000, 'f')).toThrow(/rule header-size/);
});

test('every dtype has its size', () => {
  const sizes = {
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
  };
  for (const [dtype, size] of Object.entries(sizes)) {
    const header = Buffer.from(`{"a":{"dtype":"${dtype}","shape":[3],"data_offsets":[0,${3 * size}]}}`);
    const { tensors } = parseSafetensorsHeader(header, 8 + header.length + 3 * size, 'f');
    expect(tensors.get('a')).toMatchObject({ dtype, bytes: 3 * size });
  }
});

test('nothing beyond the header is allocated, and nothing for a header that cannot be one', async () => {
  const sizes: number[] = [];
  const real = Buffer.allocUnsafe;
  const spy = jest.spyOn(Buffer, 'allocUnsafe').mockImplementation((size) => {
    sizes.push(size);
    return real(size);
  });
  try {
    const file = path.join(dir, 'large.safetensors');
    // A file of 100 MB (a hole on the disk) that claims a header of 99 MB and does not begin with {.
    fs.writeFileSync(file, fileOf('[', 0, 99_000_000n));
    fs.truncateSync(file, 100_000_000);
    await fails(() => readSafetensorsHeader(file), 'ERR_SAFETENSORS', /header-start/);
    expect(Math.max(...sizes)).toBeLessThanOrEqual(9);
    // A true one with 8 GB of data.
    const header = one(f32('[2147483648]', 0, 8589934592));
    fs.writeFileSync(file, fileOf(header, 0));
    sizes.length = 0;
    fs.truncateSync(file, 8 + header.length + 8589934592);
    await readSafetensorsHeader(file);
    expect(Math.max(...sizes)).toBe(header.length);
  } finally {
    spy.mockRestore();
  }
});

test('folders, FIFOs and missing files are errors, not waits', async () => {
  await fails(() => readSafetensorsHeader(dir), 'ERR_FILE', /found a folder, expected a regular file/);
  await fails(() => readSafetensorsHeader(path.join(dir, 'none')), 'ERR_FILE', /found ENOENT/);
  await fails(() => readSafetensorsHeader('a\0b'), 'ERR_FILE', /a\\u0000b/);
  await fails(() => readSafetensorsHeader(7 as never), 'ERR_INVALID_ARG', /file: expected a path/);
  const fifo = path.join(dir, 'fifo');
  execFileSync('mkfifo', [fifo]);
  await fails(() => readSafetensorsHeader(fifo), 'ERR_FILE', /found a FIFO/);
});

test('too many tensors are refused before they fill the memory', () => {
  const entries = (count: number): Buffer => {
    const parts = Array.from({ length: count }, (_, i) => `"t${i}":${u8(0, 0)}`);
    return Buffer.from(`{${parts.join(',')}}`);
  };
  expect(MAX_TENSORS).toBe(500_000);
  const good = entries(10);
  expect(parseSafetensorsHeader(good, 8 + good.length, 'f', 10).tensors.size).toBe(10);
  const bad = entries(11);
  expect(() => parseSafetensorsHeader(bad, 8 + bad.length, 'f', 10)).toThrow(
    /rule tensor-count .* more than 10 tensors/,
  );
});

test('time grows with the length: 100,000 tensors in well under a second, hostile headers too', async () => {
  const time = (header: Buffer): number =>
    cpuTime(() => {
      try {
        parseSafetensorsHeader(header, 8 + header.length + 200_000 * 4, 'f');
      } catch {}
    });
  const names = Array.from({ length: 100_000 }, (_, i) => i);
  const large = Buffer.from(
    `{${names.map((i) => `"model.layers.${i % 61}.mlp.experts.${i}.gate_proj.weight":${f32('[1,2]', 8 * i, 8 * i + 8)}`).join(',')}}`,
  );
  const hostile: Record<string, Buffer> = {
    'deep arrays': Buffer.from(`{"a":${'['.repeat(8_000_000)}`),
    'a long name': Buffer.from(`{"${'n'.repeat(8_000_000)}":1}`),
    'a name of escapes': Buffer.from(`{"${'\\u0041'.repeat(1_300_000)}":1}`),
    'a long number': Buffer.from(one(f32(`[${'1'.repeat(8_000_000)}]`, 0, 8))),
    'white space': Buffer.from(`{${' '.repeat(8_000_000)}`),
  };
  const first = time(large);
  const took = Math.min(first, await least(1000, () => time(large)));
  const rest = Object.entries(hostile).map(([name, header]) => `${name} ${time(header).toFixed(0)} ms`);
  console.log(
    `header of ${(large.length / 1e6).toFixed(1)} MB, 100,000 tensors: ${took.toFixed(0)} ms (first ${first.toFixed(0)}); ${rest.join(', ')}`,
  );
  expect(took).toBeLessThan(1000);
  for (const header of Object.values(hostile)) expect(await least(1000, () => time(header))).toBeLessThan(1000);
});
