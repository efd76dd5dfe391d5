// gpu/placement.ts - one operation on one device: its arguments between guard bytes, run alone or as a captured graph, and
// what it wrote. `harness.ts` compares with it, `recording.ts` and `replay.ts` repeat calls under other tools.
import { type Device, openDevice, type Stream, type Tensor, type Verbs } from '../../lib/native';
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
    const tensor = base.view(planned.dtype, planned.shape, GUARD_BYTES + planned.shift);
    this.owned.push(tensor, base);
    const placed = { what, base, tensor, planned };
    this.fill(placed);
    return placed;
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
  tensor: Tensor;
  planned: Planned;
}

/** One operation on one side, ready to run any number of times. */
export class Placement<V extends keyof Verbs> {
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
