// Running out of memory at every allocation there is: a typed error, nothing held, and the same work succeeds next time.
import { type Device, native, openDevice, type Tensor } from '../../lib/native';
import { codeOf } from './support';

let device: Device;
beforeAll(() => {
  device = openDevice('cpu', { threads: 2 });
});
afterAll(() => device.dispose());
afterEach(() => native.failAllocation(-1));

/** Allocates, uploads, captures, computes and reads; gives everything back whatever happens. */
async function work(): Promise<number[]> {
  const stream = device.stream();
  const tensors: Tensor[] = [];
  const allocate = async (...args: Parameters<Device['allocate']>) => {
    const tensor = await device.allocate(...args);
    tensors.push(tensor);
    return tensor;
  };
  try {
    const x = await allocate('f32', [2, 8]);
    const w = await allocate('f32', [4, 8]);
    const y = await allocate('f32', [2, 4]);
    const workspace = await allocate('u8', [device.workspaceBytes('gemm', { x, w, y })]);
    stream.useWorkspace(workspace);
    stream.write(x, new Float32Array(16).fill(2));
    stream.write(w, new Float32Array(32).fill(3));
    await stream.record().done;
    const graph = stream.capture(() => stream.gemm({ x, w, y }));
    graph.replay();
    graph.dispose();
    const result = await stream.read(y);
    await stream.record().done;
    return [...new Float32Array(result)];
  } finally {
    await stream.record().done.catch(() => {});
    stream.dispose();
    for (const tensor of tensors) tensor.dispose();
  }
}

test('every allocation may fail', async () => {
  const right = Array(8).fill(48);
  native.failAllocation(-1);
  expect(await work()).toEqual(right);
  const allocations = native.allocationCount();
  expect(allocations).toBeGreaterThanOrEqual(6);
  for (let k = 0; k < allocations; k++) {
    native.failAllocation(k);
    expect([k, await codeOf(work)]).toEqual([k, expect.stringMatching(/^ERR_OUT_OF_(DEVICE_)?MEMORY$/)]);
    expect([k, device.allocatedBytes()]).toEqual([k, 0]);
    expect(await work()).toEqual(right); // and it failed once only
    expect(device.allocatedBytes()).toBe(0);
  }
  native.failAllocation(allocations);
  expect(await work()).toEqual(right);
  console.log(`${allocations} allocations failed, one by one; 0 bytes held after each`);
});

test('every command may fail', async () => {
  const COMMANDS = 4; // two writes, one compilation, one replay; the others have answers of their own
  for (let k = 0; k < COMMANDS; k++) {
    native.failCommand(device, k, false);
    expect([k, await codeOf(work)]).toEqual([k, 'ERR_BACKEND']);
    expect(device.allocatedBytes()).toBe(0);
    expect(await work()).toEqual(Array(8).fill(48));
  }
  console.log(`${COMMANDS} commands failed, one by one`);
});

test('opening devices does not leak', async () => {
  const before = process.memoryUsage().rss;
  for (let i = 0; i < 200; i++) {
    const next = openDevice('cpu', { threads: 2 });
    await next.allocate('f32', [1 << 16]);
    await next.dispose();
  }
  expect(process.memoryUsage().rss - before).toBeLessThan(64 << 20);
});
