// gpu/harness.ts - runs one operation on the CPU backend and on a GPU with the same bytes, and compares all they wrote.
//
// A case is one call:
//
//   import { after, test } from 'node:test';
//   import { closeDevices, compareVerb } from './harness';
//   after(closeDevices);
//   test('gemm, m 8', () =>
//     compareVerb('gemm', (make) => ({
//       x: make.normal('bf16', [8, 2048]),
//       w: make.normal('bf16', [576, 2048], 0.03),
//       residual: make.normal('bf16', [8, 576]),
//       y: make.output('bf16', [8, 576]),
//     }), { rows: ['x', 'residual', 'y'] }));
//
// `make` is an Inputs (inputs.ts): normal, integers, values, output, inout, cosSin, starts, pagedCache and plan. Numbers
// and booleans are given as they are. What a call checks:
//   - the GPU's outputs against the CPU's, within closeness.ts; NaN and infinities in the same places. Outputs start as
//     poison, so an element that only one side wrote shows as well;
//   - guard bytes (NaN in every float type) before and after every tensor and the workspace, which has exactly the
//     planned size and starts poisoned; inputs must not change;
//   - that a second run inside a captured graph gives the same bits;
//   - with `rows`: that single rows and halves give the bits they have in the whole (`product` says where they may not).
//
// The device under test is cuda:0; NODE_MLA_TEST_DEVICE=cuda:0:deterministic is the one of models with that option, whose
// products must give rows the same bits in every batch; NODE_MLA_TEST_DEVICE=cpu runs the same cases on the CPU with another number of
// threads, which tries the cases themselves where there is no GPU. NODE_MLA_TEST_SMALL=1 is for runs under tools that
// make everything a hundred times slower: it leaves out comparisons of more than 16 MB and says which, and runs the others
// on the portable kernels as well.
import { type Device, type DType, native, openDevice, type Stream, type Tensor, type Verbs } from '../../lib/native';
import { type Closeness, compareClose, compareExact, DEFAULT_TOLERANCE, type Tolerance } from './closeness';
import { Inputs, Planned, PlannedSplit, poisonByte, TooLarge } from './inputs';

export { DEFAULT_TOLERANCE, type Tolerance, valuesOf } from './closeness';
export { Inputs, type PagedCache, Planned, PlannedSplit, poisonByte, WILD_PAGE } from './inputs';

/** The arguments of a verb with host data for tensors. */
export type PlannedArgs<V extends keyof Verbs> = {
  [K in keyof Parameters<Verbs[V]>[0]]: Parameters<Verbs[V]>[0][K] extends Tensor
    ? Planned | PlannedSplit
    : Parameters<Verbs[V]>[0][K] extends Tensor | undefined
      ? Planned | undefined
      : Parameters<Verbs[V]>[0][K];
};

/** How outputs are compared; by argument name. */
export interface CompareOptions {
  seed?: number;
  /** Shown with the figures; default the shapes of the arguments. */
  label?: string;
  /** Other bounds for some outputs. Say why where you use it. */
  tolerance?: Record<string, Partial<Tolerance>>;
  /** Elements of a row, where that is not the last dimension. */
  width?: Record<string, number>;
  /** Outputs whose floats must be equal bit for bit (copies, conversions). Integers always are. */
  exact?: readonly string[];
  /** Outputs that a case judges itself, or none at all ("the backend's own content"): see `judge`. */
  ignore?: readonly string[];
  /** Further checks on what each side wrote, by argument name. Throws when something is wrong. */
  judge?: (actual: Record<string, Uint8Array>, expected: Record<string, Uint8Array>) => void;
  /** Not left out for its size where only small cases are wanted: no smaller one reaches its kernels. */
  evenSmall?: boolean;
  /** Arguments whose first dimension is the operation's rows: single rows and halves must give the same bits. */
  rows?: readonly string[];
  /**
   * With `rows`, for matrix products: kernels for few and for many rows may add in another order. Where they do (on the
   * sm_90a path) parts are held to the outputs' tolerance.
   */
  product?: boolean;
}

const GUARD_BYTES = 256;
const GUARD = 0xff;

/** A device with one stream, for one operation at a time. */
class Side {
  readonly stream: Stream;
  private readonly owned: Tensor[] = [];

  constructor(
    readonly name: string,
    readonly device: Device,
  ) {
    this.stream = device.stream();
  }

  /** Guarded memory that holds these bytes. */
  async place(what: string, planned: Planned): Promise<Placed> {
    const length = planned.bytes.length;
    const base = await this.device.allocate('u8', [length + 2 * GUARD_BYTES]);
    const tensor = base.view(planned.dtype, planned.shape, GUARD_BYTES);
    this.owned.push(tensor, base);
    const placed = { what, base, tensor, planned };
    this.fill(placed);
    return placed;
  }

