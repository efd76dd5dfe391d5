// Memory returns when its last holder goes, in stream order: handles, views, queued operations and graphs.
import { native, type Tensor } from '../../lib/native';
import { Bench, codeOf, collectUntil } from './support';

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open();
});
afterEach(() => bench.dispose());

const BYTES = 4096;
const block = () => bench.tensor(BYTES / 4);
const fillWith = (out: Tensor) => bench.stream.fillRandom({ out, seed: 1, mean: 5, stddev: 0 });

/** Ways in which a tensor is held; each uses it and says what must still hold it after its handle is gone. */
const STATES: Record<string, (tensor: Tensor) => { held: boolean; end?: () => void | Promise<void> }> = {
  idle: () => ({ held: false }),
  queued: (tensor) => {
    bench.busy();
    fillWith(tensor);
    return { held: true };
  },
  'queued for writing': (tensor) => {
    bench.busy();
    bench.stream.write(tensor, new Uint8Array(BYTES));
    return { held: true };
  },
  'queued for reading': (tensor) => {
    bench.busy();
    fillWith(tensor);
    const read = bench.stream.read(tensor);
    return {
      held: true,
      end: async () => {
        expect(new Float32Array(await read).every((value) => value === 5)).toBe(true);
      },
    };
  },
  'used as workspace': (tensor) => {
    const stream = bench.device.stream();
    const view = tensor.view('u8', [BYTES]);
    stream.useWorkspace(view);
    view.dispose();
    return { held: true, end: () => stream.dispose() };
  },
  captured: (tensor) => {
    const graph = bench.stream.capture(() => fillWith(tensor));
    return { held: true, end: () => graph.dispose() };
  },
  replaying: (tensor) => {
    const graph = bench.stream.capture(() => fillWith(tensor));
    bench.busy();
    graph.replay();
    graph.dispose();
    return { held: true };
  },
  failed: (tensor) => {
    native.failCommand(bench.device, 4, false);
    bench.busy();
    fillWith(tensor);
    fillWith(tensor);
    return { held: true };
  },
  'captured and failed': (tensor) => {
    native.failCommand(bench.device, 0, false);
    const graph = bench.stream.capture(() => fillWith(tensor));
    graph.replay();
    return { held: true, end: () => graph.dispose() };
  },
};

let crossed = 0;
afterAll(() => console.log(`${Object.keys(STATES).length} states x 4 ends: ${crossed} crossed`));

describe.each(Object.keys(STATES))('%s', (name) => {
  const enter = STATES[name] as (typeof STATES)[string];
  afterEach(() => {
    crossed += 1;
  });

  test('dispose', async () => {
    const tensor = await block();
    const { held, end } = enter(tensor);
    tensor.dispose();
    expect(tensor.disposed).toBe(true);
    expect(await codeOf(() => fillWith(tensor))).toBe('ERR_DISPOSED');
    expect(bench.held).toBe(held ? BYTES : 0);
    await end?.();
    await bench.settle();
    await bench.settle();
    expect(bench.held).toBe(0);
  });

  test('dispose, with a view that stays', async () => {
    const tensor = await block();
    const view = tensor.view('f32', [8], 64);
    const { end } = enter(tensor);
    tensor.dispose();
    await end?.();
    await bench.settle();
    expect(bench.held).toBe(BYTES);
    fillWith(view);
    expect(await bench.floats(view)).toEqual(Array(8).fill(5));
    view.dispose();
    expect(bench.held).toBe(0);
  });

  test('garbage collection', async () => {
    let end: (() => void | Promise<void>) | undefined;
    await (async () => {
      const tensor = await block();
      ({ end } = enter(tensor));
    })();
    await end?.();
    end = undefined;
    await bench.settle();
    expect(await collectUntil(() => bench.held === 0)).toBe(true);
  });

  test('the device is disposed', async () => {
    const tensor = await block();
    const { end } = enter(tensor);
    await Promise.all([bench.dispose(), Promise.resolve(end?.()).catch(() => {})]);
    expect([tensor.disposed, bench.device.allocatedBytes()]).toEqual([true, 0]);
    tensor.dispose();
  });
});

test('graphs, streams and devices are collected too', async () => {
  await (async () => {
    const stream = bench.device.stream();
    const tensor = await block();
    stream.capture(() => stream.fillRandom({ out: tensor, seed: 1, mean: 0, stddev: 1 }));
  })();
  await bench.settle();
  expect(await collectUntil(() => bench.held === 0)).toBe(true);
});

test('memory that queued work still uses is not handed out again', async () => {
  // Each round frees a tensor that a queued copy still reads, and asks for memory of the same size at once.
  const source = await block();
  bench.stream.write(source, new Float32Array(BYTES / 4).fill(3));
  for (let round = 0; round < 20; round++) {
    const [a, result] = await Promise.all([block(), block()]);
    bench.stream.copy({ src: source, dst: a, blocks: 1, block_bytes: BYTES });
    bench.busy();
    bench.stream.copy({ src: a, dst: result, blocks: 1, block_bytes: BYTES });
    a.dispose();
    const next = block();
    const values = await bench.floats(result);
    expect(values.every((value) => value === 3)).toBe(true);
    const fresh = await next;
    expect((await bench.floats(fresh)).every((value) => value === 0)).toBe(true);
    fresh.dispose();
    result.dispose();
  }
});

test('ten thousand tensors leave nothing behind', async () => {
  const before = process.memoryUsage().rss;
  for (let i = 0; i < 100; i++) {
    const tensors = await Promise.all(Array.from({ length: 100 }, block));
    for (const tensor of tensors) {
      fillWith(tensor);
      tensor.dispose();
    }
  }
  await bench.settle();
  expect(bench.held).toBe(0);
  expect(process.memoryUsage().rss - before).toBeLessThan(100 << 20);
});
