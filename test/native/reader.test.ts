// Readers: one tensor read time and again into the same memory.
import { native, openDevice, type Reader, type Tensor } from '../../lib/native';
import { Bench, codeOf, collectUntil } from './support';

let bench: Bench;
let tensor: Tensor;
let reader: Reader;
beforeEach(async () => {
  bench = await Bench.open();
  tensor = await bench.device.allocate('u8', [4]);
  reader = bench.stream.reader(tensor);
});
afterEach(() => bench.dispose());

const bytes = () => [...new Uint8Array(reader.bytes)];

test('each read brings the bytes at its point of the stream into the same memory', async () => {
  const { bytes: memory } = reader;
  expect(memory.byteLength).toBe(4);
  bench.stream.write(tensor, Uint8Array.of(1, 2, 3, 4));
  const first = reader.read();
  bench.stream.write(tensor, Uint8Array.of(9), 1);
  expect(await first).toBe(memory);
  expect(bytes()).toEqual([1, 2, 3, 4]);
  await reader.read();
  expect(bytes()).toEqual([1, 9, 3, 4]);
  expect(reader.bytes).toBe(memory);
});

test('a view is read where it lies, and nothing where there is nothing', async () => {
  bench.stream.write(tensor, Uint8Array.of(1, 2, 3, 4));
  const part = bench.stream.reader(tensor.view('u8', [2], 1));
  await part.read();
  expect([...new Uint8Array(part.bytes)]).toEqual([2, 3]);
  const none = bench.stream.reader(tensor.view('u8', [0]));
  await none.read();
  expect(none.bytes.byteLength).toBe(0);
});

test('one read at a time; several readers at once', async () => {
  bench.busy();
  const other = bench.stream.reader(tensor);
  const reads = [reader.read(), other.read()];
  expect(await codeOf(() => reader.read())).toBe('ERR_STATE');
  await Promise.all(reads);
  expect(await codeOf(() => reader.read())).toBeUndefined();
});

test('a failure of the stream is told once, and the reader goes on', async () => {
  bench.stream.write(tensor, Uint8Array.of(1, 2, 3, 4));
  await reader.read();
  native.failCommand(bench.device, 0, false);
  bench.stream.write(tensor, Uint8Array.of(9, 9, 9, 9));
  expect(await codeOf(() => reader.read())).toBe('ERR_BACKEND');
  expect(bytes()).toEqual([1, 2, 3, 4]);
  await reader.read();
  expect(bytes()).toEqual([1, 2, 3, 4]);
});

test('it holds the memory until it is disposed; what is under way then ends well', async () => {
  const before = bench.held;
  const large = await bench.tensor(1 << 16);
  const holds = bench.stream.reader(large);
  large.dispose();
  await bench.settle();
  expect(bench.held - before).toBe(4 << 16);
  bench.busy();
  const read = holds.read();
  holds.dispose();
  holds.dispose();
  expect(holds.disposed).toBe(true);
  expect(await codeOf(() => holds.read())).toBe('ERR_DISPOSED');
  await read;
  expect(bench.held).toBe(before);
});

test('one that nobody holds any more is collected, its read may be under way', async () => {
  const before = bench.held;
  const reads: Promise<unknown>[] = [];
  bench.busy();
  for (let i = 0; i < 100; i++) {
    const large = await bench.tensor(1 << 10);
    reads.push(bench.stream.reader(large).read());
    large.dispose();
  }
  expect(await collectUntil(() => bench.held === before)).toBe(true);
  await Promise.all(reads);
});

test('what it is made from, and where it may read, is checked', async () => {
  const other = openDevice('cpu', { threads: 1 });
  const foreign = await other.allocate('u8', [4]);
  expect(await codeOf(() => bench.stream.reader(foreign))).toBe('ERR_INVALID_ARG');
  expect(await codeOf(() => bench.stream.reader({} as Tensor))).toBe('ERR_INVALID_ARG');
  await other.dispose();
  let within: Promise<unknown> = Promise.resolve();
  bench.stream.capture(() => {
    within = codeOf(() => reader.read());
  });
  expect(await within).toBe('ERR_STATE');
  tensor.dispose();
  expect(await codeOf(() => bench.stream.reader(tensor))).toBe('ERR_DISPOSED');
  const read = reader.read();
  const end = bench.dispose();
  expect(['ERR_DISPOSED', undefined]).toContain(await codeOf(() => read));
  await end;
  expect(reader.disposed).toBe(true);
  expect(await codeOf(() => reader.read())).toBe('ERR_DISPOSED');
});