  /** Puts the content back that it had before the operation. */
  fill({ base, planned }: Placed): void {
    const content = new Uint8Array(planned.bytes.length + 2 * GUARD_BYTES).fill(GUARD);
    content.set(planned.bytes, GUARD_BYTES);
    this.stream.write(base, content);
  }

  /** The bytes between intact guards. */
  async look({ what, base, planned }: Placed): Promise<Uint8Array> {
    const all = new Uint8Array(await this.stream.read(base));
    const end = all.length - GUARD_BYTES;
    for (let i = 0; i < GUARD_BYTES; i++) {
      if (all[i] !== GUARD)
        throw new Error(`${this.name}: ${what}: memory was written ${GUARD_BYTES - i} bytes before its beginning`);
      if (all[end + i] !== GUARD)
        throw new Error(`${this.name}: ${what}: memory was written ${i} bytes behind its end`);
    }
    const bytes = all.subarray(GUARD_BYTES, end);
    if (planned.role === 'in' && Buffer.compare(bytes, planned.bytes) !== 0)
      throw new Error(`${this.name}: ${what} is an input and was written`);
    return bytes;
  }

  /** Gives everything back that place() took. */
  release(): void {
    for (const tensor of this.owned.splice(0)) tensor.dispose();
  }
}

interface Placed {
  what: string;
  base: Tensor;
  tensor: Tensor;
  planned: Planned;
}

/** One operation on one side, ready to run any number of times. */
class Placement<V extends keyof Verbs> {
  private constructor(
    private readonly side: Side,
    private readonly verb: V,
    private readonly args: Parameters<Verbs[V]>[0],
    private readonly tensors: Placed[],
  ) {}

  static async make<V extends keyof Verbs>(side: Side, verb: V, planned: PlannedArgs<V>): Promise<Placement<V>> {
    const args: Record<string, unknown> = {};
    const tensors: Placed[] = [];
    const known = new Map<Planned, Placed>();
    // The same Planned twice is the same memory: operations allow that for some outputs.
    const put = async (name: string, value: Planned): Promise<Tensor> => {
      const placed = known.get(value) ?? (await side.place(`${verb}.${name}`, value));
      if (!known.has(value)) tensors.push(placed);
      known.set(value, placed);
      return placed.tensor;
    };
    const splits: [string, PlannedSplit][] = [];
    for (const [name, value] of Object.entries(planned)) {
      if (value instanceof PlannedSplit) splits.push([name, value]);
      else args[name] = value instanceof Planned ? await put(name, value) : value;
    }
    for (const [name, split] of splits) args[name] = await makeSplit(side, split, put);
    const placement = new Placement(side, verb, args as Parameters<Verbs[V]>[0], tensors);
    const bytes = side.device.workspaceBytes(verb, args as never);
    if (bytes > 0) {
      const poison = new Planned('inout', 'u8', [bytes], new Uint8Array(bytes).fill(poisonByte('f32')));
      const workspace = await side.place(`${verb}'s workspace`, poison);
      tensors.push(workspace);
      side.stream.useWorkspace(workspace.tensor);
    }
    return placement;
  }

  private issue(): void {
    (this.side.stream[this.verb] as (args: Parameters<Verbs[V]>[0]) => void)(this.args);
  }

  /** Runs it once on fresh contents, on its own or as a captured graph. Returns what was written, by name. */
  async run(captured: boolean): Promise<Record<string, Uint8Array>> {
    const { stream } = this.side;
    for (const placed of this.tensors) this.side.fill(placed);
    if (captured) {
      const graph = stream.capture(() => this.issue());
      graph.replay();
      graph.dispose();
    } else {
      this.issue();
    }
    await stream.record().done;
    const written: Record<string, Uint8Array> = {};
    for (const placed of this.tensors) {
      const bytes = await this.side.look(placed);
      const name = placed.what.slice(this.verb.length + 1);
      if (placed.planned.role !== 'in' && name in this.args) written[name] = bytes;
    }
    return written;
  }
}

/** Runs decodePlan where the plan will be read. */
async function makeSplit(
  side: Side,
  { heads, qStart, lengths }: PlannedSplit,
  put: (name: string, value: Planned) => Promise<Tensor>,
): Promise<Tensor> {
  const ints = side.device.decodePlanInts(lengths.shape[0] as number, heads);
  const content = new Planned('inout', 'i32', [ints], new Uint8Array(ints * 4).fill(poisonByte('i32')));
  const plan = await side.place('decodePlan.plan', content);
  side.stream.decodePlan({
    q_start: await put('q_start', qStart),
    lengths: await put('lengths', lengths),
    plan: plan.tensor,
    heads,
  });
  await side.stream.record().done;
  await side.look(plan);
  return plan.tensor;
}

