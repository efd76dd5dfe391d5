// gpu/placement.ts - operations on one device: their arguments between guard bytes, run one by one or as a captured graph,
// and what they wrote. `harness.ts` compares with it, `recording.ts` and `replay.ts` repeat calls under other tools.
import { type Device, type Graph, openDevice, type Stream, type Tensor, type Verbs } from '../../lib/native';
import { Planned, PlannedSplit, poisonByte } from './inputs';

/** The arguments of a verb with host data for tensors. */
export type PlannedArgs<V extends keyof Verbs> = {
  [K in keyof Parameters<Verbs[V]>[0]]: Parameters<Verbs[V]>[0][K] extends Tensor
    ? Planned | PlannedSplit
    : Parameters<Verbs[V]>[0][K] extends Tensor | undefined
      ? Planned | undefined
      : Parameters<Verbs[V]>[0][K];
};

/** Opens cpu, cuda:N, cuda:N:portable, cuda:N:deterministic or cuda:N:portable:deterministic. */
export function openNamed(name: string): Device {
  const cuda = /^cuda:(\d+)(:portable)?(:deterministic)?$/.exec(name);
  if (cuda !== null) {
    const [, index, portable, deterministic] = cuda;
    return openDevice('cuda', {
      index: Number(index),
      portable: portable !== undefined,
      deterministic: deterministic !== undefined,
    });
  }
  if (name === 'cpu') return openDevice('cpu', { threads: 3 });
  throw new Error(`a device under test is cpu or cuda:N[:portable][:deterministic]; got "${name}"`);
}

const GUARD_BYTES = 256;
const GUARD = 0xff;
const WORKSPACE = 'workspace';

/** A device with one stream, for one operation at a time. */
export class Side {
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
    const { length } = guarded(planned);
    const base = await this.device.allocate('u8', [length]);
    this.owned.push(base);
    const placed = { what, base, planned };
    this.fill(placed);
    return placed;
  }

  /** A tensor of this shape in placed memory. */
  view({ base }: Placed, { dtype, shape, shift }: Planned): Tensor {
    const tensor = base.view(dtype, shape, GUARD_BYTES + shift);
    this.owned.push(tensor);
    return tensor;
  }

  /** Puts the content back that it had before the operation. */
  fill({ base, planned }: Placed): void {
    const { length, begin } = guarded(planned);
    const content = new Uint8Array(length).fill(GUARD);
    content.set(planned.bytes, begin);
    this.stream.write(base, content);
  }

  /** The bytes between intact guards. */
  async look({ what, base, planned }: Placed): Promise<Uint8Array> {
    const all = new Uint8Array(await this.stream.read(base));
    const { begin, end } = guarded(planned);
    const before = all.subarray(0, begin).findLastIndex((byte) => byte !== GUARD);
    if (before >= 0)
      throw new Error(`${this.name}: ${what}: memory was written ${begin - before} bytes before its beginning`);
    const behind = all.subarray(end).findIndex((byte) => byte !== GUARD);
    if (behind >= 0) throw new Error(`${this.name}: ${what}: memory was written ${behind} bytes behind its end`);
    const bytes = all.subarray(begin, end);
    if (planned.role === 'in' && Buffer.compare(bytes, planned.bytes) !== 0)
      throw new Error(`${this.name}: ${what} is an input and was written`);
    return bytes;
  }

  /** Gives everything back that place() took. */
  release(): void {
    for (const tensor of this.owned.splice(0)) tensor.dispose();
  }
}

/** Where a tensor's bytes lie between its guards. */
function guarded({ bytes, shift }: Planned): { begin: number; end: number; length: number } {
  const begin = GUARD_BYTES + shift;
  const end = begin + bytes.length;
  return { begin, end, length: end + GUARD_BYTES };
}

interface Placed {
  what: string;
  base: Tensor;
  planned: Planned;
}

/** An operation of a sequence; the same Planned in several of them, reshaped or not, is the same memory. */
export interface Step {
  verb: keyof Verbs;
  args: Readonly<Record<string, unknown>>;
}

/** Operations after one another on one side, ready to run any number of times. */
export class Placement {
  private constructor(
    private readonly side: Side,
    private readonly calls: readonly Step[],
    private readonly tensors: Placed[],
  ) {}

  static async make(side: Side, steps: readonly Step[]): Promise<Placement> {
    const tensors: Placed[] = [];
    const known = new Map<Uint8Array, Placed>();
    const plans = new Map<PlannedSplit, Tensor>();
    const calls: Step[] = [];
    let workspace = 0;
    for (const { verb, args } of steps) {
      // The same bytes twice are the same memory: operations allow that for some outputs.
      const put = async (name: string, value: Planned): Promise<Tensor> => {
        const placed = known.get(value.bytes) ?? (await side.place(`${verb}.${name}`, value));
        if (!known.has(value.bytes)) tensors.push(placed);
        known.set(value.bytes, placed);
        return side.view(placed, value);
      };
      const placed: Record<string, unknown> = {};
      const splits: [string, PlannedSplit][] = [];
      for (const [name, value] of Object.entries(args)) {
        if (value instanceof PlannedSplit) splits.push([name, value]);
        else placed[name] = value instanceof Planned ? await put(name, value) : value;
      }
      for (const [name, split] of splits) {
        const plan = plans.get(split) ?? (await makeSplit(side, split, put));
        plans.set(split, plan);
        placed[name] = plan;
      }
      workspace = Math.max(workspace, side.device.workspaceBytes(verb, placed as never));
      calls.push({ verb, args: placed });
    }
    if (workspace > 0) {
      const poison = new Planned('inout', 'u8', [workspace], new Uint8Array(workspace).fill(poisonByte('f32')));
      const scratch = await side.place(WORKSPACE, poison);
      tensors.push(scratch);
      side.stream.useWorkspace(side.view(scratch, poison));
    }
    return new Placement(side, calls, tensors);
  }

  /** One operation. */
  static one<V extends keyof Verbs>(side: Side, verb: V, args: PlannedArgs<V>): Promise<Placement> {
    return Placement.make(side, [{ verb, args }]);
  }

  /** The operations as a graph, which the caller disposes of. */
  capture(): Graph {
    return this.side.stream.capture(() => this.issue());
  }

  /**
   * Runs them once on fresh contents, or does what `go` does.
   * @returns what was written: by the argument's name, where there are several operations "verb.name"
   */
  async run(go = () => this.issue()): Promise<Record<string, Uint8Array>> {
    const { side, calls } = this;
    for (const placed of this.tensors) side.fill(placed);
    go();
    await side.stream.record().done;
    const written: Record<string, Uint8Array> = {};
    for (const placed of this.tensors) {
      const bytes = await side.look(placed);
      if (placed.planned.role === 'in' || placed.what === WORKSPACE) continue;
      const name = placed.what.slice(placed.what.indexOf('.') + 1);
      written[calls.length === 1 ? name : placed.what] = bytes;
    }
    return written;
  }

  /** The same as a captured graph. */
  async runCaptured(): Promise<Record<string, Uint8Array>> {
    const graph = this.capture();
    try {
      return await this.run(() => graph.replay());
    } finally {
      graph.dispose();
    }
  }

  private issue(): void {
    for (const { verb, args } of this.calls) (this.side.stream[verb] as (args: unknown) => void)(args);
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
  const placed = await side.place('decodePlan.plan', content);
  const plan = side.view(placed, content);
  side.stream.decodePlan({
    q_start: await put('q_start', qStart),
    lengths: await put('lengths', lengths),
    plan,
    heads,
  });
  await side.stream.record().done;
  await side.look(placed);
  return plan;
}
