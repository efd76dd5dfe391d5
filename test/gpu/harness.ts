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
// products must give rows the same bits in every batch; NODE_MLA_TEST_DEVICE=cpu runs the same cases on the CPU with another
// number of threads, which tries the cases themselves where there is no GPU. With NODE_MLA_TEST_RECORD nothing is compared,
// see recording.ts.
import { type Device, type DType, native, openDevice, type Verbs } from '../../lib/native';
import { type Closeness, compareClose, compareExact, DEFAULT_TOLERANCE, type Tolerance } from './closeness';
import { Inputs, Planned, TooLarge } from './inputs';
import { openNamed, Placement, type PlannedArgs, Side, type Step } from './placement';
import { isOurs, RECORDING, recordCall } from './recording';

export { DEFAULT_TOLERANCE, type Tolerance, valuesOf } from './closeness';
export { Inputs, type PagedCache, Planned, PlannedSplit, poisonByte, WILD_PAGE } from './inputs';
export type { PlannedArgs, Step } from './placement';
export { RECORDING } from './recording';

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
  /** Arguments whose first dimension is the operation's rows: single rows and halves must give the same bits. */
  rows?: readonly string[];
  /**
   * With `rows`, for matrix products: kernels for few and for many rows may add in another order. Where they do (on a
   * GPU, but for deterministic models) parts are held to the outputs' tolerance.
   */
  product?: boolean;
}

interface Sides {
  reference: Side;
  tested: Side;
  /** the other sets of kernels of this GPU, where calls are recorded */
  also: readonly Side[];
}

let sides: Sides | undefined;

/** Which device is tested: NODE_MLA_TEST_DEVICE, or cuda:0. */
export const TESTED_DEVICE = process.env.NODE_MLA_TEST_DEVICE ?? 'cuda:0';

/** Opens it. */
export const openTested = (): Device => openNamed(TESTED_DEVICE);

function devices(): Sides {
  if (sides === undefined) {
    const others =
      RECORDING && TESTED_DEVICE !== 'cpu' ? [`${TESTED_DEVICE}:portable`, `${TESTED_DEVICE}:deterministic`] : [];
    sides = {
      reference: new Side('cpu', openDevice('cpu', { threads: RECORDING ? 1 : 0 })),
      tested: new Side(TESTED_DEVICE, openTested()),
      also: others.map((name) => new Side(name, openNamed(name))),
    };
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
  if (RECORDING) return recordSmall(verb, makeArgs, options);
  const planned = makeArgs(new Inputs(options.seed ?? 1));
  const { reference, tested } = devices();
  try {
    const expected = await (await Placement.one(reference, verb, planned)).run();
    await compareSide(tested, verb, planned, expected, options);
  } finally {
    for (const side of [reference, tested]) side.release();
  }
}

/** Calls of more bytes are not recorded. */
const MOST_RECORDED = 8.5e7;

/** Records the call of one comparison on all sets of kernels. */
async function recordSmall<V extends keyof Verbs>(
  verb: V,
  makeArgs: (make: Inputs) => PlannedArgs<V>,
  options: CompareOptions,
): Promise<void> {
  if (!isOurs()) return;
  const { tested, also } = devices();
  try {
    const planned = makeArgs(new Inputs(options.seed ?? 1, MOST_RECORDED));
    for (const side of [tested, ...also])
      await recordCall(side, [{ verb, args: planned }], {
        label: options.label ?? shapesOf(planned),
        repeatable: true,
      });
  } catch (error) {
    if (!(error instanceof TooLarge)) throw error;
  } finally {
    for (const side of [tested, ...also]) side.release();
  }
}

async function compareSide<V extends keyof Verbs>(
  side: Side,
  verb: V,
  planned: PlannedArgs<V>,
  expected: Record<string, Uint8Array>,
  options: CompareOptions,
): Promise<void> {
  const placement = await Placement.one(side, verb, planned);
  const actual = await placement.run();
  compareOutputs(verb, planned, actual, expected, options);
  options.judge?.(actual, expected);
  const again = await placement.runCaptured();
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
  const planned = makeArgs(new Inputs(seed));
  try {
    if (!RECORDING) return await (await Placement.one(tested, verb, planned)).run();
    // Its data may be senseless, for which kernels promise nothing but to stay within their outputs.
    const record = (side: Side) =>
      recordCall(side, [{ verb, args: planned }], { label: 'a run of its own', repeatable: false });
    for (const side of also) await record(side);
    return await record(tested);
  } finally {
    for (const side of [tested, ...also]) side.release();
  }
}

/**
 * Runs operations after one another on the tested device, one by one and then as one graph, three times: neighbours that
 * a backend does together there must leave the bits that they leave one by one, or what `judge` accepts, and nothing that
 * a second run minds. Returns how many launches the graph has.
 */
export async function compareTogether(
  label: string,
  steps: readonly Step[],
  judge?: (together: Record<string, Uint8Array>, apart: Record<string, Uint8Array>) => void,
): Promise<number> {
  const { tested, also } = devices();
  try {
    if (RECORDING && isOurs())
      for (const side of [tested, ...also]) await recordCall(side, steps, { label, repeatable: true, captured: true });
    const placement = await Placement.make(tested, steps);
    let expected = await placement.run();
    const graph = placement.capture();
    try {
      for (let turn = 1; turn <= 3; turn++) {
        const actual = await placement.run(() => graph.replay());
        if (turn === 1 && judge !== undefined) judge(actual, expected);
        else
          for (const what of Object.keys(expected))
            expectSameBytes(`${label}: ${what}, together, run ${turn}`, actual, expected, what);
        expected = actual;
      }
      return graph.launches;
    } finally {
      graph.dispose();
    }
  } finally {
    for (const side of [tested, ...also]) side.release();
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
 * A product's rows alone (`actual`) and among others: the same bits, or, on a GPU, where kernels for few and for many
 * rows add in another order unless the device is a deterministic model's, within the tolerance that both have.
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
  if (!TESTED_DEVICE.startsWith('cuda') || TESTED_DEVICE.endsWith(':deterministic'))
    throw new Error(`${what}: other bits`);
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
    const written = await (await Placement.one(side, verb, part as PlannedArgs<V>)).run();
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
