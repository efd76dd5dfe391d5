// bench/pinned-routes.ts - what the routers of a decode step decided, kept: a step that lacks an operation computes other
// rows, which would go to other experts, to more or fewer of them. The routers run as ever; experts read what was kept.
import type { LatentModel } from '../model';
import type { Stream, Tensor, TensorSpec, Verbs } from '../native';
import { type Args, watched } from './watched-stream';
import { Workbench } from './workbench';

/** What the experts' operations read of what moeRoute writes. */
const READ = ['weights', 'offsets', 'order', 'slots'] as const;
type RouteArgs = Parameters<Verbs['moeRoute']>[0];
type Kept = Record<(typeof READ)[number], Tensor>;

/** Routes of the step that a model's rows would make next. */
export class PinnedRoutes {
  private constructor(
    private readonly bench: Workbench,
    private readonly kept: readonly Kept[],
    private readonly experts: number,
  ) {}

  /** Makes the step, without moving the rows on. Rejects with what a step rejects with. */
  static async of(model: LatentModel, batch: number): Promise<PinnedRoutes> {
    const routers: [name: (typeof READ)[number], spec: TensorSpec][][] = [];
    const probe = captureRouters(model, batch, (_, args) =>
      routers.push(READ.map((name) => [name, { dtype: args[name].dtype, shape: [...args[name].shape] }])),
    );
    probe.dispose();
    const bench = new Workbench(probe.stream.device, probe.stream);
    try {
      const kept: Kept[] = [];
      for (const specs of routers) {
        const copies: Partial<Kept> = {};
        for (const [name, { dtype, shape }] of specs) copies[name] = await bench.zeros(dtype, shape);
        kept.push(copies as Kept);
      }
      let router = 0;
      const { stream, graph, dispose } = captureRouters(model, batch, (stream, args) => {
        const copies = kept[router++] as Kept;
        for (const name of READ)
          stream.copy({ src: args[name], dst: copies[name], blocks: 1, block_bytes: args[name].byteLength });
      });
      try {
        graph.replay();
        await stream.record().done;
      } finally {
        dispose();
      }
      return new PinnedRoutes(bench, kept, model.config.n_routed_experts);
    } catch (error) {
      await bench.release();
      throw error;
    }
  }

  /** `args` of an operation behind the router-th router, with kept routes for those that it reads. */
  pin(router: number, verb: string, args: Args): Args {
    const kept = this.kept[router];
    if (kept === undefined || (verb !== 'moeGateUp' && verb !== 'moeDown')) return args;
    return { ...args, ...Object.fromEntries(READ.filter((name) => name in args).map((name) => [name, kept[name]])) };
  }

  /** Routed experts with at least one token, in the mean over the layers; null for a model without experts. */
  async expertsHit(): Promise<number | null> {
    if (this.kept.length === 0) return null;
    let hit = 0;
    for (const { offsets } of this.kept) {
      const begins = new Int32Array(await this.bench.stream.read(offsets));
      for (let e = 0; e < this.experts; e++) if ((begins[e + 1] as number) > (begins[e] as number)) hit += 1;
    }
    return hit / this.kept.length;
  }

  /** Gives the memory back. */
  release(): Promise<void> {
    return this.bench.release();
  }
}

/** The step's graph without its `advance`; `routed` is called behind each router. */
function captureRouters(model: LatentModel, batch: number, routed: (stream: Stream, args: RouteArgs) => void) {
  return model.captureDecode(batch, (stream) =>
    watched(stream, (verb, args) => {
      if (verb !== 'moeRoute') return verb !== 'advance';
      stream.moeRoute(args as RouteArgs);
      routed(stream, args as RouteArgs);
      return false;
    }),
  );
}
