// Every method x every state x wrong values in every place: the receiver, each argument, each field of an argument.
// Nothing but an MlaError may come out, and nothing may have changed afterwards.
import {
  type Device,
  type Event,
  type Graph,
  native,
  openDevice,
  type Reader,
  type Stream,
  type Tensor,
  type Verbs,
} from '../../lib/native';
import { CALLS, isTensor } from './operations';

interface Scene {
  device: Device;
  stream: Stream;
  tensor: Tensor;
  graph: Graph;
  reader: Reader;
  event: Event;
  /** Tensors of each operation's arguments, by verb and name. */
  operands: Map<string, Record<string, unknown>>;
  /** A tensor with known content that nothing may touch. */
  canary: Tensor;
  ballast: Tensor;
  /** Values that are wrong in (nearly) every place. */
  wrong: Map<string, unknown>;
}

const CANARY = new Float32Array([1, 2, 3, 4]);

function detached(): Float32Array {
  const view = new Float32Array(4);
  structuredClone(view.buffer, { transfer: [view.buffer] });
  return view;
}

/** An object whose every property throws, what V8 itself asks for included. */
function mine(target: object): object {
  const explode = () => {
    throw new TypeError('from a proxy');
  };
  return new Proxy(target, { get: explode, has: explode, ownKeys: explode, getPrototypeOf: explode });
}

function wrongValues(scene: Omit<Scene, 'wrong'>, foreign: Tensor, gone: Tensor): Map<string, unknown> {
  const getter = Object.defineProperties(
    {},
    Object.fromEntries(
      ['dtype', 'shape', 'x', 'out', 'threads', 'index', 'length', '0'].map((name) => [
        name,
        {
          enumerable: true,
          get: () => {
            throw new RangeError('from a getter');
          },
        },
      ]),
    ),
  );
  const buffer = new ArrayBuffer(16);
  structuredClone(buffer, { transfer: [buffer] });
  return new Map<string, unknown>([
    ['undefined', undefined],
    ['null', null],
    ['true', true],
    ['NaN', NaN],
    ['-1', -1],
    ['0.5', 0.5],
    ['2^53', 2 ** 53],
    ['1e308', 1e308],
    ['Infinity', Infinity],
    ['-Infinity', -Infinity],
    ['1n', 1n],
    ['empty string', ''],
    ['string', '4'],
    ['long string', 'x'.repeat(1 << 16)],
    ['symbol', Symbol('s')],
    ['object', {}],
    ['object without prototype', Object.create(null)],
    ['array', []],
    ['array of NaN', [NaN, -1]],
    ['array of 2^53', [2 ** 53, 2 ** 53]],
    ['deep array', [1, 1, 1, 1, 1, 1]],
    ['sparse array', new Array(3)],
    ['date', new Date(NaN)],
    ['throwing function', mine(() => {})],
    ['object with getters that throw', getter],
    ['proxy that throws', mine({})],
    ['array proxy that throws', mine([])],
    ['proxy of a tensor', new Proxy(scene.tensor, {})],
    ['wrong prototype', Object.create(Object.getPrototypeOf(scene.tensor) as object)],
    ['tensor of another device', foreign],
    ['disposed tensor', gone],
    ['stream', scene.stream],
    ['event', scene.event],
    ['graph', scene.graph],
    ['reader', scene.reader],
    ['detached view', detached()],
    ['detached buffer', buffer],
    ['shared view', new Float32Array(new SharedArrayBuffer(16))],
    ['view of 64 KiB', new Uint8Array(1 << 16)],
    ['revoked proxy', revoked()],
  ]);
}

function revoked(): object {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
}

async function makeScene(): Promise<Scene> {
  const device = openDevice('cpu', { threads: 1 });
  const stream = device.stream();
  stream.useWorkspace(await device.allocate('u8', [1 << 20]));
  const operands = new Map<string, Record<string, unknown>>();
  for (const [verb, call] of Object.entries(CALLS)) {
    const values: Record<string, unknown> = {};
    for (const [name, argument] of Object.entries(call)) {
      if (!isTensor(argument)) values[name] = argument;
      else {
        const [dtype, ...shape] = argument;
        values[name] = await device.allocate(dtype, shape);
      }
    }
    operands.set(verb, values);
  }
  const tensor = await device.allocate('f32', [4]);
  const canary = await device.allocate('f32', [4]);
  stream.write(canary, CANARY);
  const graph = stream.capture(() => stream.fillRandom({ out: tensor, seed: 0, mean: 0, stddev: 1 }));
  const reader = stream.reader(tensor);
  const event = stream.record();
  await event.done;
  const foreign = await other.allocate('f32', [4]);
  const gone = await device.allocate('f32', [4]);
  gone.dispose();
  const ballast = await device.allocate('f32', [1 << 18]);
  const scene = { device, stream, tensor, graph, reader, event, operands, canary, ballast };
  return { ...scene, wrong: wrongValues(scene, foreign, gone) };
}

