// The optional parts of sampling on the real model, on the CPU: penalties, bias, minimum length, likeliest tokens, what
// one row asks and its neighbours do not; and what sequences do with real rows.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type LoadOptions, loadModel, type Model } from '../../lib/engine';
import { rejection } from './make-model';

const PROMPT = 'In the beginning God created the heaven and the earth. And the earth was without form, and void; and';
const GREEDY = { temperature: 0, ignoreEos: true, maxTokens: 24 };

let model: Model;
const load = (options: LoadOptions = {}) =>
  loadModel(undefined, { device: 'cpu', threads: 2, context: 512, ...options });
beforeAll(async () => {
  model = await load();
});
afterAll(() => model.dispose());

test('neutral values change nothing, alone or beside a row that has penalties, bias and likeliest tokens', async () => {
  const plain = await model.generate(PROMPT, GREEDY).result;
  const neutral = { ...GREEDY, repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0, minTokens: 0 };
  const busy = {
    ...GREEDY,
    repetitionPenalty: 1.3,
    frequencyPenalty: 0.5,
    logitBias: { 100: 5 },
    minTokens: 10,
    topLogprobs: 4,
  };
  const [beside] = await Promise.all([model.generate(PROMPT, neutral).result, model.generate(PROMPT, busy).result]);
  expect(beside.tokens).toEqual(plain.tokens);
  // and in the row that the busy one has left
  for (let i = 0; i < 3; i++) expect((await model.generate(PROMPT, GREEDY).result).tokens).toEqual(plain.tokens);
});

test('a bias decides: up to always, down to never', async () => {
  const always = await model.generate(PROMPT, { ...GREEDY, logitBias: { 7: 1000 } }).result;
  expect(always.tokens).toEqual(new Array(24).fill(7));
  const plain = await model.generate(PROMPT, GREEDY).result;
  const banned = Object.fromEntries([...new Set(plain.tokens)].map((id) => [id, -1000]));
  const others = await model.generate(PROMPT, { ...GREEDY, logitBias: banned }).result;
  for (const id of others.tokens) expect(plain.tokens).not.toContain(id);
  // the log-probability is that of the model, whatever the bias
  const scored = await model.score([...(await model.encode(PROMPT)), ...others.tokens]);
  const expected = scored.logprobs.slice(-24) as number[];
  for (const [i, logprob] of others.logprobs.entries()) expect(logprob).toBeCloseTo(expected[i] as number, 3);
});

test('penalties are those of the definition, step by step', async () => {
  const prompt = [...(await model.encode(PROMPT))];
  const settings = { repetitionPenalty: 2, presencePenalty: 3, frequencyPenalty: 1.5 };
  const { tokens } = await model.generate(prompt, { ...GREEDY, ...settings }).result;
  expect(tokens).not.toEqual((await model.generate(prompt, GREEDY).result).tokens);
  const text = [...prompt];
  for (const token of tokens) {
    const logits = [...((await model.score(text, { logits: true })).logits as Float32Array)];
    const penalised = logits.map((logit, id) => {
      const after = text.slice(prompt.length).filter((other) => other === id).length;
      let x = logit;
      if (text.includes(id)) x = x > 0 ? x / settings.repetitionPenalty : x * settings.repetitionPenalty;
      return after > 0 ? x - settings.presencePenalty - settings.frequencyPenalty * after : x;
    });
    const best = Math.max(...penalised);
    expect(best - (penalised[token] as number)).toBeLessThan(1e-3);
    text.push(token);
  }
});

test('the likeliest tokens of every step are those of score', async () => {
  const prompt = [...(await model.encode(PROMPT))];
  const { tokens, top, logprobs } = await model.generate(prompt, { ...GREEDY, topLogprobs: 5 }).result;
  const scored = await model.score([...prompt, ...tokens], { top: 5 });
  expect(top).toHaveLength(24);
  for (const [i, row] of top.entries()) {
    const expected = scored.top[prompt.length + i] ?? [];
    for (const [k, { id, logprob }] of row.entries()) {
      expect(logprob).toBeCloseTo(expected[k]?.logprob as number, 3);
      if (Math.abs((expected[k]?.logprob ?? 0) - (expected[k + 1]?.logprob ?? -99)) > 0.01 && k === 0) {
        expect(id).toBe(expected[k]?.id);
      }
    }
    expect(row[0]?.id).toBe(tokens[i]);
    expect(row[0]?.logprob).toBeCloseTo(logprobs[i] as number, 4);
  }
});

