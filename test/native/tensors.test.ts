// Tensors: memory, shapes, views, transfers.
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build, DTYPE_BYTES, openDevice } from '../../lib/native';
import { ALL_DTYPES, Bench, codeOf } from './support';

let bench: Bench;
beforeAll(async () => {
  bench = await Bench.open();
});
afterAll(() => bench.dispose());

test('a device says what it is', () => {
  const info = bench.device.info();
  expect(info).toMatchObject({ kind: 'cpu', threads: 1, multiprocessors: 0 });
  expect(info.memoryTotal).toBeGreaterThan(info.memoryFree);
  expect(build().version).toMatch(/^\d+\.\d+\.\d+/);
});

test.each(ALL_DTYPES)('memory of %s is zero-filled and has the bytes of its shape', async (dtype) => {
  const before = bench.held;
  const tensor = await bench.device.allocate(dtype, [3, 5, 7]);
  expect(tensor).toMatchObject({ dtype, shape: [3, 5, 7], byteLength: 105 * DTYPE_BYTES[dtype], disposed: false });
  expect(tensor.device).toBe(bench.device);
  expect(bench.held - before).toBe(tensor.byteLength);
  expect(new Uint8Array(await bench.stream.read(tensor)).every((byte) => byte === 0)).toBe(true);
  tensor.dispose();
  expect(bench.held).toBe(before);
});

test('a scalar has one element, a zero dimension none', async () => {
  const before = bench.held;
  const scalar = await bench.tensor();
  expect(scalar.byteLength).toBe(4);
  const empty = await bench.tensor(4, 0, 2);
  expect(empty.byteLength).toBe(0);
  expect(bench.held - before).toBe(4);
  bench.stream.write(empty, new Float32Array(0));
  expect((await bench.stream.read(empty)).byteLength).toBe(0);
  expect(empty.view('i64', [0]).byteLength).toBe(0);
  scalar.dispose();
  empty.dispose();
});

test('what is written is read, from any kind of view and at any offset', async () => {
  const tensor = await bench.device.allocate('u8', [16]);
  const source = new Uint8Array(64).map((_, i) => i + 1);
  bench.stream.write(tensor, source.subarray(8, 24));
  bench.stream.write(tensor, new DataView(source.buffer, 40, 2), 3);
  bench.stream.write(tensor, new Uint16Array([0x0102]), 14);
  source.fill(0); // the call has taken its copy
  expect([...new Uint8Array(await bench.stream.read(tensor))]).toEqual([
    9, 10, 11, 41, 42, 14, 15, 16, 17, 18, 19, 20, 21, 22, 2, 1,
  ]);
  tensor.dispose();
});

test('views share memory, with their own type, shape and offset', async () => {
  const tensor = await bench.tensor(4, 4);
  bench.stream.write(
    tensor,
    new Float32Array(16).map((_, i) => i),
  );
  const row = tensor.view('f32', [4], 32);
  const inner = row.view('u32', [2], 8);
  expect(await bench.floats(row)).toEqual([8, 9, 10, 11]);
  bench.stream.write(inner, new Float32Array([-1, -2]));
  expect((await bench.floats(tensor)).slice(8, 12)).toEqual([8, 9, -1, -2]);
  tensor.dispose();
  expect(row.disposed).toBe(false);
  expect(await bench.floats(row)).toEqual([8, 9, -1, -2]);
  row.dispose();
  inner.dispose();
});

test('views must fit and be aligned to their elements', async () => {
  const tensor = await bench.tensor(4, 4);
  for (const [dtype, shape, offset] of [
    ['f32', [17], 0],
    ['f32', [16], 4],
    ['f32', [1], 64],
    ['f32', [1], 2],
    ['i64', [1], 4],
    ['bf16', [1], 1],
    ['u8', [65], 0],
    ['u8', [0], 65],
    ['u8', [2 ** 52, 2 ** 52], 0],
    ['u8', [2 ** 53 - 1], 1],
    ['u8', [1, 1, 1, 1, 1], 0],
  ] as const)
    expect(await codeOf(() => tensor.view(dtype, shape, offset))).toBe('ERR_INVALID_ARG');
  expect(tensor.view('u8', [0], 64).byteLength).toBe(0);
  tensor.dispose();
  expect(await codeOf(() => tensor.view('f32', [1]))).toBe('ERR_DISPOSED');
});

