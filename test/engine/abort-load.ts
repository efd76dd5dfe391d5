// abort-load.ts - aborts at every stage of a request's life, among neighbours that must not notice.
import type { Engine } from '../../lib/engine/engine';
import { expectedTokens } from './fake-model';
import { type Made, makeModel } from './make-model';
import { turns } from './random-load';

/** Where a request is when it is aborted. */
export const STAGES = [
  'encoding',
  'queued',
  'prompt',
  'decoding',
  'last step',
  'twice',
  'after its end',
  'while the model is disposed',
] as const;
export type Stage = (typeof STAGES)[number];

const reason = new Error('aborted');

/** Aborts `count` requests at one stage. Throws when pages stay, or a neighbour's tokens change. */
export async function abortLoad(
  stage: Stage,
  count: number,
  sabotage: (made: Made) => void = () => {},
): Promise<{ stage: Stage; aborts: number; accepted: number; completed: number; aborted: number; failed: number }> {
  const total = { accepted: 0, completed: 0, aborted: 0, failed: 0 };
  for (let i = 0; i < count; i++) {
    const made = makeModel({ text: null, context: 256, maxSequences: stage === 'queued' ? 2 : 4, prefillChunk: 16 });
    sabotage(made);
    const stats = await abortOne(stage, i, made);
    for (const name of ['accepted', 'completed', 'aborted', 'failed'] as const) total[name] += stats[name];
  }
  return { stage, aborts: count, ...total };
}

async function abortOne(stage: Stage, i: number, { model, fake }: Made) {
  const neighbours = [1, 2].map((seed) => {
    const prompt = [seed, i % 256];
    const options = { maxTokens: 30 + seed, seed, ignoreEos: true };
    const right = expectedTokens(prompt, options);
    return model.generate(prompt, options).result.then(
      ({ tokens }) => {
        if (tokens.some((id, k) => id !== right[k])) throw new Error(`${stage}: a neighbour has other tokens`);
        return 'whole';
      },
      () => 'ended',
    );
  });
  await turns(1);
  const controller = new AbortController();
  const prompt = Array.from({ length: 40 }, (_, k) => (k + i) % 256);
  const generation = model.generate(prompt, { maxTokens: 20, seed: i, ignoreEos: true, signal: controller.signal });
  const { result } = generation;
  result.catch(() => {});
  const index = () => [...fake.open].find(({ sampling }) => sampling?.seed === i && sampling.promptLength === 40);
  const tokensOf = () => (index()?.text.tokens.length ?? 0) - 40;
  const reached: Record<Stage, () => boolean> = {
    encoding: () => true,
    queued: () => true,
    prompt: () => (index()?.length ?? 0) >= 16 + (i % 3) * 8 - 8,
    decoding: () => tokensOf() >= 1 + (i % 15),
    'last step': () => (index()?.length ?? 0) >= 40 + 19,
    twice: () => tokensOf() >= 2,
    'after its end': () => false,
    'while the model is disposed': () => tokensOf() >= 1,
  };
  if (stage === 'after its end') await result;
  else if (stage === 'queued') await turns(1 + (i % 8));
  else await until(reached[stage], stage);
  const steps = fake.steps.length;
  const disposed = stage === 'while the model is disposed' ? model.dispose() : null;
  controller.abort(reason);
  if (stage === 'twice') controller.abort(new Error('again'));
  if (index() !== undefined || fake.steps.length > steps + 1) throw new Error(`${stage}: its pages are still taken`);
  if (stage !== 'after its end') await expectAborted(result, disposed !== null);
  await disposed;
  const ends = await Promise.all(neighbours);
  if (disposed === null && ends.some((end) => end !== 'whole')) throw new Error(`${stage}: a neighbour failed`);
  await turns(3);
  if (fake.pool.held !== 0) throw new Error(`${stage}: ${fake.pool.held} pages are held by nobody`);
  // the model itself does not answer any more when it has been disposed
  const last = (model as unknown as { engine: Engine }).engine.stats();
  if (last.accepted !== last.completed + last.aborted + last.failed) throw new Error(JSON.stringify(last));
  return last;
}

/** Some turns of the event loop later; never for ever. */
async function until(reached: () => boolean, stage: Stage): Promise<void> {
  for (let turn = 0; turn < 1000; turn++) {
    if (reached()) return;
    await turns(1);
  }
  throw new Error(`${stage}: never reached`);
}

async function expectAborted(result: Promise<unknown>, disposed: boolean): Promise<void> {
  const error = await result.then(
    () => null,
    (caught) => caught,
  );
  if (error !== reason && !(disposed && error?.code === 'ERR_DISPOSED')) throw new Error(`ended with ${error}`);
}
