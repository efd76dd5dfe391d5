// Graphs: what capture records, what it refuses, and that replays do the work.
import { native } from '../../lib/native';
import { Bench, codeOf } from './support';

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open();
});
afterEach(() => bench.dispose());

const fill = (value: number, length = 4) => new Float32Array(length).fill(value);
const copyArgs = { blocks: 1, block_bytes: 16 };

test('captured operations run at each replay, and not before', async () => {
  const { stream } = bench;
  const [a, b, c] = await Promise.all([bench.tensor(4), bench.tensor(4), bench.tensor(4)]);
  const graph = stream.capture(() => {
    stream.copy({ src: a, dst: b, ...copyArgs });
    stream.copy({ src: b, dst: c, ...copyArgs });
  });
  expect(graph.operations).toBe(2);
  stream.write(a, fill(1));
  expect(await bench.floats(c)).toEqual([0, 0, 0, 0]);
  graph.replay();
  expect(await bench.floats(c)).toEqual([1, 1, 1, 1]);
  stream.write(a, fill(2));
  graph.replay();
  stream.write(a, fill(3));
  expect(await bench.floats(c)).toEqual([2, 2, 2, 2]);
  for (let i = 0; i < 1000; i++) graph.replay();
  expect(await bench.floats(c)).toEqual([3, 3, 3, 3]);
});

test('an empty graph can be replayed', async () => {
  const graph = bench.stream.capture(() => {});
  expect(graph.operations).toBe(0);
  graph.replay();
  expect(await codeOf(() => bench.stream.record().done)).toBeUndefined();
});

test('a graph uses the workspace of its capture', async () => {
  const { stream, device } = bench;
  const [x, w, y] = await Promise.all([bench.tensor(3, 64), bench.tensor(32, 64), bench.tensor(3, 32)]);
  stream.write(x, fill(1, 192));
  stream.write(w, fill(1, 2048));
  const bytes = Math.max(1, device.workspaceBytes('gemm', { x, w, y }));
  const workspace = await device.allocate('u8', [bytes]);
  stream.useWorkspace(workspace);
  const graph = stream.capture(() => stream.gemm({ x, w, y }));
  workspace.dispose();
  stream.useWorkspace(await device.allocate('u8', [1]));
  graph.replay();
  expect(await bench.floats(y)).toEqual([...fill(64, 96)]);
});

test('a workspace that is too small is refused before anything runs', async () => {
  const { stream, device } = bench;
  const [x, w, y] = await Promise.all([bench.tensor(300, 512), bench.tensor(256, 512), bench.tensor(300, 256)]);
  const bytes = device.workspaceBytes('gemm', { x, w, y });
  expect(bytes).toBeGreaterThan(1);
  expect(() => stream.gemm({ x, w, y })).toThrow(`gemm needs a workspace of ${bytes} bytes`);
  stream.useWorkspace(await device.allocate('u8', [bytes - 1]));
  expect(() => stream.gemm({ x, w, y })).toThrow(`the stream's has ${bytes - 1}`);
  stream.useWorkspace(await device.allocate('u8', [bytes]));
  stream.gemm({ x, w, y });
  await stream.record().done;
});

test('a throw inside ends the capture and leaves the stream usable', async () => {
  const { stream } = bench;
  const a = await bench.tensor(4);
  const thrown = new RangeError('mine');
  expect(() =>
    stream.capture(() => {
      stream.fillRandom({ out: a, seed: 1, mean: 0, stddev: 1 });
      throw thrown;
    }),
  ).toThrow(thrown);
  expect(await bench.floats(a)).toEqual([0, 0, 0, 0]);
  stream.write(a, fill(1));
  expect(await bench.floats(a)).toEqual([1, 1, 1, 1]);
});

test('an operation that fails its checks discards the graph, also when the function hides the error', async () => {
  const { stream } = bench;
  const a = await bench.tensor(4);
  const wrong = () => stream.cast({ x: a, out: a.view('f32', [3]) });
  const inside = jest.fn();
  expect(() => stream.capture(wrong)).toThrow('as many elements');
  expect(() =>
    stream.capture(() => {
      try {
        wrong();
      } catch {}
      inside();
    }),
  ).toThrow('as many elements');
  expect(inside).toHaveBeenCalledTimes(1);
  stream.write(a, fill(1));
  expect(await bench.floats(a)).toEqual([1, 1, 1, 1]);
});