interface Sides {
  reference: Side;
  tested: Side;
  /** where the portable kernels run, in runs of small cases on a GPU that has others */
  also: readonly Side[];
}

let sides: Sides | undefined;

/** Which device is tested: NODE_MLA_TEST_DEVICE, or cuda:0. */
export const TESTED_DEVICE = process.env.NODE_MLA_TEST_DEVICE ?? 'cuda:0';

/** Opens it. */
export function openTested(): Device {
  const cuda = /^cuda:(\d+)(:portable)?(:deterministic)?$/.exec(TESTED_DEVICE);
  if (cuda !== null) {
    const [, index, portable, deterministic] = cuda;
    return openDevice('cuda', {
      index: Number(index),
      portable: portable !== undefined,
      deterministic: deterministic !== undefined,
    });
  }
  if (TESTED_DEVICE === 'cpu') return openDevice('cpu', { threads: 3 });
  throw new Error(`NODE_MLA_TEST_DEVICE must be cpu or cuda:N[:portable][:deterministic]; got "${TESTED_DEVICE}"`);
}

/** Whether only small cases are wanted: NODE_MLA_TEST_SMALL. */
export const SMALL = process.env.NODE_MLA_TEST_SMALL === '1';
const SMALL_BYTES = 16e6;

/** Which of the comparisons this process makes: NODE_MLA_TEST_SHARE=I/N, every N-th name from the I-th on. */
const [SHARE, SHARES] = (process.env.NODE_MLA_TEST_SHARE ?? '0/1').split('/').map(Number) as [number, number];
const comparisons = new Map<string, number>();

/** Comparisons of one name go to the same process. */
function isOurs(name: string): boolean {
  if (!comparisons.has(name)) comparisons.set(name, comparisons.size);
  return (comparisons.get(name) as number) % SHARES === SHARE;
}

function devices(): Sides {
  if (sides === undefined) {
    const tested = new Side(TESTED_DEVICE, openTested());
    const portable = () => new Side('portable', openDevice('cuda', { portable: true }));
    const also = SMALL && tested.device.info().path === 'sm_90a' ? [portable()] : [];
    sides = { reference: new Side('cpu', openDevice('cpu', { threads: SMALL ? 2 : 0 })), tested, also };
  }
  return sides;
}

const printed = new Set<string>();

/** Disposes the devices of this file's comparisons, and says which kernels have been launched; give it to after(). */
export async function closeDevices(): Promise<void> {
  const open = sides;
  sides = undefined;
  for (const name of native.launchedKernels()) {
    if (!printed.has(name)) console.log(`kernel ${name}`);
    printed.add(name);
  }
  if (open === undefined) return;
  for (const { device } of [open.reference, open.tested, ...open.also]) await device.dispose();
}

/** Runs one operation on both devices and compares; see the top of this file. */
export async function compareVerb<V extends keyof Verbs>(
  verb: V,
  makeArgs: (make: Inputs) => PlannedArgs<V>,
  options: CompareOptions = {},
): Promise<void> {
  if (!isOurs(options.label ?? `${comparisons.size}`)) return;
  const planned = planSmall(makeArgs, options.seed ?? 1, SMALL && !options.evenSmall ? SMALL_BYTES : Infinity);
  if (planned === null) {
    console.log(`${verb} ${options.label ?? ''}: left out, more than ${SMALL_BYTES / 1e6} MB`);
    return;
  }
  const { reference, tested, also } = devices();
  try {
    const expected = await (await Placement.make(reference, verb, planned)).run(false);
    for (const side of [...also, tested]) await compareSide(side, verb, planned, expected, options);
  } finally {
    for (const side of [reference, tested, ...also]) side.release();
  }
}

/** The arguments, or null where they take more bytes than `most`. */
function planSmall<P extends object>(makeArgs: (make: Inputs) => P, seed: number, most: number): P | null {
  try {
    const planned = makeArgs(new Inputs(seed, most));
    // Some arguments have been made before, for several cases.
    return bytesOf(planned) > most ? null : planned;
  } catch (error) {
    if (error instanceof TooLarge) return null;
    throw error;
  }
}

