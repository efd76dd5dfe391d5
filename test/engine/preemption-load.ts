// preemption-load.ts - many requests in pages for 1.2 of them: each gives its pages back again and again, and each text
// is what it is alone.
import { expectedTokens } from './fake-model';
import { type Made, makeModel } from './make-model';
import { randomBelow } from './random-load';

const PAGES_OF_ONE = 5;

/** What a run did. */
export interface PreemptionFigures {
  requests: number;
  preemptions: number;
  accepted: number;
  completed: number;
  aborted: number;
  failed: number;
  /** the most that ended between the first step of a request and its end, of those that came after it */
  overtaken: number;
}

export async function preemptionLoad(
  requests: number,
  sabotage: (made: Made) => void = () => {},
): Promise<PreemptionFigures> {
  const random = randomBelow(18);
  const context = PAGES_OF_ONE * 64;
  const made = makeModel({ text: null, context, maxSequences: 8, pages: Math.floor(1.2 * PAGES_OF_ONE) });
  const { model, fake } = made;
  fake.gate = async () => {};
  sabotage(made);
  let ended: number[] = [];
  let overtaken = 0;
  await Promise.all(
    Array.from({ length: requests }, async (_, i) => {
      const prompt = Array.from({ length: 1 + random(60) }, () => random(256));
      const options = { maxTokens: 150 + random(context - 220), seed: i, ignoreEos: true };
      const { tokens } = await model.generate(prompt, options).result;
      const right = expectedTokens(prompt, options);
      if (tokens.length !== right.length || tokens.some((id, k) => id !== right[k])) {
        throw new Error(`request ${i} has another text than alone`);
      }
      overtaken = Math.max(overtaken, ended.filter((other) => other > i).length);
      ended = [...ended, i];
    }),
  );
  const { preemptions, accepted, completed, aborted, failed, pages } = await model.stats();
  if (pages.held !== 0) throw new Error(`${pages.held} pages are held by nobody`);
  return { requests, preemptions, accepted, completed, aborted, failed, overtaken };
}
