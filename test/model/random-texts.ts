// random-texts.ts - greedy texts of random prompts in batches of many sizes, to be compared between ways of decoding.
import type { LatentModel, SequenceHandle } from '../../lib/model';
import type { Stream } from '../../lib/native';
import { greedy } from './continue';

/** A prompt and how many tokens are to follow it. */
export interface Task {
  tokens: number[];
  count: number;
}

/** What a model made of a task. */
export interface Text {
  ids: number[];
  logprobs: number[];
}

/** How many prompts decode together, taken in turn: every bucket up to 16, full and not. */
export const BATCHES: readonly number[] = [1, 2, 3, 5, 8, 16, 13, 4, 7];

/** `n` prompts of 1 to 100 random ids, most of them shorter than a page of the cache, with 4 to 24 tokens to follow. */
export function randomTasks(vocab: number, n: number, seed: number): Task[] {
  let state = seed >>> 0;
  const below = (end: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * end);
  };
  return Array.from({ length: n }, () => ({
    tokens: Array.from({ length: 1 + below(below(3) === 0 ? 100 : 40) }, () => below(vocab)),
    count: 4 + below(21),
  }));
}

/** The texts of all tasks, in batches of these sizes. */
export async function textsOf(
  model: LatentModel,
  tasks: readonly Task[],
  sizes: readonly number[] = BATCHES,
): Promise<Text[]> {
  const texts: Text[] = [];
  for (let turn = 0; texts.length < tasks.length; turn++) {
    const size = sizes[turn % sizes.length] as number;
    texts.push(...(await together(model, tasks.slice(texts.length, texts.length + size))));
  }
  return texts;
}

/** One batch. All its steps are enqueued at once: none of them waits for the host to have seen the one before. */
async function together(model: LatentModel, tasks: readonly Task[]): Promise<Text[]> {
  const rows: (Task & Text & { sequence: SequenceHandle })[] = tasks.map((task) => {
    const sequence = model.openSequence();
    sequence.setSampling(greedy(task.tokens, task.count));
    return { ...task, sequence, ids: [], logprobs: [] };
  });
  try {
    const steps: Promise<void>[] = [];
    for (let s = 0; s < Math.max(...rows.map(({ count }) => count)); s++) {
      const running = rows.filter(({ count }) => count > s);
      const entries = running.map(({ sequence, tokens }) => (s === 0 ? { sequence, tokens } : { sequence }));
      steps.push(
        model.step(entries).then((results) => {
          for (const [i, { ids, logprobs }] of running.entries()) {
            ids.push(results[i]?.token as number);
            logprobs.push(results[i]?.logprob as number);
          }
        }),
      );
    }
    await Promise.all(steps);
    return rows.map(({ ids, logprobs }) => ({ ids, logprobs }));
  } finally {
    for (const { sequence } of rows) sequence.dispose();
  }
}

/** How many tasks have the same ids in two sets of texts, and the same bits of log-probabilities too. */
export function sameTexts(a: readonly Text[], b: readonly Text[]): { ids: number; bits: number } {
  const ids = a.filter((text, i) => text.ids.join() === b[i]?.ids.join());
  const bits = ids.filter((text) => text.logprobs.join() === b[a.indexOf(text)]?.logprobs.join());
  return { ids: ids.length, bits: bits.length };
}

/**
 * Runs `work` while captured decode steps lack their first attention: what a graph that is not what it should be does to
 * texts. `stream` is any stream; all of them have their methods from one prototype.
 */
export async function withSpoiltGraphs<T>(stream: Stream, work: () => Promise<T>): Promise<T> {
  const methods = Object.getPrototypeOf(stream) as Pick<Stream, 'capture' | 'mlaDecode'>;
  const { capture, mlaDecode } = methods;
  methods.capture = function (this: Stream, fn) {
    let left = 1;
    methods.mlaDecode = function (this: Stream, args) {
      if (left-- <= 0) mlaDecode.call(this, args);
    };
    try {
      return capture.call(this, fn);
    } finally {
      methods.mlaDecode = mlaDecode;
    }
  };
  try {
    return await work();
  } finally {
    methods.capture = capture;
  }
}