test('memory that does not exist is refused, and nothing leaks', async () => {
  const before = bench.held;
  expect(await codeOf(() => bench.device.allocate('u8', [2 ** 50]))).toBe('ERR_OUT_OF_MEMORY');
  expect(await codeOf(() => bench.device.allocate('f32', [2 ** 30, 2 ** 30]))).toBe('ERR_INVALID_ARG');
  expect(await codeOf(() => bench.device.allocate('f32', [2 ** 40, 2 ** 40, 0]))).toBe('ERR_INVALID_ARG');
  expect(bench.held).toBe(before);
});

describe('readFile', () => {
  const folder = mkdtempSync(join(tmpdir(), 'node-mla-'));
  const file = join(folder, 'data');
  writeFileSync(
    file,
    Uint8Array.from({ length: 1000 }, (_, i) => i % 251),
  );
  afterAll(() => rmSync(folder, { recursive: true }));

  test('fills a tensor from an open file, also after the caller has closed it', async () => {
    const tensor = await bench.device.allocate('u8', [100]);
    const fd = openSync(file, 'r');
    bench.busy();
    bench.stream.readFile(tensor, fd, 300);
    closeSync(fd);
    // The number may now belong to another file.
    const other = openSync('/dev/null', 'r');
    expect([...new Uint8Array(await bench.stream.read(tensor))]).toEqual(
      Array.from({ length: 100 }, (_, i) => (i + 300) % 251),
    );
    closeSync(other);
    tensor.dispose();
  });

  test('a shorter file is ERR_FILE at the next event', async () => {
    const tensor = await bench.device.allocate('u8', [100]);
    const fd = openSync(file, 'r');
    for (const offset of [901, 1000, 5000, 2 ** 52]) {
      bench.stream.readFile(tensor, fd, offset);
      expect(await codeOf(() => bench.stream.record().done)).toBe('ERR_FILE');
    }
    bench.stream.readFile(tensor, fd, 900);
    expect(await codeOf(() => bench.stream.record().done)).toBeUndefined();
    closeSync(fd);
    tensor.dispose();
  });

  test('what cannot be read is refused at once', async () => {
    const tensor = await bench.device.allocate('u8', [10]);
    const writeOnly = openSync(join(folder, 'out'), 'w');
    const directory = openSync(folder, 'r');
    const device = openSync('/dev/zero', 'r');
    const closed = openSync(file, 'r');
    closeSync(closed);
    for (const fd of [writeOnly, directory, device, closed, 2 ** 30])
      expect([fd, await codeOf(() => bench.stream.readFile(tensor, fd, 0))]).toEqual([fd, 'ERR_FILE']);
    for (const fd of [-1, 0.5, NaN, 2 ** 40])
      expect([fd, await codeOf(() => bench.stream.readFile(tensor, fd, 0))]).toEqual([fd, 'ERR_INVALID_ARG']);
    for (const fd of [writeOnly, directory, device]) closeSync(fd);
    tensor.dispose();
  });

  test('two thousand queued reads of one file need one descriptor', async () => {
    const tensor = await bench.device.allocate('u8', [1]);
    const fd = openSync(file, 'r');
    bench.busy();
    for (let i = 0; i < 2000; i++) bench.stream.readFile(tensor, fd, i % 1000);
    closeSync(fd);
    await bench.stream.record().done;
    expect([...new Uint8Array(await bench.stream.read(tensor))]).toEqual([999 % 251]);
    tensor.dispose();
  });
});

test('tensors of one device are refused by another', async () => {
  const other = openDevice('cpu', { threads: 1 });
  const foreign = await other.allocate('f32', [4]);
  const stream = bench.stream;
  expect(await codeOf(() => stream.fillRandom({ out: foreign, seed: 0, mean: 0, stddev: 1 }))).toBe('ERR_INVALID_ARG');
  expect(await codeOf(() => stream.write(foreign, new Float32Array(4)))).toBe('ERR_INVALID_ARG');
  expect(await codeOf(() => stream.read(foreign))).toBe('ERR_INVALID_ARG');
  expect(await codeOf(() => stream.wait(other.stream().record()))).toBe('ERR_INVALID_ARG');
  await other.dispose();
});
