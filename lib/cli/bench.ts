// cli/bench.ts - mla bench: how fast operations and models are, beside what public libraries reach.
import type { Command } from 'commander';
import {
  benchDecode,
  benchKernels,
  benchPeers,
  benchPrefill,
  benchStep,
  circumstances,
  KERNEL_CASES,
  type KernelBenchHeader,
  type KernelResult,
  type ModelBenchOptions,
  type ModelResult,
  type PeerResult,
  type StepPart,
  type StepResult,
} from '../bench';
import { SHAPE_NAMES } from '../model';
import { addBenchCompare } from './bench-compare';
import { addBenchServe } from './bench-serve';
import { addBenchStartup } from './bench-startup';
import { FoundWanting, UsageError } from './failure';
import {
  addDeterministicFlag,
  addJsonFlag,
  addPlacementFlags,
  integer,
  integers,
  type JsonFlag,
  type ModelFlags,
} from './flags';
import { note, print } from './output';

interface KernelFlags extends JsonFlag {
  device: string;
  filter?: string;
  samples: number;
  cold: number;
  list?: boolean;
  peers?: boolean;
}

interface ModelBenchFlags
  extends Pick<ModelFlags, 'model' | 'device' | 'dtype' | 'cacheDtype' | 'threads' | 'deterministic'>,
    JsonFlag {
  shape?: string;
  repetitions: number;
}

interface DecodeFlags extends ModelBenchFlags {
  batch: number[];
  depth: number;
  steps: number;
}

type StepFlags = Omit<DecodeFlags, 'steps'>;

interface PrefillFlags extends ModelBenchFlags {
  length: number[];
  batch: number[];
}

