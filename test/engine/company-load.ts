// company-load.ts - the same requests alone and in company: how many of them get other bits there. In company they arrive
// in bursts of random size, share beginnings, chunks of prompts and steps with each other, take over what the cache has,
// and give their pages back half-way.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BUNDLED_MODEL, type LoadOptions, type Model } from '../../lib/engine';
import { randomBelow } from './random-load';

/** What both runs were and how they differ. */
export interface CompanyFigures {
  requests: number;
  promptTokens: number;
  newTokens: number;
  /** in company */
  cachedTokens: number;
  preemptions: number;
  /** requests whose tokens, or whose log-probabilities or likeliest tokens, are others in company */
  otherTokens: number;
  otherBits: number;
}

const PLACES = 8;
/** Enough for the longest request, far from enough for eight. */
const PAGES = 10;
const STARTS = 6;
const LONGEST = 340;

/** Ids of texts that the model of the package knows. */
export function bundledBook(): number[] {
  const passages: { prompt: number[]; expected: number[] }[] = JSON.parse(
    readFileSync(join(BUNDLED_MODEL, 'passages.json'), 'utf8'),
  );
  return passages.flatMap(({ prompt, expected }) => [...prompt, ...expected]);
}

/** @param book ids that prompts are cut from, at least 1000 */
export async function companyLoad(
  open: (options: LoadOptions) => Promise<Model>,
  book: readonly number[],
  requests: number,
  deterministic: boolean,
): Promise<CompanyFigures> {
  const random = randomBelow(77);
  const all = Array.from({ length: requests }, (_, i) => {
    const start = 64 * random(STARTS);
    // half of them are long enough for several chunks
    const length = 1 + random(i % 2 === 0 ? LONGEST : 80);
    return {
      prompt: book.slice(start, start + length),
      options: {
        maxTokens: 4 + random(9),
        seed: i,
        temperature: 0.5 + random(3),
        topLogprobs: random(3),
        frequencyPenalty: random(4) === 0 ? 0.5 : 0,
        ignoreEos: true,
      },
    };
  });
  const one = async (model: Model, { prompt, options }: (typeof all)[number]) => {
    const { tokens, logprobs, top } = await model.generate(prompt, options).result;
    return { tokens: tokens.join(), bits: JSON.stringify([logprobs, top]) };
  };

  const alone: { tokens: string; bits: string }[] = [];
  const single = await open({ deterministic, maxSequences: 1, prefixCache: false, prefillChunk: 512, context: 512 });
  try {
    for (const request of all) alone.push(await one(single, request));
  } finally {
    await single.dispose();
  }
  const many = await open({ deterministic, maxSequences: PLACES, pages: PAGES, prefillChunk: 300, context: 512 });
  try {
    const company: Promise<{ tokens: string; bits: string }>[] = [];
    while (company.length < requests) {
      const burst = all.slice(company.length, company.length + 1 + random(2 * PLACES));
      for (const request of burst) company.push(one(many, request));
      await Promise.race([Promise.all(company.slice(-burst.length)), company.at(-1)]);
    }
    const together = await Promise.all(company);
    const { promptTokens, completionTokens, cachedTokens, preemptions } = await many.stats();
    const others = (of: (it: { tokens: string; bits: string }) => string) =>
      together.filter((it, i) => of(it) !== of(alone[i] as { tokens: string; bits: string })).length;
    return {
      requests,
      promptTokens,
      newTokens: completionTokens,
      cachedTokens,
      preemptions,
      otherTokens: others(({ tokens }) => tokens),
      otherBits: others(({ tokens, bits }) => tokens + bits),
    };
  } finally {
    await many.dispose();
  }
}
