// gpu/runtime.test.ts - memory, streams, events, graphs, copies and failures on the GPU, and tensors of more than 2^31
// elements. The CPU backend's own tests of the same seam stand in test/native.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, beforeEach, test } from 'node:test';
import { MlaError } from '../../lib/errors';
import { type Device, native, type Stream, type Tensor } from '../../lib/native';
import { dot } from '../cpu/reference';
import { Inputs, openTested, TESTED_DEVICE, valuesOf } from './harness';

const ON_GPU = TESTED_DEVICE !== 'cpu';

let device: Device;
let stream: Stream;

/** Each test has a device of its own: some of them spoil it. */
beforeEach(async () => {
  await device?.dispose();
  device = openTested();
  stream = device.stream();
});
after(() => device?.dispose());

async function codeOf(work: () => unknown): Promise<string> {
  try {
    await work();
  } catch (error) {
    if (error instanceof MlaError) return error.code;
    throw error;
  }
  return 'nothing thrown';
}

const bytesOf = async (tensor: Tensor, on = stream) => Buffer.from(await on.read(tensor));

/** Issues about `ms` of work (more on a CPU), so that what follows is still queued when it is called. */
async function busy(): Promise<() => void> {
  const x = await device.allocate('bf16', [512, 4096]);
  const w = await device.allocate('bf16', [4096, 4096]);
  const y = await device.allocate('bf16', [512, 4096]);
  const spec = { x, w, y };
  const scratch = await device.allocate('u8', [Math.max(1, device.workspaceBytes('gemm', spec))]);
  return () => {
    stream.useWorkspace(scratch);
    for (let i = 0; i < (ON_GPU ? 20 : 1); i++) stream.gemm(spec);
  };
}

test('says what it is', () => {
  const info = device.info();
  console.log(JSON.stringify(info));
  assert.equal(info.kind, ON_GPU ? 'cuda' : 'cpu');
  assert.ok(info.memoryFree > 0 && info.memoryFree <= info.memoryTotal);
  if (ON_GPU) assert.ok(info.multiprocessors > 0 && ['sm_90a', 'portable'].includes(info.path));
});

test('memory is zero at first, and copies of any size and place arrive whole', async () => {
  const size = 40_000_003;
  const tensor = await device.allocate('u8', [size]);
  assert.ok((await bytesOf(tensor)).every((byte) => byte === 0));
  const content = randomBytes(size);
  stream.write(tensor, content);
  assert.equal(Buffer.compare(await bytesOf(tensor), content), 0);
  for (const [length, offset] of [
    [1, 0],
    [1, size - 1],
    [4097, 12_345_677],
    [17_000_001, 21],
  ] as const) {
    const piece = randomBytes(length);
    stream.write(tensor, piece, offset);
    piece.copy(content, offset);
    piece.fill(0); // the caller may use its buffer again at once
  }
  assert.equal(Buffer.compare(await bytesOf(tensor), content), 0);
});

test('200 writes and reads in flight keep their order', async () => {
  const tensor = await device.allocate('i32', [5000]);
  const reads: Promise<ArrayBuffer>[] = [];
  for (let i = 0; i < 200; i++) {
    stream.write(tensor, new Int32Array(5000).fill(i));
    reads.push(stream.read(tensor));
  }
  for (const [i, read] of reads.entries())
    assert.ok(
      new Int32Array(await read).every((value) => value === i),
      `read ${i}`,
    );
});

