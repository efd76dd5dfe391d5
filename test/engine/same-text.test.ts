// Streamed, whole, alone or in company: 500 texts with characters of up to four bytes and stop strings that begin in one
// chunk and end in another are the same every way.
import type { Result } from '../../lib/engine/result';
import { makeModel } from './make-model';
import { randomBelow } from './random-load';

const TEXTS = 500;
const ALPHABET = ['a', 'b', 'é', '€', '😀', ' ', '\n'];

interface Case {
  prompt: number[];
  said: string;
  options: { maxTokens: number; seed: number; stop: string[] };
}

function cases(seed: number): Case[] {
  const random = randomBelow(seed);
  const word = (length: number) => Array.from({ length }, () => ALPHABET[random(ALPHABET.length)]).join('');
  return Array.from({ length: TEXTS }, (_, i) => ({
    prompt: [i % 256, i >> 8, ...Array.from({ length: random(70) }, () => 1)],
    said: word(20 + random(20)),
    options: { maxTokens: 200, seed: i, stop: Array.from({ length: random(4) }, () => word(1 + random(3))) },
  }));
}

/** A model that says to each prompt (known by its first two ids) what its case says. */
function modelOf(all: readonly Case[], maxSequences: number) {
  return makeModel({
    maxSequences,
    pages: 40,
    next: (tokens) => {
      const one = all[(tokens[0] as number) + 256 * (tokens[1] as number)] as Case;
      return Buffer.from(one.said)[tokens.length - one.prompt.length] ?? 256;
    },
  }).model;
}

const partOf = ({ text, tokens, finishReason, stoppedBy }: Result) => ({ text, tokens, finishReason, stoppedBy });

test('500 texts, three ways', async () => {
  const all = cases(34);
  const alone = modelOf(all, 1);
  const together = modelOf(all, 16);
  const whole = await Promise.all(
    all.map(async ({ prompt, options }) => partOf(await alone.generate(prompt, options).result)),
  );
  const batched = await Promise.all(
    all.map(async ({ prompt, options }) => partOf(await together.generate(prompt, options).result)),
  );
  let halves = 0;
  const streamed = await Promise.all(
    all.map(async ({ prompt, options }) => {
      const generation = together.generate(prompt, options);
      let text = '';
      const tokens: number[] = [];
      for await (const chunk of generation) {
        halves += chunk.text.includes('�') ? 1 : 0;
        text += chunk.text;
        tokens.push(...chunk.tokens);
      }
      const { finishReason, stoppedBy } = await generation.result;
      return { text, tokens, finishReason, stoppedBy };
    }),
  );
  expect(batched).toEqual(whole);
  expect(streamed).toEqual(whole);
  expect(halves).toBe(0);
  for (const [i, { text, stoppedBy }] of whole.entries()) {
    const { said } = all[i] as Case;
    expect(said.startsWith(text)).toBe(true);
    if (typeof stoppedBy === 'string') expect(said.startsWith(text + stoppedBy)).toBe(true);
  }
  const stopped = whole.filter(({ stoppedBy }) => typeof stoppedBy === 'string').length;
  console.log(
    `${TEXTS} texts, ${stopped} ended by stop strings, ${whole.flatMap(({ tokens }) => tokens).length} tokens`,
  );
  expect(stopped).toBeGreaterThan(100);
  for (const model of [alone, together]) {
    const { accepted, completed } = await model.stats();
    expect(accepted).toBe(completed);
  }
}, 60_000);
