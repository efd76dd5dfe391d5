// cli/bench-cache.ts - mla bench cache: what the latent cache buys, on one model and in one memory.
import type { Command } from 'commander';
import { benchCache, type CacheCapacity, type CacheForm, type CacheResult, circumstances } from '../bench';
import { addModelBenchFlags, deviceOf, type ModelBenchFlags, modelBenchOptionsOf } from './bench-flags';
import { integer, integers, number } from './flags';
import { note, print, size } from './output';
import { tableOf } from './table';

interface CacheFlags extends ModelBenchFlags {
  batch: number[];
  depth: number;
  memory?: number;
}

const HELP = `
Both sides replay the decode step of the same model. The per-head side reads keys and values of every head, which one
product makes out of the new token's latent; writing them to the cache is left out, in its favour.`;

/** Adds the subcommand. */
export function addBenchCache(bench: Command, signal: AbortSignal): void {
  const cache = bench
    .command('cache')
    .description('The same model with its latent cache, and with a cache of keys and values for each head.')
    .option('--batch <list>', 'numbers of sequences; the most that fit are added', integers(1, 1024), [1, 8, 64])
    .option('--depth <n>', 'tokens in the cache of each', integer(1, 2 ** 24), 4096)
    .option('--memory <GiB>', 'for weights, buffers and cache together (default: 9/10 of the device)', number(0, 1e6))
    .addHelpText('after', HELP);
  addModelBenchFlags(cache).action((flags: CacheFlags) => run(flags, signal));
}

async function run(flags: CacheFlags, signal: AbortSignal): Promise<void> {
  const { batch, depth, memory, device, json } = flags;
  const budget = memory === undefined ? undefined : memory * 2 ** 30;
  const options = { ...modelBenchOptionsOf(flags, signal), batches: batch, depth, budget };
  const results: CacheResult[] = [];
  let about: { budget: number; capacities: readonly CacheCapacity[] } = { budget: 0, capacities: [] };
  await benchCache(
    options,
    (capacities, found) => {
      about = { budget: found, capacities };
    },
    (result) => results.push(result),
  );
  const when = await circumstances(results[0]?.device.kind === 'cuda' ? deviceOf(device) : 'cpu');
  if (json) return print(`${JSON.stringify({ ...when, ...about, results })}\n`);
  await print(textOf(about.capacities, results, depth, about.budget));
  note(`${results[0]?.device.name} (${results[0]?.device.path}), ${when.date}, ${when.command}`);
}

const count = (n: number) => Math.round(n).toLocaleString('en-US');

function textOf(
  capacities: readonly CacheCapacity[],
  results: readonly CacheResult[],
  depth: number,
  budget: number,
): string {
  const forms = capacities.map(({ form }) => form) as [CacheForm, CacheForm];
  /** One line: the figure of each form, and how many times better the latent cache is. */
  const row = (name: string, of: (form: CacheForm) => number | undefined, better: 'more' | 'less', digits = 0) => {
    const [latent, other] = forms.map(of) as [number | undefined, number | undefined];
    const cell = (n: number | undefined) => (n === undefined ? '-' : digits === 0 ? count(n) : n.toFixed(digits));
    const ratio = latent && other ? (better === 'more' ? latent / other : other / latent).toFixed(2) : '-';
    return [name, cell(latent), cell(other), ratio];
  };
  const capacity = (pick: (c: CacheCapacity) => number) => (form: CacheForm) =>
    pick(capacities.find((one) => one.form === form) as CacheCapacity);
  const measured = (pick: (r: CacheResult) => number, batch?: number) => (form: CacheForm) => {
    const most = capacity((c) => c.mostSequences)(form);
    const found = results.find((one) => one.form === form && one.batch === (batch ?? most));
    return found && pick(found);
  };
  const shared = [...new Set(results.map(({ batch }) => batch))]
    .filter((batch) => results.filter((one) => one.batch === batch).length === 2)
    .sort((a, b) => a - b);
  const largest = shared.at(-1);
  const ceiling = results[0]?.ceilingBytesPerSecond ?? null;
  const rows = [
    row(
      'cache bytes per token',
      capacity((c) => c.bytesPerToken),
      'less',
    ),
    row(
      'longest context of one sequence',
      capacity((c) => c.longestContext),
      'more',
    ),
    row(
      `most sequences of ${count(depth)} tokens`,
      capacity((c) => c.mostSequences),
      'more',
    ),
    row(
      'tokens/s of that many',
      measured((r) => r.tokensPerSecond),
      'more',
    ),
    ...shared.map((batch) =>
      row(
        `ms per step, batch ${batch}`,
        measured((r) => r.us / 1000, batch),
        'less',
        3,
      ),
    ),
    ...(largest === undefined
      ? []
      : [
          row(
            `us of attention per layer, batch ${largest}`,
            measured((r) => r.attentionUs, largest),
            'less',
            1,
          ),
          row(
            `GB/s of cache that it reads`,
            measured((r) => r.attentionBytesPerSecond / 1e9, largest),
            'more',
            0,
          ),
        ]),
  ];
  const most = ceiling === null ? '' : `; memory gives ${count(ceiling / 1e9)} GB/s at most`;
  return `Weights, buffers and cache in ${size(budget)}${most}.\n\n${tableOf(['', 'latent', 'per head', 'times better'], rows)}`;
}