/** A call: the object it is made on, the name, and arguments that are right. */
interface Method {
  name: string;
  on: (scene: Scene) => object;
  args: (scene: Scene) => unknown[];
  /** A property instead of a method. */
  getter?: boolean;
  /** Only wrong receivers are tried: on the right one it would succeed. */
  ends?: boolean;
}

const METHODS: Method[] = [
  { name: 'info', on: (s) => s.device, args: () => [] },
  { name: 'allocate', on: (s) => s.device, args: () => ['f32', [4]] },
  { name: 'stream', on: (s) => s.device, args: () => [] },
  { name: 'workspaceBytes', on: (s) => s.device, args: (s) => ['gemm', s.operands.get('gemm')] },
  { name: 'decodePlanInts', on: (s) => s.device, args: () => [4, 2] },
  { name: 'allocatedBytes', on: (s) => s.device, args: () => [] },
  { name: 'disposed', on: (s) => s.device, args: () => [], getter: true },
  { name: 'view', on: (s) => s.tensor, args: () => ['f32', [2], 8] },
  { name: 'disposed', on: (s) => s.tensor, args: () => [], getter: true },
  { name: 'replay', on: (s) => s.graph, args: () => [] },
  { name: 'operations', on: (s) => s.graph, args: () => [], getter: true },
  { name: 'launches', on: (s) => s.graph, args: () => [], getter: true },
  { name: 'disposed', on: (s) => s.graph, args: () => [], getter: true },
  { name: 'useWorkspace', on: (s) => s.stream, args: (s) => [s.tensor] },
  { name: 'write', on: (s) => s.stream, args: (s) => [s.tensor, new Float32Array(4), 0] },
  { name: 'read', on: (s) => s.stream, args: (s) => [s.tensor] },
  { name: 'reader', on: (s) => s.stream, args: (s) => [s.tensor] },
  { name: 'read', on: (s) => s.reader, args: () => [] },
  { name: 'disposed', on: (s) => s.reader, args: () => [], getter: true },
  { name: 'readFile', on: (s) => s.stream, args: (s) => [s.tensor, 2 ** 30, 0] },
  { name: 'record', on: (s) => s.stream, args: () => [] },
  { name: 'wait', on: (s) => s.stream, args: (s) => [s.event] },
  { name: 'capture', on: (s) => s.stream, args: () => [() => {}] },
  { name: 'disposed', on: (s) => s.stream, args: () => [], getter: true },
  ...(Object.keys(CALLS) as (keyof Verbs)[]).map((verb) => ({
    name: verb,
    on: (s: Scene) => s.stream,
    args: (s: Scene) => [s.operands.get(verb)],
  })),
  { name: 'dispose', on: (s) => s.device, args: () => [], ends: true },
  { name: 'abandon', on: (s) => s.device, args: () => [1000], ends: true },
  { name: 'dispose', on: (s) => s.stream, args: () => [], ends: true },
  { name: 'dispose', on: (s) => s.graph, args: () => [], ends: true },
  { name: 'dispose', on: (s) => s.reader, args: () => [], ends: true },
  { name: 'openDevice', on: () => native, args: () => ['cpu', { threads: 1 }] },
  { name: 'failAllocation', on: () => native, args: () => [-1] },
  { name: 'launchedKernels', on: () => native, args: () => [false] },
  { name: 'failCommand', on: () => native, args: (s) => [s.device, -1, false] },
  // Last, because some of the wrong values are tensors, and these it ends.
  { name: 'dispose', on: (s) => s.tensor, args: () => [], ends: true },
];

let calls = 0;
let refusals = 0;
let other: Device;
const pending: Promise<unknown>[] = [];

/** Anything but success and MlaError is a defect. Devices that come out are closed again. */
function outcome(what: string, call: () => unknown): void {
  calls++;
  const judge = (error: unknown) => {
    refusals++;
    const { name, code, message } = error as { name: string; code: string; message: string };
    // The caller's own exception leaves capture() as it is.
    if (what.startsWith('capture') && message === 'from a proxy') return;
    if (name !== 'MlaError' || !/^ERR_(INVALID_ARG|DISPOSED|STATE|DEVICE_LOST|FILE)$/.test(code) || message.length < 10)
      throw new Error(`${what}: ${name} ${code} ${message}`);
  };
  let result: unknown;
  try {
    result = call();
  } catch (error) {
    judge(error);
    return;
  }
  if (result instanceof Promise) pending.push(result.then(release, judge));
  else release(result);
}

/** Gives back what a successful call made. */
function release(result: unknown): unknown {
  const made = result as { dispose?: () => unknown; done?: Promise<void> } | null | undefined;
  if (typeof made !== 'object' || made === null) return undefined;
  made.done?.catch(() => {});
  return made.dispose?.();
}

const invoke = ({ name, getter }: Method, receiver: unknown, target: object, args: unknown[]): unknown => {
  if (getter) return Reflect.get(Object.getPrototypeOf(target) as object, name, receiver);
  return Reflect.apply((target as Record<string, (...a: unknown[]) => unknown>)[name] as never, receiver, args);
};