test('minTokens holds back what ends the text, on the device', async () => {
  const plain = (await model.generate(PROMPT, GREEDY).result).tokens;
  const stop = plain[2] as number;
  const early = await model.generate(PROMPT, { ...GREEDY, stopTokens: [stop] }).result;
  expect(early.tokens.length).toBeLessThanOrEqual(3);
  const late = await model.generate(PROMPT, { ...GREEDY, stopTokens: [stop], minTokens: 8 }).result;
  expect(late.tokens.length).toBeGreaterThanOrEqual(8);
  expect(late.tokens.slice(0, 8)).not.toContain(stop);
});

test('completions share their prompt, forks go on alone, and each is the text it is without sharing', async () => {
  const options = { temperature: 1, seed: 11, maxTokens: 16, ignoreEos: true };
  const several = await model.complete(PROMPT, { ...options, n: 4 });
  const without = await load({ prefixCache: false });
  try {
    for (const { tokens, settings } of several) {
      const alone = await without.generate(PROMPT, { ...options, seed: settings.seed }).result;
      expect(tokens).toEqual(alone.tokens);
    }
    expect(new Set(several.map(({ text }) => text)).size).toBeGreaterThan(1);
    const sequence = await model.createSequence();
    await sequence.append(PROMPT);
    const fork = await sequence.fork();
    const [left, right] = await Promise.all([
      sequence.generate(' the', GREEDY).result,
      fork.generate(' God', GREEDY).result,
    ]);
    const start = await model.encode(PROMPT);
    const [the, god] = [sequence.tokens, fork.tokens].map((tokens) => tokens.slice(0, tokens.length - 24));
    expect(the?.slice(0, start.length)).toEqual(start);
    expect((await without.generate(the as number[], GREEDY).result).tokens).toEqual(left.tokens);
    expect((await without.generate(god as number[], GREEDY).result).tokens).toEqual(right.tokens);
    await sequence.dispose();
    await fork.dispose();
  } finally {
    await without.dispose();
  }
  expect((await model.stats()).pages.held).toBe(0);
});

test.each(['auto', 'fp8'] as const)(
  'a sequence (%s cache) is saved, and goes on elsewhere as if nothing had been',
  async (cacheDtype) => {
    const dir = mkdtempSync(join(tmpdir(), 'mla-sequence-'));
    const loadSame = (options: LoadOptions = {}) => load({ cacheDtype, ...options });
    const model = await loadSame();
    try {
      const sequence = await model.createSequence();
      await sequence.append(PROMPT);
      await sequence.generate([], GREEDY).result;
      const path = join(dir, 'text');
      await sequence.save(path);
      const expected = await sequence.generate([], GREEDY).result;
      const other = await loadSame();
      try {
        const restored = await other.restore(path);
        const { tokens, usage } = await restored.generate([], GREEDY).result;
        expect(tokens).toEqual(expected.tokens);
        expect(usage.cachedTokens).toBe(usage.promptTokens - 1);
        await restored.dispose();
        expect((await other.stats()).pages.held).toBe(0);
      } finally {
        await other.dispose();
      }
      const bf16 = await load({ cacheDtype: 'bf16', activationDtype: 'bf16' });
      expect(await rejection(bf16.restore(path))).toMatchObject({ code: 'ERR_SNAPSHOT' });
      expect((await bf16.stats()).pages.held).toBe(0);
      await bf16.dispose();
      const small = await loadSame({ context: 32 });
      expect(await rejection(small.restore(path))).toMatchObject({ code: 'ERR_CONTEXT_LENGTH' });
      await small.dispose();
      await sequence.dispose();
    } finally {
      await model.dispose();
      rmSync(dir, { recursive: true });
    }
  },
);
