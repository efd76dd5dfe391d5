// cli/bench-kernels.ts - mla bench kernels: each operation by itself.
import type { Command } from 'commander';
import {
  benchKernels,
  benchPeers,
  circumstances,
  KERNEL_CASES,
  type KernelBenchHeader,
  type KernelResult,
  type PeerResult,
} from '../bench';
import { FoundWanting, UsageError } from './failure';
import { addDeterministicFlag, addJsonFlag, integer, type JsonFlag } from './flags';
import { note, print } from './output';
import { Table, tableOf } from './table';

interface KernelFlags extends JsonFlag {
  device: string;
  deterministic?: boolean;
  filter?: string;
  samples: number;
  cold: number;
  list?: boolean;
  peers?: boolean;
}

/** Adds the subcommand. */
export function addBenchKernels(bench: Command, signal: AbortSignal): void {
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
  addDeterministicFlag(kernels);
  addJsonFlag(kernels).action((flags: KernelFlags) => runKernels(flags, signal));
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
    deterministic: flags.deterministic,
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
      if (!flags.json) lines.push(print(rowOf(result)));
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
    if (!flags.json) await print(peerTable(results, peers));
  }
  if (flags.json)
    await print(`${JSON.stringify({ ...(await circumstances(flags.device)), ...header, results, peers })}\n`);
  const failed = results.filter(({ failure }) => failure !== null);
  if (failed.length > 0)
    throw new FoundWanting(`${failed.length} of ${results.length} cases failed: ${failed[0]?.failure}`);
}

const TABLE = new Table([
  ['case', 34],
  ['us', 9],
  ['alone us', 9],
  ['read us', 9],
  ['GB/s', 5],
  ['TFLOP/s', 5],
  ['floor us', 9],
  ['% floor', 5],
  ['public us', 8],
  ['x public', 5],
  ['error', 7],
  ['by', 0],
]);

function headerOf({ device, deterministic, ceilings, ceilingSource, publicGpu, empty }: KernelBenchHeader): string {
  const flops = Number.isFinite(ceilings.bf16FlopsPerSecond)
    ? `, ${(ceilings.bf16FlopsPerSecond / 1e12).toFixed(0)} TFLOP/s`
    : '';
  return [
    `${device.name} (${device.path}${deterministic ? ', deterministic' : ''}), ${new Date().toISOString()}.`,
    `Ceilings ${(ceilings.bytesPerSecond / 1e9).toFixed(0)} GB/s${flops}: ${ceilingSource}; public figures: ${publicGpu}.`,
    `An operation on one element: ${empty.chainUs.toFixed(2)} us in a chain, ${empty.singleUs.toFixed(2)} us alone.`,
    '',
    TABLE.head(),
  ].join('\n');
}

function rowOf(result: KernelResult): string {
  const { id, us, bytesPerSecond, flopsPerSecond, floorUs, error, failure } = result;
  if (failure !== null) return TABLE.row([id, 'FAILED', '', '', '', '', '', '', '', '', '', failure]);
  return TABLE.row([
    id,
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
    result.public?.by ?? '-',
  ]);
}

/** Each library's time beside ours. */
function peerTable(results: readonly KernelResult[], peers: readonly PeerResult[]): string {
  const rows = peers.map(({ id, us, by }) => {
    const ours = results.find((result) => result.id === id)?.us ?? Number.NaN;
    return [id, ours.toFixed(2), us.toFixed(2), (us / ours).toFixed(2), by];
  });
  return `\n${tableOf(['on this GPU, just now', 'us', 'theirs', 'x', 'by'], rows)}`;
}