test('files are read from any byte on; one that is too short is ERR_FILE', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'mla-gpu-'));
  const file = join(dir, 'data');
  const content = randomBytes(70_000_001);
  writeFileSync(file, content);
  const fd = openSync(file, 'r');
  try {
    const whole = await device.allocate('u8', [content.length]);
    const part = await device.allocate('u8', [33_333]);
    stream.readFile(whole, fd, 0);
    stream.readFile(part, fd, 1_000_003);
    assert.equal(Buffer.compare(await bytesOf(whole), content), 0);
    assert.equal(Buffer.compare(await bytesOf(part), content.subarray(1_000_003, 1_033_336)), 0);
    stream.readFile(part, fd, content.length - 5);
    assert.equal(await codeOf(() => stream.record().done), 'ERR_FILE');
    stream.readFile(part, fd, 7);
    assert.equal(Buffer.compare(await bytesOf(part), content.subarray(7, 33_340)), 0);
  } finally {
    closeSync(fd);
    rmSync(dir, { recursive: true });
  }
});

test('issuing work does not wait for it, and another stream waits for an event', async () => {
  const work = await busy();
  const other = device.stream();
  const a = await device.allocate('f32', [4]);
  const began = performance.now();
  work();
  const issued = performance.now() - began;
  stream.write(a, Float32Array.of(1, 2, 3, 4));
  const event = stream.record();
  other.wait(event);
  assert.deepEqual([...new Float32Array(await other.read(a))], [1, 2, 3, 4]);
  await event.done;
  const done = performance.now() - began;
  console.log(`issued in ${issued.toFixed(2)} ms, done in ${done.toFixed(2)} ms`);
  assert.ok(issued < done / 2, `issued in ${issued} ms, done in ${done} ms`);
});

test('a graph replays on new contents, outlives its tensors’ handles, and a failed capture leaves nothing', async () => {
  const a = await device.allocate('f32', [1000]);
  const b = await device.allocate('f32', [1000]);
  const graph = stream.capture(() => {
    for (let i = 0; i < 10; i++) {
      stream.cast({ x: a, out: b });
      stream.copy({ src: b, dst: a, blocks: 1, block_bytes: 4, src_offset: 4 });
    }
  });
  assert.equal(graph.operations, 20);
  for (const value of [3, 4]) {
    stream.write(
      a,
      Float32Array.from({ length: 1000 }, (_, i) => i * value),
    );
    graph.replay();
    assert.equal(new Float32Array(await stream.read(b))[999], 999 * value);
    assert.equal(new Float32Array(await stream.read(a))[0], value);
  }
  const before = device.allocatedBytes();
  a.dispose();
  graph.replay();
  await stream.record().done;
  assert.equal(device.allocatedBytes(), before);
  graph.dispose();
  await stream.record().done;
  assert.ok(device.allocatedBytes() < before);
  assert.throws(() =>
    stream.capture(() => {
      stream.cast({ x: b, out: b });
      throw new Error('enough');
    }),
  );
  assert.equal(await codeOf(() => stream.capture(() => stream.cast({ x: b, out: a }))), 'ERR_DISPOSED');
  stream.write(b, new Float32Array(1000).fill(5));
  assert.equal(new Float32Array(await stream.read(b))[999], 5);
});

test('memory that is not there is a typed error, and what was there stays usable', async () => {
  const a = await device.allocate('f32', [4]);
  const before = device.allocatedBytes();
  assert.match(await codeOf(() => device.allocate('u8', [2 ** 44])), /^ERR_OUT_OF_(DEVICE_)?MEMORY$/);
  assert.equal(device.allocatedBytes(), before);
  stream.write(a, Float32Array.of(1, 2, 3, 4));
  assert.deepEqual([...new Float32Array(await stream.read(a))], [1, 2, 3, 4]);
});

test('memory of disposed tensors returns once queued work is done with it', async () => {
  const work = await busy();
  const before = device.allocatedBytes();
  const a = await device.allocate('f32', [1 << 20]);
  work();
  stream.write(a, new Float32Array(1 << 20));
  a.dispose();
  assert.equal(await codeOf(() => stream.write(a, new Float32Array(4))), 'ERR_DISPOSED');
  await stream.record().done;
  assert.equal(device.allocatedBytes(), before);
});

