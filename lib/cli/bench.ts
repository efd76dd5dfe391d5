// cli/bench.ts - mla bench: how fast operations and models are, beside what public libraries reach.
import { type Command, Option } from 'commander';
import {
  benchDecode,
  benchPrefill,
  benchStep,
  circumstances,
  type ModelResult,
  type StepPart,
  type StepResult,
} from '../bench';
import { addBenchCache } from './bench-cache';
import { addBenchCompare } from './bench-compare';
import { addModelBenchFlags, deviceOf, type ModelBenchFlags, modelBenchOptionsOf } from './bench-flags';
import { addBenchKernels } from './bench-kernels';
import { addBenchReport } from './bench-report';
import { addBenchServe } from './bench-serve';
import { addBenchStartup } from './bench-startup';
import { integer, integers } from './flags';
import { note, print } from './output';
import { Table, tableOf } from './table';

interface DecodeFlags extends ModelBenchFlags {
  batch: number[];
  depth: number[];
  steps: number;
}

interface StepFlags extends ModelBenchFlags {
  batch: number[];
  depth: number;
}

interface PrefillFlags extends ModelBenchFlags {
  length: number[];
  batch: number[];
  depth: number;
  attention: 'auto' | 'absorbed' | 'expanded';
}

/** Adds the command and its subcommands. */
export function addBench(program: Command, signal: AbortSignal): void {
  const bench = program.command('bench').description('Measures operations (kernels) and models (decode, prefill).');
  addBenchKernels(bench, signal);
  const decode = bench
    .command('decode')
    .description('Tokens per second while sequences decode together.')
    .option('--batch <list>', 'numbers of sequences', integers(1, 1024), [1])
    .option('--depth <list>', 'tokens in the cache before', integers(1, 2 ** 24), [128])
    .option('--steps <n>', 'tokens measured per sequence', integer(2, 65536), 128);
  addModelBenchFlags(decode).action((flags: DecodeFlags) =>
    runModel(flags, (report) =>
      benchDecode(
        { ...modelBenchOptionsOf(flags, signal), batches: flags.batch, depths: flags.depth, steps: flags.steps },
        report,
      ),
    ),
  );

  const step = bench
    .command('step')
    .description('Where the time of one decode step goes: with all operations, and without each kind of them.')
    .option('--batch <list>', 'numbers of sequences', integers(1, 1024), [1])
    .option('--depth <n>', 'tokens in the cache', integer(1, 2 ** 24), 4096);
  addModelBenchFlags(step).action((flags: StepFlags) =>
    benchStep({ ...modelBenchOptionsOf(flags, signal), batches: flags.batch, depth: flags.depth }, (result) =>
      print(flags.json ? `${JSON.stringify(result)}\n` : stepText(result)),
    ),
  );

  const prefill = bench
    .command('prefill')
    .description('Tokens per second of prompts.')
    .option('--length <list>', 'tokens of the prompt', integers(1, 2 ** 24), [512])
    .option('--batch <list>', 'prompts at once', integers(1, 1024), [1])
    .option(
      '--depth <n>',
      'tokens in the cache of each before, as in the later turns of a chat',
      integer(0, 2 ** 24),
      0,
    )
    .addOption(
      new Option('--attention <form>', 'over the latents as they are, over expanded heads, or by length')
        .choices(['auto', 'absorbed', 'expanded'])
        .default('auto'),
    );
  addModelBenchFlags(prefill).action((flags: PrefillFlags) => {
    const { length: lengths, batch: batches, depth, attention } = flags;
    return runModel(flags, (report) =>
      benchPrefill({ ...modelBenchOptionsOf(flags, signal), lengths, batches, depth, attention }, report),
    );
  });
  addBenchCache(bench, signal);
  addBenchServe(bench, signal);
  addBenchStartup(bench, signal);
  addBenchCompare(bench);
  addBenchReport(bench);
}

/** One line for each kind of operation, and one for all. */
function stepText({ id, us, launches, layers, parts, perLayer, expertsHit, device }: StepResult): string {
  const row = ({ name, calls, launches, us, floorUs }: StepPart) => [
    name,
    String(calls),
    String(launches),
    us.toFixed(1),
    (us / calls).toFixed(2),
    Number.isNaN(floorUs) ? '-' : (floorUs / calls).toFixed(2),
    Number.isNaN(floorUs) ? '-' : ((100 * floorUs) / us).toFixed(0),
  ];
  const sum = (of: (part: StepPart) => number) => parts.reduce((total, part) => total + of(part), 0);
  const all = {
    name: 'sum',
    calls: sum((part) => part.calls),
    launches: sum((part) => part.launches),
    us: sum((part) => part.us),
    floorUs: sum((part) => part.floorUs),
  };
  const each = (launches / layers).toFixed(1);
  const titles = ['operation', 'calls', 'launches', 'step us', 'us/call', 'floor us', '% floor'];
  const table = tableOf(titles, [...parts, all].map(row));
  const layer = tableOf(
    ['one layer', 'launches', 'us', 'floor us', '% floor'],
    perLayer
      .map((part) => row({ ...part, calls: 1 }))
      .map(([name, , ...rest]) => [name, ...rest.toSpliced(1, 1)] as string[]),
  );
  const hit = expertsHit === null ? '' : `, ${expertsHit.toFixed(1)} experts hit per layer`;
  const head = `${id} on ${device.name}: ${us.toFixed(1)} us, ${launches} launches (${layers} layers: ${each} each)${hit}`;
  return `${head}\n\n${table}\n${layer}\n`;
}

async function runModel(
  flags: ModelBenchFlags,
  bench: (report: (result: ModelResult) => void) => Promise<void>,
): Promise<void> {
  const results: ModelResult[] = [];
  const lines: Promise<void>[] = [];
  await bench((result) => {
    results.push(result);
    if (flags.json) return;
    if (results.length === 1) lines.push(print(MODEL_TABLE.head()));
    lines.push(print(MODEL_TABLE.row(modelCells(result))));
  });
  await Promise.all(lines);
  const about = await circumstances(results[0]?.device.kind === 'cuda' ? deviceOf(flags.device) : 'cpu');
  if (flags.json) await print(`${JSON.stringify({ ...about, results })}\n`);
  else note(`${results[0]?.device.name} (${results[0]?.device.path}), ${about.date}, ${about.command}`);
}

const MODEL_TABLE = new Table([
  ['case', 46],
  ['tokens/s', 10],
  ['lowest', 10],
  ['highest', 10],
  ['host us', 7],
  ['experts', 7],
  ['public', 0],
]);

/** host us: what a step takes of JavaScript's main thread; experts: that a step hits in a layer. */
function modelCells({ id, tokensPerSecond, repetitions, hostUs, expertsHit, public: others }: ModelResult): string[] {
  const figures = [tokensPerSecond, Math.min(...repetitions), Math.max(...repetitions)];
  const beside = others.map(({ tokensPerSecond: rate, by }) => `${rate} ${by}`).join('; ');
  const host = hostUs === null ? '-' : hostUs.toFixed(0);
  const hit = expertsHit === null ? '-' : expertsHit.toFixed(1);
  return [id, ...figures.map((rate) => rate.toFixed(1)), host, hit, beside === '' ? '-' : beside];
}
