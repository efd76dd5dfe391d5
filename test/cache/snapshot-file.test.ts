// Saved texts: what is written is read; everything else is refused by name, whatever it is; a crash while writing leaves
// the old file or the new one.
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PAGE_TOKENS, readSnapshot, type SnapshotLayout, writeSnapshot } from '../../lib/cache';
import { rejection } from '../engine/make-model';

const dir = mkdtempSync(join(tmpdir(), 'mla-snapshot-'));
afterAll(() => rmSync(dir, { recursive: true }));

const LAYOUT: SnapshotLayout = { fingerprint: 'abc', dtype: 'f32', layers: 2, c: 2, r: 1 };
const LIMITS = { context: 1000, vocab: 500 };
const PAGE_BYTES = 2 * PAGE_TOKENS * 3 * 4;
const pageOf = (value: number) => new Uint8Array(new Float32Array(PAGE_BYTES / 4).fill(value).buffer);

async function* pagesOf(...values: number[]): AsyncIterable<Uint8Array> {
  for (const value of values) yield pageOf(value);
}

const tokens = Array.from({ length: 100 }, (_, i) => (i * 7) % 500);
const file = join(dir, 'text');
const write = (path = file) => writeSnapshot(path, LAYOUT, { tokens, rows: 90 }, pagesOf(1.5, -2.25));

async function read(path = file, layout = LAYOUT, limits = LIMITS) {
  const pages: Uint8Array[] = [];
  const text = await readSnapshot(path, layout, limits, () => (page) => {
    pages.push(page);
  });
  return { ...text, pages };
}

test('reads what was written', async () => {
  await write();
  const { tokens: ids, rows, pages } = await read();
  expect(ids).toEqual(tokens);
  expect(rows).toBe(90);
  expect(pages.map((page) => Buffer.from(page))).toEqual([1.5, -2.25].map((value) => Buffer.from(pageOf(value))));
});

test('a text without rows', async () => {
  await writeSnapshot(file, LAYOUT, { tokens: [1, 2], rows: 0 }, pagesOf());
  expect(await read()).toEqual({ tokens: [1, 2], rows: 0, pages: [] });
});

test('another model, dtype or layout is refused, and what does not fit', async () => {
  await write();
  const others: [Partial<SnapshotLayout>, RegExp][] = [
    [{ fingerprint: 'abd' }, /another model/],
    [{ dtype: 'bf16' }, /dtype/],
    [{ layers: 3 }, /layers/],
    [{ dtype: 'fp8' }, /dtype/],
    [{ c: 3 }, /its c is not 3/],
    [{ r: 2 }, /its r is not 2/],
  ];
  for (const [change, message] of others) {
    const error = await rejection(read(file, { ...LAYOUT, ...change }));
    expect(error).toMatchObject({ code: 'ERR_SNAPSHOT', message: expect.stringMatching(message) });
  }
  expect(await rejection(read(file, LAYOUT, { ...LIMITS, context: 99 }))).toMatchObject({ code: 'ERR_CONTEXT_LENGTH' });
  expect(await rejection(read(file, LAYOUT, { ...LIMITS, vocab: 400 }))).toMatchObject({ code: 'ERR_SNAPSHOT' });
  expect(await rejection(read(join(dir, 'nothing')))).toMatchObject({ code: 'ERR_FILE' });
  expect(await rejection(read(dir))).toMatchObject({ code: 'ERR_SNAPSHOT' });
});

/** A file with another header and a right checksum: what somebody would make who means harm. */
function forged(change: (header: Record<string, unknown>) => unknown, edit: (body: Buffer) => Buffer = (body) => body) {
  const good = readFileSync(file);
  const length = good.readUInt32LE(12);
  const header = Buffer.from(JSON.stringify(change(JSON.parse(good.toString('utf8', 16, 16 + length)))));
  const preamble = Buffer.from(good.subarray(0, 16));
  preamble.writeUInt32LE(header.length, 12);
  const content = Buffer.concat([preamble, header, edit(Buffer.from(good.subarray(16 + length, -32)))]);
  return Buffer.concat([content, createHash('sha256').update(content).digest()]);
}

function edited(body: Buffer, edit: () => void): Buffer {
  edit();
  return body;
}

test('a forged header is refused before anything is taken', async () => {
  await write();
  const headers: ((header: Record<string, unknown>) => unknown)[] = [
    (h) => ({ ...h, rows: 101 }),
    (h) => ({ ...h, rows: -1 }),
    (h) => ({ ...h, rows: 1.5 }),
    (h) => ({ ...h, rows: 128 }),
    (h) => ({ ...h, rows: 1 }),
    (h) => ({ ...h, tokens: 2 ** 40 }),
    (h) => ({ ...h, tokens: '100' }),
    (h) => ({ ...h, tokens: 101 }),
    (h) => ({ ...h, pageTokens: 32 }),
    (h) => ({ ...h, padding: 'x'.repeat(5000) }),
    () => [],
    () => null,
    () => 7,
  ];
  const path = join(dir, 'forged');
  for (const change of headers) {
    writeFileSync(path, forged(change));
    const begin = jest.fn();
    expect(await rejection(readSnapshot(path, LAYOUT, LIMITS, begin))).toMatchObject({ code: 'ERR_SNAPSHOT' });
    expect(begin).not.toHaveBeenCalled();
  }
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    writeFileSync(
      path,
      forged(
        (h) => h,
        (body) => edited(body, () => body.writeFloatLE(bad, 400 + 80)),
      ),
    );
    expect(await rejection(read(path))).toMatchObject({
      code: 'ERR_SNAPSHOT',
      message: expect.stringMatching(/finite/),
    });
  }
  writeFileSync(
    path,
    forged(
      (h) => h,
      (body) => edited(body, () => body.writeInt32LE(-5, 8)),
    ),
  );
  expect(await rejection(read(path))).toMatchObject({
    code: 'ERR_SNAPSHOT',
    message: expect.stringMatching(/token -5/),
  });
  writeFileSync(
    path,
    forged((h) => h),
  );
  expect((await read(path)).rows).toBe(90); // the forger's tools are right
});