test('a device disposed over queued work answers everything', async () => {
  const work = await busy();
  work();
  const a = await device.allocate('f32', [4]);
  work();
  const answers = Promise.all([stream.record().done, stream.read(a), stream.record().done].map((p) => codeOf(() => p)));
  await device.dispose();
  for (const answer of await answers) assert.match(answer, /^(ERR_DISPOSED|nothing thrown)$/);
  assert.equal(await codeOf(() => device.allocate('f32', [4])), 'ERR_DISPOSED');
});

test('a failed command skips what follows up to the next event, which reports it', async () => {
  const a = await device.allocate('f32', [4]);
  await stream.record().done; // commands are counted when they run
  native.failCommand(device, 1, false);
  stream.write(a, Float32Array.of(2, 2, 2, 2));
  stream.write(a, Float32Array.of(3, 3, 3, 3)); // fails
  stream.write(a, Float32Array.of(4, 4, 4, 4)); // skipped
  assert.equal(await codeOf(() => stream.record().done), 'ERR_BACKEND');
  assert.deepEqual([...new Float32Array(await stream.read(a))], [2, 2, 2, 2]);
});

test('100 devices opened and closed leave the memory where it was', async () => {
  const once = async () => {
    const another = openTested();
    const s = another.stream();
    const x = await another.allocate('bf16', [64, 1024]);
    s.fillRandom({ out: x, seed: 1, mean: 0, stddev: 1 });
    s.capture(() => s.fillRandom({ out: x, seed: 2, mean: 0, stddev: 1 })).replay();
    await s.record().done;
    await another.dispose();
  };
  for (let i = 0; i < 5; i++) await once();
  const before = device.info().memoryFree;
  for (let i = 0; i < 100; i++) await once();
  const lost = before - device.info().memoryFree;
  console.log(`100 devices: ${lost} bytes of device memory lost`);
  if (ON_GPU) assert.ok(lost <= 0, `${lost} bytes lost`);
});

// Over 2^31 elements: the tensors take 4 to 9 GB, which only a GPU is asked for.
const LARGE = ON_GPU ? 2 ** 31 + 2 ** 20 : 2 ** 22;

test('rows beyond 2^31 elements are found', async () => {
  const d = 2048;
  const rows = LARGE / d;
  const table = await device.allocate('bf16', [rows, d]);
  const last = table.view('bf16', [2, d], (rows - 2) * d * 2);
  const content = new Inputs(1).normal('bf16', [2, d]);
  stream.write(last, content.bytes);
  const ids = await device.allocate('i32', [3]);
  const out = await device.allocate('bf16', [3, d]);
  stream.write(ids, Int32Array.of(rows - 1, 0, rows - 2));
  stream.gatherRows({ table, ids, out });
  const got = await bytesOf(out);
  const half = content.bytes.length / 2;
  assert.equal(Buffer.compare(got.subarray(0, half), content.bytes.subarray(half)), 0);
  assert.ok(got.subarray(half, 2 * half).every((byte) => byte === 0));
  assert.equal(Buffer.compare(got.subarray(2 * half), content.bytes.subarray(0, half)), 0);
});

test('strided copies and fills reach beyond 2^32 bytes', async () => {
  const big = await device.allocate('bf16', [LARGE]);
  stream.fillRandom({ out: big, seed: 7, mean: 0, stddev: 1 });
  const tail = big.view('bf16', [4096], (LARGE - 4096) * 2);
  const values = valuesOf('bf16', new Uint8Array(await stream.read(tail)));
  const mean = Array.from(values).reduce((sum, x) => sum + x, 0) / 4096;
  const square = Array.from(values).reduce((sum, x) => sum + x * x, 0) / 4096;
  assert.ok(Math.abs(mean) < 0.08 && Math.abs(square - 1) < 0.12, `mean ${mean}, mean square ${square}`);
  const out = await device.allocate('bf16', [2, 64]);
  stream.copy({
    src: big,
    dst: out,
    blocks: 2,
    block_bytes: 128,
    src_offset: 256,
    src_stride: (LARGE - 4096) * 2,
    dst_stride: 128,
  });
  const [got, first] = [await bytesOf(out), await bytesOf(big.view('bf16', [64], 256))];
  assert.equal(Buffer.compare(got.subarray(0, 128), first), 0);
  assert.equal(Buffer.compare(got.subarray(128), (await bytesOf(tail)).subarray(256, 384)), 0);
});

