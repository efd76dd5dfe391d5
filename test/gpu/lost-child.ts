// gpu/lost-child.ts - what lost.test.ts runs in processes of their own: a model on the GPU, to which something happens.
//
//   node lost-child.js serve | fault | hang     prints one JSON object
import { join } from 'node:path';
import { MlaError } from '../../lib/errors';
import { loadModel } from '../../lib/index';
import { TESTED_DEVICE } from './harness';

/** What a child prints. */
export interface Told {
  /** what each request that was open ended with: a code, or 'done' */
  ends: string[];
  /** milliseconds from the fault to the last of these ends */
  endMs: number;
  /** what a request after that ended with, and how long it took */
  later: string;
  laterMs: number;
  /** how long dispose took */
  disposeMs: number;
  /** the tokens of a greedy text, from before the fault */
  tokens: readonly number[];
}

const STEP_TIMEOUT_MS = 2000;
/** How long the GPU hangs: longer than the process may live. */
const HOLD_SECONDS = 20;

interface Faults {
  writeToNull(): void;
  holdFor(seconds: number): void;
}

const endOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'done',
    (error) => (error instanceof MlaError ? error.code : String(error)),
  );

async function main(what: string): Promise<void> {
  const model = await loadModel(undefined, {
    device: TESTED_DEVICE as 'cpu',
    context: 512,
    stepTimeout: what === 'hang' ? STEP_TIMEOUT_MS : undefined,
  });
  const greedy = { temperature: 0, maxTokens: 16, ignoreEos: true };
  const { tokens } = await model.generate('In the beginning', greedy).result;
  const told: Told = { ends: [], endMs: 0, later: '', laterMs: 0, disposeMs: 0, tokens };
  if (what !== 'serve') {
    const faults = require(join(__dirname, '..', '..', 'build', 'programs', 'gpu-faults.node')) as Faults;
    const open = Array.from({ length: 12 }, (_, i) =>
      endOf(model.generate('And God said', { ...greedy, maxTokens: 400, seed: i }).result),
    );
    await new Promise((resolve) => setTimeout(resolve, 20)); // all are under way
    open.push(endOf(model.score('Let there be light'))); // this takes less than that
    const began = performance.now();
    if (what === 'fault') faults.writeToNull();
    else faults.holdFor(HOLD_SECONDS);
    told.ends = await Promise.all(open);
    const ended = performance.now();
    told.later = await endOf(model.generate('In the beginning', greedy).result);
    told.endMs = ended - began;
    told.laterMs = performance.now() - ended;
  }
  const began = performance.now();
  await model.dispose();
  told.disposeMs = performance.now() - began;
  process.stdout.write(`${JSON.stringify(told)}\n`, () => {
    if (what !== 'serve') process.exit(1); // as a supervisor's child should
  });
}

if (require.main === module) void main(process.argv[2] ?? '');