test('an fp8 cache: rows that no model made are refused', async () => {
  // c = 200: 200 e4m3, two scales, no padding, 4 bf16, 8 zeros; 208 + 8 + 8 = 224 bytes.
  const layout: SnapshotLayout = { ...LAYOUT, dtype: 'fp8', c: 200, r: 4 };
  const rowBytes = 224;
  const page = Buffer.alloc(layout.layers * PAGE_TOKENS * rowBytes);
  for (let at = 0; at < 70 * rowBytes; at += rowBytes) {
    page.fill(0x7e, at, at + 100).fill(0xfe, at + 100, at + 200);
    page.writeFloatLE(2 ** -60, at + 200);
    page.writeFloatLE(2 ** 60, at + 204);
    page.writeUInt16LE(0x3f80, at + 208);
  }
  const store = (bytes: Buffer) =>
    writeSnapshot(
      file,
      layout,
      { tokens: [1, 2], rows: 2 },
      (async function* () {
        yield bytes;
      })(),
    );
  await store(page);
  expect(Buffer.from((await read(file, layout)).pages[0] as Uint8Array).equals(page)).toBe(true);
  expect(await rejection(read(file, { ...layout, dtype: 'bf16' }))).toMatchObject({ code: 'ERR_SNAPSHOT' });

  const row = (layout.layers * PAGE_TOKENS - 1) * rowBytes;
  const bits = new DataView(new ArrayBuffer(4));
  const scale = (value: number) => {
    bits.setFloat32(0, value);
    return bits.getUint32(0);
  };
  const forgeries: [string, (bytes: Buffer) => void][] = [
    ['a NaN code', (bytes) => bytes.writeUInt8(0x7f, row)],
    ['a negative NaN code', (bytes) => bytes.writeUInt8(0xff, row + 199)],
    ...[Number.NaN, Infinity, -1, 1.5, -0, 2 ** -61, 2 ** 61, 2 ** -140].map(
      (value) => [`scale ${value}`, (bytes: Buffer) => bytes.writeUInt32LE(scale(value), row + 204)] as never,
    ),
    ['an infinite key', (bytes) => bytes.writeUInt16LE(0x7f80, row + 208)],
    ['a key that is NaN', (bytes) => bytes.writeUInt16LE(0xffff, row + 214)],
  ];
  for (const [what, forge] of forgeries) {
    const bad = Buffer.from(page);
    forge(bad);
    await store(bad);
    const error = await rejection(read(file, layout));
    expect([what, error]).toEqual([what, expect.objectContaining({ code: 'ERR_SNAPSHOT' })]);
  }
});

test('every flipped byte and every cut is noticed', async () => {
  await write();
  const good = readFileSync(file);
  const path = join(dir, 'damaged');
  for (let at = 0; at < good.length; at += at < 600 ? 1 : 97) {
    const bad = Buffer.from(good);
    bad[at] = (bad[at] as number) ^ (1 << (at % 8));
    writeFileSync(path, bad);
    expect(await rejection(read(path))).toMatchObject({
      code: expect.stringMatching(/^ERR_(SNAPSHOT|CONTEXT_LENGTH)$/),
    });
  }
  for (const length of [0, 1, 15, 16, 100, 500, good.length - 32, good.length - 1]) {
    writeFileSync(path, good.subarray(0, length));
    expect(await rejection(read(path))).toMatchObject({ code: 'ERR_SNAPSHOT' });
  }
  writeFileSync(path, Buffer.concat([good, Buffer.of(0)]));
  expect(await rejection(read(path))).toMatchObject({ code: 'ERR_SNAPSHOT' });
});

test('whatever fails while writing, the old file stays and nothing else', async () => {
  await write();
  const before = readFileSync(file);
  for (let failAt = 0; failAt < 3; failAt++) {
    async function* failing() {
      for (let i = 0; i < failAt; i++) yield pageOf(i);
      throw new Error('stopped');
    }
    const error = await rejection(writeSnapshot(file, LAYOUT, { tokens, rows: 90 }, failing()));
    expect(error).toMatchObject({ message: 'stopped' });
    expect(readFileSync(file).equals(before)).toBe(true);
    expect(readdirSync(dir).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  }
  const nowhere = join(dir, 'no', 'where');
  expect(await rejection(write(nowhere))).toMatchObject({ code: 'ERR_FILE' });
  expect(existsSync(join(dir, 'no'))).toBe(false);
});
