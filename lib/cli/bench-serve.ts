// cli/bench-serve.ts - mla bench serve: the engine under load.
import { type Command, InvalidArgumentError } from 'commander';
import {
  benchServe,
  circumstances,
  type Load,
  type Percentiles,
  type PrefixResult,
  percentiles,
  type ServeResult,
} from '../bench';
import { SHAPE_NAMES } from '../model';
import { UsageError } from './failure';
import { addDeterministicFlag, addJsonFlag, addPlacementFlags, integer, type JsonFlag, type ModelFlags } from './flags';
import { note, print } from './output';

interface ServeFlags
  extends Pick<
      ModelFlags,
      'model' | 'device' | 'dtype' | 'cacheDtype' | 'activationDtype' | 'threads' | 'deterministic'
    >,
    JsonFlag {
  shape?: string;
  rate: Load[];
  requests: number;
  prompt: number;
  shared: number;
  output: number;
  parallel: number;
  chunk: number;
  system: number;
  seed: number;
}

const HELP = `
Each load is run on the idle engine: "max" sends all requests at once, 50% sends half as many per second as "max" got
done, 4 sends 4 per second; the distances between arrivals are exponential. Milliseconds are a consumer's: to the first
token from the arrival, per token after the first, in the queue before the first prompt token is computed. "static" goes
past the engine: batches of --parallel requests that are prefilled together and then decoded to their end. The last
columns are of the main thread: how late its event loop was, and how long it was busy in each step of the model.
--system compares two requests, one after the other, that begin with the same tokens.`;

/** Adds the subcommand. */
export function addBenchServe(bench: Command, signal: AbortSignal): void {
  const serve = bench
    .command('serve')
    .description('Waiting times and throughput while requests arrive at random.')
    .option('-m, --model <dir>', 'checkpoint folder')
    .option('--shape <name>', `random weights in a published shape: ${SHAPE_NAMES.join(', ')}, or NAME:LAYERS`)
    .option('--rate <list>', 'loads: static, max, N% of max, or requests per second', loads, [
      'max',
      { percent: 50 },
      { percent: 90 },
    ])
    .option('--requests <n>', 'requests of each load', integer(1, 1e6), 64)
    .option('--prompt <n>', 'tokens of each prompt', integer(1, 2 ** 24), 512)
    .option('--shared <n>', 'of these, tokens that all prompts begin with', integer(0, 2 ** 24), 0)
    .option('--output <n>', 'new tokens of each request', integer(1, 2 ** 24), 128)
    .option('--parallel <n>', 'sequences that run at once', integer(1, 1024), 32)
    .option('--chunk <n>', 'prompt tokens of a step', integer(1, 16384), 512)
    .option('--system <n>', 'tokens that pairs of requests share, for the gain of the second', integer(0, 2 ** 24), 0)
    .option('-s, --seed <n>', 'of the arrivals', integer(0, 2 ** 32 - 1), 1)
    .addHelpText('after', HELP);
  addJsonFlag(addDeterministicFlag(addPlacementFlags(serve))).action((flags: ServeFlags) => run(flags, signal));
}

function loads(text: string): Load[] {
  return text.split(',').map((word) => {
    const value = Number.parseFloat(word);
    if (word === 'max' || word === 'static') return word;
    if (!/^\d+(\.\d+)?%?$/.test(word) || !(value > 0))
      throw new InvalidArgumentError('Expected a list of static, max, percentages like 50%, and requests per second.');
    return word.endsWith('%') ? { percent: value } : { perSecond: value };
  });
}

async function run(flags: ServeFlags, signal: AbortSignal): Promise<void> {
  const { model, shape, rate, shared, prompt, json, ...rest } = flags;
  if ((model === undefined) === (shape === undefined)) throw new UsageError('Give either --shape or --model.');
  if (shared >= prompt) throw new UsageError('--shared must be below --prompt: prompts differ in the end.');
  const firstPercentage = rate.findIndex((load) => typeof load === 'object' && 'percent' in load);
  if (firstPercentage >= 0 && !rate.slice(0, firstPercentage).includes('max'))
    throw new UsageError('--rate: a percentage needs "max" before it.');
  const what = shape === undefined ? { dir: model as string } : { shape };
  const results: ServeResult[] = [];
  const lines: Promise<void>[] = json ? [] : [print(TITLES)];
  const pairs = await benchServe({ ...rest, model: what, loads: rate, prompt, shared, signal }, (result) => {
    results.push(result);
    if (!json) lines.push(print(rowOf(result)));
  });
  if (!json) lines.push(print([...results.flatMap(shareOfStatic), ...pairs.map(gainOf)].join('')));
  await Promise.all(lines);
  const about = await circumstances(flags.device === 'auto' ? 'cuda:0' : flags.device);
  if (json) await print(`${JSON.stringify({ ...about, results, pairs })}\n`);
  else note(`${results[0]?.device.name} (${results[0]?.device.path}), ${about.date}, ${about.command}`);
}

function shareOfStatic({ load, ofStatic }: ServeResult): string[] {
  if (ofStatic === null || load === 'static') return [];
  return [`${load}: ${(100 * ofStatic).toFixed(0)} % of the tokens per second of the static batch\n`];
}

function gainOf({ shared, own, first, second, ratio }: PrefixResult): string {
  const ms = (all: number[]) => `${percentiles(all).p50.toFixed(1)} ms`;
  return (
    `first token of a prompt of ${shared} + ${own} tokens after ${ms(first)};\n` +
    `of the next with the same ${shared} after ${ms(second)}, ${ratio.toFixed(1)} times shorter\n`
  );
}

/** Two lines of titles, 100 columns wide. */
const TITLES = [
  '              done      new   first token ms   per token ms      queue ms  waits loop late ms  busy\n',
  'load         req/s    tok/s      p50     p99    p50     p99    p50    p99    max   p99   max us/step\n',
].join('');

function rowOf({
  load,
  requestsPerSecond,
  tokensPerSecond,
  firstToken,
  perToken,
  queue,
  waiting,
  mainThread,
}: ServeResult): string {
  const two = ({ p50, p99 }: Percentiles, widths: readonly [number, number], digits: number) =>
    pair(p50, p99, widths, digits);
  const pair = (a: number, b: number, widths: readonly [number, number], digits: number) =>
    a.toFixed(digits).padStart(widths[0]) + b.toFixed(digits).padStart(widths[1]);
  return [
    load.padEnd(9),
    requestsPerSecond.toFixed(2).padStart(9),
    tokensPerSecond.toFixed(0).padStart(9),
    two(firstToken, [9, 8], 0),
    two(perToken, [7, 8], 1),
    two(queue, [7, 7], 0),
    String(waiting.max).padStart(7),
    mainThread === null
      ? ''
      : pair(mainThread.late.p99, mainThread.late.max, [6, 6], 1) + mainThread.busyUs.toFixed(0).padStart(8),
    '\n',
  ].join('');
}
