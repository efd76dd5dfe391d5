// bench/experts-hit.ts - how many experts the tokens of a decode step go to: random weights must spread them as real
// traffic does, or a bench would read too little.
import type { LatentModel } from '../model';
import type { Stream, Tensor, Verbs } from '../native';
import { watched } from './watched-stream';
import { Workbench } from './workbench';

/**
 * Routed experts with at least one token, in the mean over the layers, when the sequences of the first `batch` rows make
 * one more step; they stay where they are. Null for a model without experts. Rejects with what a step rejects with.
 */
export async function expertsHit(model: LatentModel, batch: number): Promise<number | null> {
  const routed = model.config.n_routed_experts;
  if (routed === 0) return null;
  let layers = 0;
  let groups = 0;
  const probe = model.captureDecode(batch, (stream) =>
    watching(stream, ({ offsets }) => {
      layers += 1;
      groups = (offsets as Tensor).shape[0] as number;
    }),
  );
  probe.dispose();
  const bench = new Workbench(probe.stream.device, probe.stream);
  try {
    const kept = await bench.zeros('i32', [layers, groups]);
    let layer = 0;
    const { stream, graph, dispose } = model.captureDecode(batch, (stream) =>
      watching(stream, ({ offsets }) => {
        const bytes = groups * 4;
        stream.copy({ src: offsets, dst: kept, blocks: 1, block_bytes: bytes, dst_offset: layer++ * bytes });
      }),
    );
    try {
      graph.replay();
      const offsets = new Int32Array(await stream.read(kept));
      let hit = 0;
      for (let l = 0; l < layers; l++) {
        const own = offsets.subarray(l * groups, l * groups + routed + 1);
        for (let e = 0; e < routed; e++) if ((own[e + 1] as number) > (own[e] as number)) hit += 1;
      }
      return hit / layers;
    } finally {
      dispose();
    }
  } finally {
    await bench.release();
  }
}

type RouteArgs = Parameters<Verbs['moeRoute']>[0];

/** The stream, without what would move the sequences on; `routed` is called behind each moeRoute. */
function watching(stream: Stream, routed: (args: RouteArgs) => void): Stream {
  return watched(stream, (verb, args) => {
    if (verb !== 'moeRoute') return verb !== 'advance';
    stream.moeRoute(args as RouteArgs);
    routed(args as RouteArgs);
    return false;
  });
}