test('a matrix of more than 2^31 elements is multiplied to its end', async () => {
  const k = 2048;
  const n = LARGE / k;
  const make = new Inputs(3);
  const x = await device.allocate('bf16', [2, k]);
  const w = await device.allocate('bf16', [n, k]);
  const y = await device.allocate('f32', [2, n]);
  const input = make.normal('bf16', [2, k]);
  stream.write(x, input.bytes);
  stream.fillRandom({ out: w, seed: 5, mean: 0, stddev: 1 });
  stream.useWorkspace(await device.allocate('u8', [Math.max(1, device.workspaceBytes('gemm', { x, w, y }))]));
  stream.gemm({ x, w, y });
  const result = new Float32Array(await stream.read(y));
  const rows = valuesOf('bf16', input.bytes);
  for (const column of [0, 1, n >> 1, n - 65, n - 2, n - 1]) {
    const bytes = new Uint8Array(await stream.read(w.view('bf16', [k], column * k * 2)));
    for (const row of [0, 1]) {
      const expected = dot(rows, row * k, valuesOf('bf16', bytes), 0, k);
      const actual = result[row * n + column] as number;
      assert.ok(
        Math.abs(actual - expected) < 1e-3 * Math.sqrt(k),
        `[${row}, ${column}]: ${actual}, expected ${expected}`,
      );
    }
  }
});

test('a cache of more than 2^31 elements is read where its pages are', async () => {
  const [width, c, heads, length] = [576, 512, 16, 70];
  const pages = Math.ceil(LARGE / (64 * width)) + 2;
  const make = new Inputs(9);
  const rows = make.normal('bf16', [2, 64, width]);
  const q = make.normal('bf16', [1, heads, width], 0.3);
  const i32 = async (values: number[]) => {
    const tensor = await device.allocate('i32', [values.length]);
    stream.write(tensor, Int32Array.from(values));
    return tensor;
  };
  /** The same two pages at the end of a large cache, or in one that holds nothing else. */
  const attend = async (count: number, first: number, second: number): Promise<Buffer> => {
    const cache = await device.allocate('bf16', [count, 64, width]);
    const half = rows.bytes.length / 2;
    stream.write(cache, rows.bytes.subarray(0, half), first * half);
    stream.write(cache, rows.bytes.subarray(half), second * half);
    const query = await device.allocate('bf16', [1, heads, width]);
    stream.write(query, q.bytes);
    const args = {
      q: query,
      q_start: await i32([0, 1]),
      cache,
      block_table: (await i32([first, second])).view('i32', [1, 2]),
      lengths: await i32([length]),
      plan: await device.allocate('i32', [device.decodePlanInts(1, heads)]),
      out: await device.allocate('bf16', [1, heads, c]),
      lse: await device.allocate('f32', [1, heads]),
      scale: 0.05,
    };
    stream.decodePlan({ q_start: args.q_start, lengths: args.lengths, plan: args.plan, heads });
    stream.useWorkspace(await device.allocate('u8', [Math.max(1, device.workspaceBytes('mlaDecode', args))]));
    stream.mlaDecode(args);
    const out = await bytesOf(args.out);
    cache.dispose();
    return out;
  };
  const small = await attend(2, 0, 1);
  assert.ok(valuesOf('bf16', small)[0] !== 0);
  assert.equal(Buffer.compare(await attend(pages, pages - 1, pages - 2), small), 0);
});