async function compareSide<V extends keyof Verbs>(
  side: Side,
  verb: V,
  planned: PlannedArgs<V>,
  expected: Record<string, Uint8Array>,
  options: CompareOptions,
): Promise<void> {
  const placement = await Placement.make(side, verb, planned);
  const actual = await placement.run(false);
  compareOutputs(verb, planned, actual, expected, options);
  options.judge?.(actual, expected);
  const again = await placement.run(true);
  for (const name of Object.keys(actual)) expectSameBytes(`${verb}.${name}, run again as a graph`, again, actual, name);
  if (options.rows !== undefined) await compareRows(side, verb, planned, options.rows, actual, options);
}

/** Runs one operation on the tested device alone and returns what it wrote, for cases with a reference of their own. */
export async function runTested<V extends keyof Verbs>(
  verb: V,
  makeArgs: (make: Inputs) => PlannedArgs<V>,
  seed = 1,
): Promise<Record<string, Uint8Array>> {
  const { tested, also } = devices();
  try {
    for (const side of also) await (await Placement.make(side, verb, makeArgs(new Inputs(seed)))).run(false);
    return await (await Placement.make(tested, verb, makeArgs(new Inputs(seed)))).run(false);
  } finally {
    for (const side of [tested, ...also]) side.release();
  }
}

/** An operation of a sequence; the same Planned in several of them is the same memory. */
export interface Step {
  verb: keyof Verbs;
  args: Readonly<Record<string, unknown>>;
}

/**
 * Runs operations after one another on the tested device, one by one and then as one graph, three times: neighbours that
 * a backend does together there must leave the bits that they leave one by one, and nothing that a second run minds.
 * Without `same` they may leave anything in their outputs. Returns how many launches the graph has.
 */
export async function compareTogether(label: string, steps: readonly Step[], same = true): Promise<number> {
  const { tested: side } = devices();
  try {
    const placed = new Map<Planned, Placed>();
    let workspace = 0;
    const calls: [keyof Verbs, Record<string, unknown>][] = [];
    for (const { verb, args } of steps) {
      const placedArgs: Record<string, unknown> = {};
      const put = async (name: string, value: Planned): Promise<Tensor> => {
        const there = placed.get(value) ?? (await side.place(`${verb}.${name}`, value));
        placed.set(value, there);
        return there.tensor;
      };
      for (const [name, value] of Object.entries(args)) {
        if (value instanceof PlannedSplit) placedArgs[name] = await makeSplit(side, value, put);
        else placedArgs[name] = value instanceof Planned ? await put(name, value) : value;
      }
      workspace = Math.max(workspace, side.device.workspaceBytes(verb, placedArgs as never));
      calls.push([verb, placedArgs]);
    }
    const poison = new Planned('inout', 'u8', [workspace], new Uint8Array(workspace).fill(poisonByte('f32')));
    const scratch = workspace > 0 ? await side.place('workspace', poison) : undefined;
    if (scratch !== undefined) side.stream.useWorkspace(scratch.tensor);
    const issue = () => {
      for (const [verb, args] of calls) (side.stream[verb] as (args: unknown) => void)(args);
    };
    const run = async (go: () => void) => {
      for (const one of placed.values()) side.fill(one);
      if (scratch !== undefined) side.fill(scratch);
      go();
      await side.stream.record().done;
      if (scratch !== undefined) await side.look(scratch);
      const written = new Map<Planned, Uint8Array>();
      for (const [planned, one] of placed) written.set(planned, await side.look(one));
      return written;
    };
    const expected = await run(issue);
    const graph = side.stream.capture(issue);
    try {
      for (let turn = 1; turn <= 3; turn++) {
        const actual = await run(() => graph.replay());
        for (const [planned, bytes] of same ? actual : []) {
          const { what } = placed.get(planned) as Placed;
          const name = `${label}: ${what}, together, run ${turn}`;
          expectSameBytes(name, { [what]: bytes }, { [what]: expected.get(planned) as Uint8Array }, what);
        }
      }
      return graph.launches;
    } finally {
      graph.dispose();
    }
  } finally {
    side.release();
  }
}