test('only operations are possible inside', async () => {
  const { stream, device } = bench;
  const a = await bench.tensor(4);
  const event = stream.record();
  const other = stream.capture(() => {});
  const calls: (() => unknown)[] = [
    () => stream.write(a, fill(1)),
    () => stream.readFile(a, 0, 0),
    () => stream.record(),
    () => stream.wait(event),
    () => stream.capture(() => {}),
    () => other.replay(),
  ];
  for (const call of calls) expect(await codeOf(() => stream.capture(() => void call()))).toBe('ERR_STATE');
  let read: Promise<unknown> | undefined;
  stream.capture(() => {
    read = stream.read(a);
  });
  expect(await codeOf(() => read)).toBe('ERR_STATE');
  // Another stream is free.
  const second = device.stream();
  stream.capture(() => second.write(a, fill(9)));
  expect(await bench.floats(a, second)).toEqual([9, 9, 9, 9]);
});

test('a graph has one workspace', async () => {
  const { stream, device } = bench;
  const a = await bench.tensor(4);
  const workspace = await device.allocate('u8', [64]);
  const fillOnce = () => stream.fillRandom({ out: a, seed: 1, mean: 0, stddev: 1 });
  stream.capture(() => {
    stream.useWorkspace(workspace);
    fillOnce();
  });
  const late = () => {
    fillOnce();
    stream.useWorkspace(workspace);
  };
  expect(await codeOf(() => stream.capture(late))).toBe('ERR_STATE');
});

test('the function must be synchronous', async () => {
  const { stream } = bench;
  const late = jest.fn(async () => {
    await Promise.resolve();
    throw new Error('nobody hears this');
  });
  expect(() => stream.capture(late as unknown as () => void)).toThrow('synchronous');
  await new Promise((resolve) => setImmediate(resolve));
  expect(await codeOf(() => stream.record().done)).toBeUndefined();
});

test('disposing inside ends the capture', async () => {
  const { device } = bench;
  const stream = device.stream();
  expect(await codeOf(() => stream.capture(() => stream.dispose()))).toBe('ERR_DISPOSED');
  let ended: Promise<void> | undefined;
  expect(
    await codeOf(() =>
      bench.stream.capture(() => {
        ended = device.dispose();
      }),
    ),
  ).toBe('ERR_DISPOSED');
  await ended;
});

test('a graph that cannot be compiled fails the stream and every replay', async () => {
  const { stream } = bench;
  const a = await bench.tensor(4);
  native.failCommand(bench.device, 0, false);
  const graph = stream.capture(() => stream.fillRandom({ out: a, seed: 1, mean: 0, stddev: 1 }));
  expect(await codeOf(() => stream.record().done)).toBe('ERR_BACKEND');
  for (let i = 0; i < 2; i++) {
    graph.replay();
    expect(await codeOf(() => stream.record().done)).toBe('ERR_BACKEND');
  }
  expect(await codeOf(() => stream.record().done)).toBeUndefined();
});

test('a disposed graph is not replayed, queued replays still run', async () => {
  const { stream } = bench;
  const [a, b] = await Promise.all([bench.tensor(4), bench.tensor(4)]);
  const graph = stream.capture(() => stream.copy({ src: a, dst: b, ...copyArgs }));
  stream.write(a, fill(4));
  bench.busy();
  graph.replay();
  graph.dispose();
  graph.dispose();
  expect(graph.disposed).toBe(true);
  expect(await codeOf(() => graph.replay())).toBe('ERR_DISPOSED');
  expect(await bench.floats(b)).toEqual([4, 4, 4, 4]);
  const lost = stream.capture(() => {});
  stream.dispose();
  expect(await codeOf(() => lost.replay())).toBe('ERR_DISPOSED');
});
