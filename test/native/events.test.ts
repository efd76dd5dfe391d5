// Streams and events: order, and how failures travel.
import { MlaError } from '../../lib/errors';
import { native, openDevice } from '../../lib/native';
import { Bench, codeOf } from './support';

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open();
});
afterEach(() => bench.dispose());

const fill = (value: number, length = 4) => new Float32Array(length).fill(value);

test('commands of a stream run in order, and an event tells when', async () => {
  const a = await bench.tensor(4);
  const b = await bench.tensor(4);
  bench.busy();
  bench.stream.write(a, fill(1));
  bench.stream.copy({ src: a, dst: b, blocks: 1, block_bytes: 16 });
  bench.stream.write(a, fill(2));
  const order: string[] = [];
  const first = bench.stream.record().done.then(() => order.push('first'));
  const second = bench.stream.record().done.then(() => order.push('second'));
  order.push('issued');
  await Promise.all([second, first]);
  expect(order).toEqual(['issued', 'first', 'second']);
  expect(await bench.floats(b)).toEqual([1, 1, 1, 1]);
  expect(await bench.floats(a)).toEqual([2, 2, 2, 2]);
});

test('issuing work does not wait for it', async () => {
  const start = process.hrtime.bigint();
  for (let i = 0; i < 5; i++) bench.busy();
  const issued = Number(process.hrtime.bigint() - start);
  await bench.stream.record().done;
  expect(issued).toBeLessThan(Number(process.hrtime.bigint() - start) / 4);
});

test('wait orders one stream behind an event of another', async () => {
  const other = bench.device.stream();
  const a = await bench.tensor(4);
  bench.busy();
  bench.stream.write(a, fill(7));
  other.wait(bench.stream.record());
  expect(await bench.floats(a, other)).toEqual([7, 7, 7, 7]);
  other.wait(other.record());
  await other.record().done;
});

test('a failure skips what follows until the next event, which reports it once', async () => {
  const { stream } = bench;
  const a = await bench.tensor(4);
  stream.write(a, fill(1));
  await stream.record().done; // commands are counted when they run
  native.failCommand(bench.device, 1, false);
  stream.write(a, fill(2));
  stream.write(a, fill(3)); // fails
  stream.write(a, fill(4)); // skipped
  const failing = stream.record();
  stream.write(a, fill(5));
  const after = stream.record();
  expect(await codeOf(() => failing.done)).toBe('ERR_BACKEND');
  expect(await codeOf(() => after.done)).toBeUndefined();
  expect(await bench.floats(a)).toEqual([5, 5, 5, 5]);
});

test('a failed read says so itself and leaves the stream as it is', async () => {
  const { stream } = bench;
  const a = await bench.tensor(4);
  native.failAllocation(0); // the buffer of the transfer
  expect(await codeOf(() => stream.read(a))).toBe('ERR_OUT_OF_MEMORY');
  stream.write(a, fill(1));
  expect(await codeOf(() => stream.record().done)).toBeUndefined();
});

test('a read reports a failure and clears it, as an event does', async () => {
  const { stream } = bench;
  const a = await bench.tensor(4);
  stream.write(a, fill(1));
  await stream.record().done; // commands are counted when they run
  native.failCommand(bench.device, 0, false);
  stream.write(a, fill(2)); // fails
  stream.write(a, fill(3)); // skipped
  const [failing, next] = [stream.read(a), stream.read(a)];
  stream.write(a, fill(4));
  expect(await codeOf(() => failing)).toBe('ERR_BACKEND');
  expect(Array.from(new Float32Array(await next))).toEqual([1, 1, 1, 1]);
  expect(await codeOf(() => stream.record().done)).toBeUndefined();
  expect(await bench.floats(a)).toEqual([4, 4, 4, 4]);
});

test('a failure stays in its stream', async () => {
  const other = bench.device.stream();
  const a = await bench.tensor(4);
  native.failCommand(bench.device, 0, false);
  bench.stream.write(a, fill(1));
  other.write(a, fill(2));
  expect(await codeOf(() => other.record().done)).toBeUndefined();
  expect(await bench.floats(a, other)).toEqual([2, 2, 2, 2]);
  expect(await codeOf(() => bench.stream.record().done)).toBe('ERR_BACKEND');
});

test('errors are MlaErrors of this realm, and nobody has to look at them', async () => {
  const a = await bench.tensor(4);
  native.failCommand(bench.device, 0, false);
  bench.stream.write(a, fill(1));
  const event = bench.stream.record(); // rejects unseen: jest would report an unhandled rejection
  await bench.stream.record().done;
  await new Promise((resolve) => setTimeout(resolve, 20));
  const error = await event.done.catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(MlaError);
  expect(event.done).toBeInstanceOf(Promise);
});

test('a lost device rejects what is queued and refuses what follows', async () => {
  const { device, stream } = bench;
  const other = device.stream();
  const a = await bench.tensor(4);
  native.failCommand(device, 4, true);
  bench.busy(); // four commands, so that the calls below come before the loss
  bench.stream.write(a, fill(1));
  const pending = [stream.record().done, stream.read(a), other.read(a), device.allocate('f32', [4])];
  for (const promise of pending) expect(await codeOf(() => promise)).toBe('ERR_DEVICE_LOST');
  const calls: (() => unknown)[] = [
    () => stream.write(a, fill(1)),
    () => stream.read(a),
    () => stream.record(),
    () => stream.fillRandom({ out: a, seed: 0, mean: 0, stddev: 1 }),
    () => stream.capture(() => {}),
    () => device.stream(),
    () => device.info(),
    () => device.allocate('f32', [4]),
  ];
  for (const call of calls) expect(await codeOf(call)).toBe('ERR_DEVICE_LOST');
  a.dispose();
  expect(bench.held).toBe(0);
  await device.dispose();
  expect(await codeOf(() => device.stream())).toBe('ERR_DISPOSED');
  // The CPU itself is not lost.
  const next = openDevice('cpu', { threads: 1 });
  expect((await next.allocate('f32', [4])).disposed).toBe(false);
  await next.dispose();
});

test('dispose drops what is queued, rejects what is pending, and can be called again', async () => {
  const { device, stream } = bench;
  const a = await bench.tensor(4);
  for (let i = 0; i < 20; i++) bench.busy();
  const pending = [stream.record().done, stream.read(a), device.allocate('f32', [4])];
  const start = Date.now();
  const ends = [device.dispose(), device.dispose()];
  for (const promise of pending) expect(await codeOf(() => promise)).toBe('ERR_DISPOSED');
  await Promise.all(ends);
  await device.dispose();
  expect(Date.now() - start).toBeLessThan(2000);
  expect([device.disposed, stream.disposed, a.disposed, device.allocatedBytes()]).toEqual([true, true, true, 0]);
  a.dispose();
  stream.dispose();
});

test('a disposed stream finishes what it has and takes nothing more', async () => {
  const { device } = bench;
  const stream = device.stream();
  const a = await bench.tensor(4);
  bench.busy(stream);
  stream.write(a, fill(3));
  const read = stream.read(a);
  stream.dispose();
  stream.dispose();
  expect(stream.disposed).toBe(true);
  expect([...new Float32Array(await read)]).toEqual([3, 3, 3, 3]);
  expect(await codeOf(() => stream.write(a, fill(1)))).toBe('ERR_DISPOSED');
  expect(await codeOf(() => stream.record())).toBe('ERR_DISPOSED');
});