function compareOutputs(
  verb: string,
  planned: object,
  actual: Record<string, Uint8Array>,
  expected: Record<string, Uint8Array>,
  options: CompareOptions,
): void {
  const problems: string[] = [];
  const figures: string[] = [];
  for (const [name, bytes] of Object.entries(expected)) {
    if (options.ignore?.includes(name)) continue;
    const { dtype, shape } = (planned as Record<string, Planned>)[name] as Planned;
    const ours = actual[name] as Uint8Array;
    let result: Closeness;
    if ((dtype === 'f32' || dtype === 'bf16' || dtype === 'f16') && !options.exact?.includes(name)) {
      const tolerance = { ...DEFAULT_TOLERANCE[dtype], ...options.tolerance?.[name] };
      result = compareClose(dtype, shape, ours, bytes, tolerance, options.width?.[name]);
      figures.push(`${name} ${result.norm.toExponential(1)} (worst ${result.worst.toFixed(2)} of its bound)`);
    } else {
      result = compareExact(dtype, shape, ours, bytes);
      figures.push(`${name} ${result.complaint === undefined ? 'equal' : 'DIFFERS'}`);
    }
    if (result.complaint !== undefined) problems.push(`${verb}.${name}: ${result.complaint}`);
  }
  const label = options.label ?? shapesOf(planned);
  console.log(`${verb} ${label}: ${figures.join(', ')}`);
  if (problems.length > 0) throw new Error(`${verb} ${label}\n  ${problems.join('\n  ')}`);
}

function bytesOf(planned: object): number {
  return Object.values(planned).reduce((sum, value) => sum + (value instanceof Planned ? value.bytes.length : 0), 0);
}

function shapesOf(planned: object): string {
  return Object.entries(planned)
    .filter(([, value]) => value instanceof Planned)
    .map(([name, { dtype, shape }]) => `${name} ${dtype}[${shape}]`)
    .join(' ');
}

function expectSameBytes(
  what: string,
  actual: Record<string, Uint8Array>,
  expected: Record<string, Uint8Array>,
  name: string,
  from = 0,
): void {
  const a = actual[name] as Uint8Array;
  const e = (expected[name] as Uint8Array).subarray(from, from + a.length);
  if (Buffer.compare(a, e) === 0) return;
  const first = a.findIndex((byte, i) => byte !== e[i]);
  throw new Error(`${what}: other bits, the first at byte ${first} of ${a.length}`);
}

/**
 * A product's rows alone (`actual`) and among others: the same bits, or, on the sm_90a path, where kernels for few and
 * for many rows add in another order, within the tolerance that both have.
 */
export function expectSameProduct(
  what: string,
  dtype: DType,
  shape: readonly number[],
  actual: Uint8Array,
  expected: Uint8Array,
  { tolerance, width }: { tolerance?: Partial<Tolerance> | undefined; width?: number | undefined } = {},
): void {
  if (Buffer.compare(actual, expected) === 0) return;
  const { path } = devices().tested.device.info();
  if (path !== 'sm_90a' || TESTED_DEVICE.endsWith(':deterministic')) throw new Error(`${what}: other bits`);
  if (dtype !== 'f32' && dtype !== 'bf16') throw new Error(`${what}: ${dtype} values differ`);
  const result = compareClose(dtype, shape, actual, expected, { ...DEFAULT_TOLERANCE[dtype], ...tolerance }, width);
  if (result.complaint !== undefined) throw new Error(`${what}: ${result.complaint}`);
}

/** The whole in two halves, and its first, middle and last row alone. */
async function compareRows<V extends keyof Verbs>(
  side: Side,
  verb: V,
  planned: PlannedArgs<V>,
  names: readonly string[],
  whole: Record<string, Uint8Array>,
  options: CompareOptions,
): Promise<void> {
  const all = planned as Record<string, unknown>;
  const total = (all[names[0] as string] as Planned).shape[0] as number;
  const half = total >> 1;
  const parts = [
    [0, 1],
    [half, half + 1],
    [total - 1, total],
    [0, half],
    [half, total],
  ] as const;
  for (const [begin, end] of parts) {
    if (begin >= end || begin < 0) continue;
    const cut = new Map<unknown, Planned>();
    const part = { ...all };
    for (const name of names) {
      const value = all[name];
      if (!(value instanceof Planned)) continue;
      if (!cut.has(value)) cut.set(value, value.rows(begin, end));
      part[name] = cut.get(value);
    }
    side.release();
    const written = await (await Placement.make(side, verb, part as PlannedArgs<V>)).run(false);
    for (const name of names) {
      if (written[name] === undefined) continue;
      const rowBytes = (whole[name] as Uint8Array).length / total;
      const what = `${verb}.${name}, rows ${begin} to ${end - 1} alone`;
      if (!options.product) expectSameBytes(what, written, whole, name, begin * rowBytes);
      else {
        const { dtype, shape } = part[name] as Planned;
        const expected = (whole[name] as Uint8Array).subarray(begin * rowBytes, end * rowBytes);
        expectSameProduct(what, dtype, shape, written[name] as Uint8Array, expected, {
          tolerance: options.tolerance?.[name],
          width: options.width?.[name],
        });
      }
    }
  }
}