/** Adds the command and its subcommands. */
export function addBench(program: Command, signal: AbortSignal): void {
  const bench = program.command('bench').description('Measures operations (kernels) and models (decode, prefill).');
  const kernels = bench
    .command('kernels')
    .description('Each operation at the shapes of real models: checked against float64 first, then timed in a graph.')
    .option('--device <name>', 'cuda:N, cuda:N:portable or cpu', 'cuda:0')
    .option('--filter <parts>', 'only cases whose name contains one of these, separated by "+"; "." is a space')
    .option('--samples <n>', 'samples per case', integer(1, 1000), 20)
    .option(
      '--cold <MiB>',
      'what the inputs of a case take together, so that no cache holds them',
      integer(1, 65536),
      1024,
    )
    .option('--peers', 'also cuBLAS, cuDNN and grouped_mm on this GPU, through a python3 with PyTorch')
    .option('--list', 'print the names of the cases');
  addJsonFlag(kernels).action((flags: KernelFlags) => runKernels(flags, signal));

  const decode = bench
    .command('decode')
    .description('Tokens per second while sequences decode together.')
    .option('--batch <list>', 'numbers of sequences', integers(1, 1024), [1])
    .option('--depth <n>', 'tokens in the cache before', integer(1, 2 ** 24), 128)
    .option('--steps <n>', 'tokens measured per sequence', integer(2, 65536), 128);
  addModelBenchFlags(decode).action((flags: DecodeFlags) =>
    runModel(flags, (report) =>
      benchDecode(
        { ...optionsOf(flags, signal), batches: flags.batch, depth: flags.depth, steps: flags.steps },
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
    benchStep({ ...optionsOf(flags, signal), batches: flags.batch, depth: flags.depth }, (result) =>
      print(flags.json ? `${JSON.stringify(result)}\n` : stepText(result)),
    ),
  );

  const prefill = bench
    .command('prefill')
    .description('Tokens per second of prompts.')
    .option('--length <list>', 'tokens of the prompt', integers(1, 2 ** 24), [512])
    .option('--batch <list>', 'prompts at once', integers(1, 1024), [1]);
  addModelBenchFlags(prefill).action((flags: PrefillFlags) =>
    runModel(flags, async (report) => {
      for (const batch of flags.batch)
        await benchPrefill({ ...optionsOf(flags, signal), lengths: flags.length, batch }, report);
    }),
  );
  addBenchServe(bench, signal);
  addBenchStartup(bench, signal);
  addBenchCompare(bench);
}

/** One line for each kind of operation, and one for all. */
function stepText({ id, us, launches, layers, parts, device }: StepResult): string {
  const row = ({ name, calls, launches, us, floorUs }: StepPart) =>
    `${name.padEnd(22)}${String(calls).padStart(6)}${String(launches).padStart(10)}${us.toFixed(1).padStart(10)}` +
    `${(us / calls).toFixed(2).padStart(10)}` +
    `${Number.isNaN(floorUs) ? '-'.padStart(10) : (floorUs / calls).toFixed(2).padStart(10)}\n`;
  const sum = (of: (part: StepPart) => number) => parts.reduce((total, part) => total + of(part), 0);
  const each = (launches / layers).toFixed(1);
  return (
    `# ${id} on ${device.name}: ${us.toFixed(1)} us, ${launches} launches (${layers} layers: ${each} each)\n` +
    `${'operation'.padEnd(22)} calls  launches   step us   us/call  floor us\n` +
    parts.map(row).join('') +
    row({
      name: 'sum',
      calls: sum((part) => part.calls),
      launches: sum((part) => part.launches),
      us: sum((part) => part.us),
      floorUs: sum((part) => part.floorUs),
    })
  );
}

function addModelBenchFlags(command: Command): Command {
  command
    .option('-m, --model <dir>', 'checkpoint folder, or org/name in the cache')
    .option('--shape <name>', `random weights in a published shape: ${SHAPE_NAMES.join(', ')}, or NAME:LAYERS`)
    .option('--repetitions <n>', 'how often each figure is taken', integer(1, 1000), 3);
  return addJsonFlag(addDeterministicFlag(addPlacementFlags(command)));
}

function optionsOf(flags: ModelBenchFlags, signal: AbortSignal): ModelBenchOptions {
  const { model, shape, device, dtype, cacheDtype, threads, deterministic, repetitions } = flags;
  if ((model === undefined) === (shape === undefined)) throw new UsageError('Give either --shape or --model.');
  const what = shape === undefined ? { dir: model as string } : { shape };
  return { model: what, device, dtype, cacheDtype, threads, deterministic, repetitions, signal };
}

async function runKernels(flags: KernelFlags, signal: AbortSignal): Promise<void> {
  if (flags.list) return print(`${KERNEL_CASES.map(({ id }) => id).join('\n')}\n`);
  if (!/^(cpu|cuda:\d+(:portable)?)$/.test(flags.device))
    throw new UsageError('--device is cpu, cuda:N or cuda:N:portable.');
  const lines: Promise<void>[] = [];
  const results: KernelResult[] = [];
  let header: KernelBenchHeader | undefined;
  const options = {
    device: flags.device,
    filter: flags.filter?.split('+'),
    samples: flags.samples,
    coldBytes: flags.cold * 2 ** 20,
    signal,
  };
  await benchKernels(
    options,
    (found) => {
      header = found;
      if (!flags.json) lines.push(print(headerOf(found)));
    },
    (result) => {
      results.push(result);
      if (!flags.json) lines.push(print(`${lineOf(result)}\n`));
    },
  );
  await Promise.all(lines);
  const peers: PeerResult[] = [];
  if (flags.peers) {
    const { failed } = await benchPeers(
      results.map(({ id }) => id),
      (peer) => peers.push(peer),
      signal,
    );
    for (const { id, error } of failed) note(`${id}: ${error}`);
    if (!flags.json) await print(peerLines(results, peers));
  }
  if (flags.json)
    await print(`${JSON.stringify({ ...(await circumstances(flags.device)), ...header, results, peers })}\n`);
  const failed = results.filter(({ failure }) => failure !== null);
  if (failed.length > 0)
    throw new FoundWanting(`${failed.length} of ${results.length} cases failed: ${failed[0]?.failure}`);
}

const COLUMNS = [
  'us',
  'alone us',
  'read us',
  'GB/s',
  'TFLOP/s',
  'floor us',
  '% floor',
  'public us',
  'x public',
  'error',
];

function headerOf({ device, ceilings, ceilingSource, publicGpu, empty }: KernelBenchHeader): string {
  const flops = Number.isFinite(ceilings.bf16FlopsPerSecond)
    ? `, ${(ceilings.bf16FlopsPerSecond / 1e12).toFixed(0)} TFLOP/s`
    : '';
  return [
    `# ${device.name} (${device.path}), ${new Date().toISOString()}`,
    `# ceilings ${(ceilings.bytesPerSecond / 1e9).toFixed(0)} GB/s${flops}: ${ceilingSource}; public figures: ${publicGpu}`,
    `# an operation on one element: ${empty.chainUs.toFixed(2)} us in a chain, ${empty.singleUs.toFixed(2)} us alone`,
    `${'case'.padEnd(34)}${COLUMNS.map((name) => name.padStart(10)).join('')}\n`,
  ].join('\n');
}

function lineOf(result: KernelResult): string {
  const { id, us, bytesPerSecond, flopsPerSecond, floorUs, error, failure } = result;
  if (failure !== null) return `${id.padEnd(34)}  FAILED: ${failure}`;
  const cells = [
    us.toFixed(2),
    result.singleUs.toFixed(2),
    result.readUs.toFixed(2),
    (bytesPerSecond / 1e9).toFixed(0),
    (flopsPerSecond / 1e12).toFixed(1),
    floorUs.toFixed(2),
    ((100 * floorUs) / us).toFixed(1),
    result.public === null ? '-' : result.public.us.toFixed(1),
    result.public?.comparable ? (result.public.us / us).toFixed(2) : '-',
    error.toExponential(1),
  ];
  return `${id.padEnd(34)}${cells.map((cell) => cell.padStart(10)).join('')}  ${result.public?.by ?? ''}`.trimEnd();
}

/** Each library's time beside ours. */
function peerLines(results: readonly KernelResult[], peers: readonly PeerResult[]): string {
  const lines = peers.map(({ id, us, by }) => {
    const ours = results.find((result) => result.id === id)?.us ?? Number.NaN;
    const cells = [ours.toFixed(2), us.toFixed(2), (us / ours).toFixed(2)];
    return `${id.padEnd(34)}${cells.map((cell) => cell.padStart(10)).join('')}  ${by}`;
  });
  const titles = ['us', 'theirs', 'x'].map((name) => name.padStart(10)).join('');
  return `\n${'on this GPU, just now'.padEnd(34)}${titles}\n${lines.join('\n')}\n`;
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
    const range = `${Math.min(...result.repetitions).toFixed(1)} to ${Math.max(...result.repetitions).toFixed(1)}`;
    const beside = result.public.map(({ tokensPerSecond, by }) => `${tokensPerSecond} ${by}`).join('; ');
    const figure = `${result.tokensPerSecond.toFixed(1).padStart(10)} tokens/s (${range})`;
    const host = result.hostUs === null ? '' : `  main thread ${result.hostUs.toFixed(0)} us a step`;
    lines.push(print(`${result.id.padEnd(40)}${figure}${host}${beside === '' ? '' : `  public: ${beside}`}\n`));
  });
  await Promise.all(lines);
  const about = await circumstances(results[0]?.device.kind === 'cuda' ? deviceOf(flags.device) : 'cpu');
  if (flags.json) await print(`${JSON.stringify({ ...about, results })}\n`);
  else note(`${results[0]?.device.name} (${results[0]?.device.path}), ${about.date}, ${about.command}`);
}

/** 'auto' takes the first GPU. */
const deviceOf = (device: string) => (device === 'auto' ? 'cuda:0' : device);
