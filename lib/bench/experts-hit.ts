// bench/experts-hit.ts - how many experts the tokens of a decode step go to: random weights must spread them as real
// traffic does, or a bench would read too little.
import type { LatentModel } from '../model';
import { PinnedRoutes } from './pinned-routes';

/**
 * Routed experts with at least one token, in the mean over the layers, when the sequences of the first `batch` rows make
 * one more step; they stay where they are. Null for a model without experts. Rejects with what a step rejects with.
 */
export async function expertsHit(model: LatentModel, batch: number): Promise<number | null> {
  const routes = await PinnedRoutes.of(model, batch);
  try {
    return await routes.expertsHit();
  } finally {
    await routes.release();
  }
}
