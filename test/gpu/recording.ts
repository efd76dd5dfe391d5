// gpu/recording.ts - keeps calls of operations as files, so that tools which make everything a hundred times slower can look
// at every kernel once, in a small call, without the tests around it.
//
// With NODE_MLA_TEST_RECORD=FOLDER the tests compare nothing. Every call is made once on each set of kernels, and for each
// kernel that it launches the call whose arguments come nearest to SMALL_BYTES is kept. `replay.ts` makes the kept calls
// again. A kept call is two files: NAME.json says what it is, NAME.call holds its arguments and what it wrote.
// NODE_MLA_TEST_SHARE=I/N makes every N-th of the comparisons from the I-th on, so that processes can share a test file.
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { serialize } from 'node:v8';
import { native } from '../../lib/native';
import { bytesOf } from './inputs';
import { Placement, type Side, type Step } from './placement';

const FOLDER = process.env.NODE_MLA_TEST_RECORD;

/** Whether calls are recorded. */
export const RECORDING = FOLDER !== undefined;

const [SHARE, SHARES] = (process.env.NODE_MLA_TEST_SHARE ?? '0/1').split('/').map(Number) as [number, number];
let comparisons = 0;

/** Whether the next comparison is this process's to record. */
export const isOurs = (): boolean => comparisons++ % SHARES === SHARE;

/** Enough for several pages, tiles and rows. */
const SMALL_BYTES = 1e6;

/** What NAME.json says. */
export interface CallSummary {
  label: string;
  /** as NODE_MLA_TEST_DEVICE */
  device: string;
  /** whether it ran as a graph, where a backend does some neighbours together */
  captured: boolean;
  /** of its arguments */
  bytes: number;
  /** mangled names */
  kernels: readonly string[];
}

/** What NAME.call holds. */
export interface CallContent {
  steps: readonly Step[];
  /** by argument name; without where the call is not promised to write the same bits again */
  written: Record<string, Uint8Array> | undefined;
}

/** How far from the size that a call should have. */
export const distance = ({ bytes }: Pick<CallSummary, 'bytes'>): number =>
  Math.abs(Math.log(Math.max(bytes, 1) / SMALL_BYTES));

/** By kernel: the file of the best call so far. */
const best = new Map<string, { name: string; distance: number }>();
let calls = 0;

/** How a call is made and kept. */
interface RecordOptions {
  label: string;
  /** whether every run must write the same bits */
  repeatable: boolean;
  captured?: boolean;
}

/** Makes one call and keeps it if it is the best one of a kernel. Returns what it wrote. */
export async function recordCall(
  side: Side,
  steps: readonly Step[],
  { label, repeatable, captured = false }: RecordOptions,
): Promise<Record<string, Uint8Array>> {
  native.launchedKernels(true);
  const placement = await Placement.make(side, steps);
  const written = await (captured ? placement.runCaptured() : placement.run());
  const verbs = steps.map(({ verb }) => verb).join(' + ');
  // The CPU backend has one "kernel" for each operation, so that recording can be tried without a GPU.
  const kernels = side.name === 'cpu' ? [`cpu ${verbs}`] : native.launchedKernels(true);
  const bytes = steps.reduce((sum, { args }) => sum + bytesOf(args), 0);
  keep(
    { label: `${verbs}, ${label}`, device: side.name, captured, bytes, kernels },
    { steps, written: repeatable ? written : undefined },
  );
  return written;
}

function keep(summary: CallSummary, content: CallContent): void {
  const far = distance(summary);
  const bettered = summary.kernels.filter((kernel) => far < (best.get(kernel)?.distance ?? Infinity));
  if (bettered.length === 0) return;
  // Test files record into one folder, each in a process of its own.
  const name = path.join(FOLDER as string, `${process.pid}-${++calls}`);
  mkdirSync(FOLDER as string, { recursive: true });
  writeFileSync(`${name}.json`, JSON.stringify(summary));
  writeFileSync(`${name}.call`, serialize(content));
  const before = new Set(bettered.map((kernel) => best.get(kernel)?.name));
  for (const kernel of bettered) best.set(kernel, { name, distance: far });
  const used = new Set(Array.from(best.values(), (kept) => kept.name));
  for (const old of before)
    if (old !== undefined && !used.has(old)) for (const end of ['json', 'call']) rmSync(`${old}.${end}`);
}
