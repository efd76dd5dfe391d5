// page-load.ts - random operations on an engine whose pages are short: after every one of them, each page is free, cached
// or held, and held exactly as often as the sequences there are say.
import { pagesFor } from '../../lib/cache';
import type { Sequence } from '../../lib/engine/api';
import { MlaError } from '../../lib/errors';
import { expectedTokens } from './fake-model';
import { type Made, makeModel } from './make-model';
import { randomBelow, turns } from './random-load';

/** What a run did. */
export interface PageFigures {
  operations: number;
  submitted: number;
  aborted: number;
  forks: number;
  finished: number;
  failed: number;
  preemptions: number;
  /** pages taken over from earlier texts */
  reusedPages: number;
}

const MAX_RUNNING = 24;
const MAX_SEQUENCES = 4;

/** @param sabotage breaks something before the run: the run must then fail */
export async function pageLoad(
  seed: number,
  operations: number,
  sabotage: (made: Made) => void = () => {},
): Promise<PageFigures> {
  const random = randomBelow(seed);
  const made = makeModel({ text: null, context: 512, maxSequences: 6, pages: 13, prefillChunk: 48 });
  const { model, fake } = made;
  sabotage(made);
  const { pool } = fake;
  const sequences: Sequence[] = [];
  const running = new Set<{ stop(): void; ended: Promise<unknown> }>();
  const count = { submitted: 0, aborted: 0, forks: 0, finished: 0, failed: 0 };
  const reason = new Error('aborted');
  let problem: unknown;
  const shared = Array.from({ length: 400 }, () => random(256));

  const check = (): void => {
    let held = 0;
    let references = 0;
    for (let page = 0; page < pool.total; page++) {
      references += pool.references(page);
      if (pool.references(page) > 0) held++;
    }
    const { free, cached, total } = pool.stats();
    if (free + cached + held !== total) throw new Error(`${free} free + ${cached} cached + ${held} held of ${total}`);
    let known = 0;
    for (const { text } of fake.open) known += text.pages.length;
    for (const { cachedTokens } of sequences) known += pagesFor(cachedTokens);
    if (references !== known) throw new Error(`${references} references to pages, ${known} of them known`);
  };

  /** Prompts share beginnings of many lengths. */
  const prompt = () => [
    ...shared.slice(0, random(3) === 0 ? 0 : random(300)),
    ...shared.slice(0, 1 + random(40)).reverse(),
  ];

  const start = (sequence: Sequence | null): void => {
    const given = prompt();
    const before = sequence?.tokens ?? [];
    if (before.length + given.length > 400) return;
    const options = { maxTokens: 1 + random(100), seed: random(1000), ignoreEos: true };
    const controller = new AbortController();
    const all = { ...options, signal: controller.signal };
    const generation = sequence === null ? model.generate(given, all) : sequence.generate(given, all);
    count.submitted++;
    const one = {
      stop: () => controller.abort(reason),
      ended: generation.result.then(
        ({ tokens }) => {
          const right = expectedTokens([...before, ...given], options);
          if (tokens.some((id, i) => id !== right[i]) || tokens.length !== right.length)
            throw new Error('wrong tokens');
          count.finished++;
        },
        (error) => {
          if (error === reason) count.aborted++;
          // pages that sequences keep may leave too few for one request
          else if (error instanceof MlaError && error.code === 'ERR_NO_PAGES') count.failed++;
          else if (!(error instanceof MlaError && error.code === 'ERR_DISPOSED')) throw error;
        },
      ),
    };
    running.add(one);
    void one.ended.then(
      () => running.delete(one),
      (error) => {
        problem ??= error;
      },
    );
  };

  const idle: Sequence[] = [];
  for (let i = 0; i < operations; i++) {
    const kind = random(10);
    if (kind < 3) {
      if (running.size < MAX_RUNNING) start(null);
    } else if (kind === 3) {
      if (sequences.length < MAX_SEQUENCES) sequences.push(await model.createSequence());
      else await sequences.splice(random(sequences.length), 1)[0]?.dispose();
    } else if (kind === 4) {
      const sequence = sequences[random(Math.max(1, sequences.length))];
      if (sequence !== undefined && sequences.length < MAX_SEQUENCES) {
        await sequence.fork().then(
          (fork) => {
            sequences.push(fork);
            count.forks++;
          },
          () => {}, // it is busy
        );
      }
    } else if (kind === 5) {
      const sequence = sequences[random(Math.max(1, sequences.length))];
      if (sequence !== undefined && (await isIdle(sequence, idle))) start(sequence);
    } else if (kind === 6) {
      [...running][random(Math.max(1, running.size))]?.stop();
    } else {
      await turns(1);
    }
    check();
    if (problem !== undefined) throw problem;
  }
  for (const one of running) one.stop();
  await Promise.all([...running].map(({ ended }) => ended));
  for (const sequence of sequences.splice(0)) await sequence.dispose();
  await turns(4);
  check();
  const stats = await model.stats();
  if (stats.pages.held !== 0) throw new Error(`${stats.pages.held} pages are held by nobody`);
  if (stats.accepted !== stats.completed + stats.aborted + stats.failed) throw new Error(JSON.stringify(stats));
  return { operations, ...count, preemptions: stats.preemptions, reusedPages: Math.floor(stats.cachedTokens / 64) };
}

/** Whether a sequence can generate now: only an idle one forks. */
async function isIdle(sequence: Sequence, forks: Sequence[]): Promise<boolean> {
  try {
    forks.push(await sequence.fork());
  } catch {
    return false;
  }
  await forks.pop()?.dispose();
  return true;
}