/** Calls a method in every wrong way. */
function misuse(scene: Scene, method: Method, keepBusy: () => void): void {
  const target = method.on(scene);
  const isModule = target === native;
  for (const [label, value] of scene.wrong) {
    if (method.ends && value === target) continue;
    keepBusy();
    if (!isModule) outcome(`${method.name} on ${label}`, () => invoke(method, value, target, method.args(scene)));
    const args = method.args(scene);
    for (let i = 0; i < args.length; i++) {
      const changed = args.with(i, value);
      outcome(`${method.name} with ${label} as argument ${i}`, () => invoke(method, target, target, changed));
      const fields = args[i];
      if (typeof fields !== 'object' || fields === null || Object.getPrototypeOf(fields) !== Object.prototype) continue;
      for (const field of Object.keys(fields)) {
        const object = args.with(i, { ...fields, [field]: value });
        outcome(`${method.name} with ${label} as ${field}`, () => invoke(method, target, target, object));
      }
    }
  }
  if (!method.ends) outcome(`${method.name} without arguments`, () => invoke(method, target, target, []));
}

beforeAll(() => {
  other = openDevice('cpu', { threads: 1 });
});
afterAll(async () => {
  await other.dispose();
  process.stdout.write(`misuse matrix: ${calls} wrong calls, ${refusals} refused\n`);
});

test('there are at least 20 wrong values', async () => {
  const scene = await makeScene();
  expect(scene.wrong.size).toBeGreaterThanOrEqual(20);
  await scene.device.dispose();
});

test.each(['open', 'busy', 'disposed', 'lost'])('%s', async (state) => {
  const scene = await makeScene();
  const { device, stream, canary, ballast } = scene;
  let idle = true;
  const keepBusy = () => {
    if (state !== 'busy' || !idle) return;
    idle = false;
    for (let i = 0; i < 20; i++) stream.fillRandom({ out: ballast, seed: i, mean: 0, stddev: 1 });
    stream.record().done.then(
      () => {
        idle = true;
      },
      () => {
        idle = true;
      },
    );
  };
  if (state === 'disposed') await device.dispose();
  if (state === 'lost') {
    native.failCommand(device, 0, true);
    stream.write(scene.tensor, new Float32Array(4));
    // Either the event reports the loss, or there is no event any more.
    await (async () => stream.record().done)().catch(() => {});
  }
  const held = device.allocatedBytes();
  for (const method of METHODS) {
    misuse(scene, method, keepBusy);
    await Promise.all(pending.splice(0));
    // What was refused has changed nothing.
    native.failAllocation(-1);
    if (state === 'open' || state === 'busy') {
      await stream.record().done.catch(() => {});
      expect([method.name, device.allocatedBytes()]).toEqual([method.name, held]);
    }
  }
  if (state === 'open' || state === 'busy') {
    expect([...new Float32Array(await stream.read(canary))]).toEqual([...CANARY]);
    stream.fillRandom({ out: scene.tensor, seed: 1, mean: 2, stddev: 0 });
    expect([...new Float32Array(await stream.read(scene.tensor))]).toEqual([2, 2, 2, 2]);
  } else {
    const code = state === 'lost' ? 'ERR_DEVICE_LOST' : 'ERR_DISPOSED';
    await expect(device.allocate('f32', [1])).rejects.toMatchObject({ code });
    expect(() => stream.record()).toThrow(expect.objectContaining({ code }));
  }
  await device.dispose();
});

test('the handles themselves refuse a foreign receiver and foreign arguments, whatever lib/native lets through', () => {
  // What lies underneath, without the checks in TypeScript.
  const addon = require('../../build/Release/node_mla.node') as {
    openDevice(cuda: unknown, number: unknown, portable: unknown, deterministic: unknown, serial: unknown): unknown;
    operations(): unknown[];
  };
  const raw = addon.openDevice(false, 1, false, false, false) as Record<string, (...args: unknown[]) => unknown>;
  const stream = (raw.stream as () => unknown).call(raw) as Record<string, (...args: unknown[]) => unknown>;
  const values = [
    undefined,
    null,
    NaN,
    -1,
    2 ** 53,
    1n,
    'x',
    {},
    [],
    [NaN],
    () => {},
    stream,
    raw,
    detached(),
    mine({}),
  ];
  let tried = 0;
  for (const target of [raw, stream])
    for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(target))) {
      if (name === 'constructor' || name === 'dispose') continue;
      const call = (...args: unknown[]) => (target[name] as (...args: unknown[]) => unknown).apply(target, args);
      for (const a of values)
        for (const b of values) {
          tried++;
          call(a, b, a);
          call(0, a, b);
        }
      for (const wrong of [{}, raw === target ? stream : raw, null, Object.create(target)])
        expect(() => (target[name] as (...args: unknown[]) => unknown).call(wrong)).toThrow();
    }
  for (let verb = 0; verb < addon.operations().length; verb++)
    for (const a of values)
      expect(typeof (stream.run as (...args: unknown[]) => unknown).call(stream, verb, a, a, a)).toBe('string');
  const Raw = raw.constructor as unknown as new () => unknown;
  expect(() => new Raw()).toThrow('cannot be constructed');
  expect(tried).toBeGreaterThan(1000);
  return (raw.dispose as () => Promise<void>).call(raw);
});
