// gpu/replay.ts - makes recorded calls again (recording.ts), under a tool such as compute-sanitizer: as few calls as launch
// every recorded kernel once. Guard bytes lie around every tensor, and a call that must repeat its bits is held to them.
//
//   node replay.js FOLDER [I/N] [WITHOUT]
//
//   I/N       every N-th of the calls from the I-th on; default all of them
//   WITHOUT   a regular expression: no call that launches a kernel of such a mangled name
//
// Prints a line for each call and "kernel NAME" for what it has launched. The exit code is 1 when a call failed.
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { deserialize } from 'node:v8';
import { native } from '../../lib/native';
import { Planned, PlannedSplit } from './inputs';
import { openNamed, Placement, Side } from './placement';
import { type CallContent, type CallSummary, distance } from './recording';

type Kept = CallSummary & { file: string };

/** As few calls as launch every kernel: the rarest kernels first, each by the call whose size is best. */
export function cover(calls: readonly Kept[]): Kept[] {
  const launching = new Map<string, Kept[]>();
  for (const call of calls) {
    for (const kernel of call.kernels) launching.set(kernel, [...(launching.get(kernel) ?? []), call]);
  }
  const covered = new Set<string>();
  const chosen: Kept[] = [];
  for (const [kernel, candidates] of [...launching].sort(([, a], [, b]) => a.length - b.length)) {
    if (covered.has(kernel)) continue;
    const call = candidates.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    chosen.push(call);
    for (const launched of call.kernels) covered.add(launched);
  }
  return chosen;
}

/** Arguments that were read from a file: plain objects become what they were. */
function revive(value: unknown): void {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return;
  if ('qStart' in value) {
    Object.setPrototypeOf(value, PlannedSplit.prototype);
    for (const inner of Object.values(value)) revive(inner);
  } else if ('bytes' in value) Object.setPrototypeOf(value, Planned.prototype);
}

async function replay(side: Side, call: Kept): Promise<void> {
  const { steps, written } = deserialize(readFileSync(`${call.file}.call`)) as CallContent;
  for (const { args } of steps) for (const value of Object.values(args)) revive(value);
  try {
    const placement = await Placement.make(side, steps);
    const actual = await (call.captured ? placement.runCaptured() : placement.run());
    for (const [name, bytes] of Object.entries(written ?? {}))
      if (Buffer.compare(actual[name] as Uint8Array, bytes) !== 0) throw new Error(`${name}: other bits than recorded`);
  } finally {
    side.release();
  }
}

async function main([folder = '', share = '0/1', without]: readonly string[]): Promise<number> {
  const unwanted = without === undefined ? undefined : new RegExp(without);
  const calls = readdirSync(folder)
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => path.join(folder, name.slice(0, -'.json'.length)))
    .map((file): Kept => ({ ...(JSON.parse(readFileSync(`${file}.json`, 'utf8')) as CallSummary), file }))
    .filter(({ kernels }) => !kernels.some((kernel) => unwanted?.test(kernel)));
  const [index, of] = share.split('/').map(Number) as [number, number];
  const chosen = cover(calls).filter((_, i) => i % of === index);
  const sides = new Map<string, Side>();
  let failed = 0;
  for (const [i, call] of chosen.entries()) {
    const what = `call ${i + 1} of ${chosen.length} on ${call.device}: ${call.label}`;
    const began = performance.now();
    try {
      if (!sides.has(call.device)) sides.set(call.device, new Side(call.device, openNamed(call.device)));
      await replay(sides.get(call.device) as Side, call);
      console.log(`${what}: ${((performance.now() - began) / 1000).toFixed(2)} s`);
      for (const kernel of native.launchedKernels(true)) console.log(`kernel ${kernel}`);
    } catch (error) {
      failed++;
      console.log(`FAILED ${what}: ${(error as Error).message}`);
    }
  }
  for (const side of sides.values()) await side.device.dispose();
  return failed === 0 ? 0 : 1;
}

if (require.main === module) {
  main(process.argv.slice(2)).then(
    (code) => {
      process.exitCode = code;
    },
    (error: Error) => {
      console.error(`replay: ${error.message}`);
      process.exitCode = 2;
    },
  );
}
