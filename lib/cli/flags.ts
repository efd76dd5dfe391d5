// cli/flags.ts - flags that commands share, and the checks of their values.
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { GenerateOptions, LoadOptions } from '../engine';
import type { InputFlags } from './input';

/** Which model, and how it is loaded. */
export interface ModelFlags {
  model?: string;
  context?: number;
  device: 'auto' | 'cpu' | `cuda:${number}`;
  dtype: 'auto' | 'f32' | 'bf16' | 'fp8';
  cacheDtype: 'auto' | 'f32' | 'bf16' | 'fp8';
  activationDtype: 'auto' | 'f32' | 'bf16' | 'fp8';
  threads: number;
  deterministic?: boolean;
}

/** How the next token is chosen, and how many there are. */
export interface SamplingFlags {
  maxTokens?: number;
  temp?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  seed?: number;
}

/** Whether results are for programs. */
export interface JsonFlag {
  json?: boolean;
}

/** Adds the flags of {@link ModelFlags}. */
export function addModelFlags(command: Command): Command {
  command
    .option('-m, --model <dir>', 'checkpoint folder, or org/name in the cache (default: the small model)')
    .option('-c, --context <n>', "tokens in all (default: the model's limit, at most 4096)", integer(1, 2 ** 31 - 1));
  return addDeterministicFlag(addPlacementFlags(command));
}

/** Adds --deterministic. */
export function addDeterministicFlag(command: Command): Command {
  return command.option('--deterministic', 'the same request always gives the same bits, whatever else runs; slower');
}

/** Adds those of them that say where and how precisely a model runs. */
export function addPlacementFlags(command: Command): Command {
  return command
    .addOption(
      new Option('--device <name>', 'auto, cpu or cuda:N; auto takes a GPU where there is one')
        .default('auto')
        .argParser(device),
    )
    .addOption(
      new Option('--dtype <type>', "type of the weights; auto keeps the checkpoint's, fp8 quantises at load")
        .choices(['auto', 'f32', 'bf16', 'fp8'])
        .default('auto'),
    )
    .addOption(
      new Option('--cache-dtype <type>', 'type of the latent cache; auto is f32 on the CPU, bf16 on a GPU')
        .choices(['auto', 'f32', 'bf16', 'fp8'])
        .default('auto'),
    )
    .addOption(
      new Option(
        '--activation-dtype <type>',
        'type of activations; auto is f32 on the CPU, bf16 on a GPU; fp8 is for fp8 weights',
      )
        .choices(['auto', 'f32', 'bf16', 'fp8'])
        .default('auto'),
    )
    .option('--threads <n>', 'CPU threads; 0 is one per core', integer(0, 4096), 0);
}

/** Adds the flags of {@link InputFlags}; `what` says what the text is. */
export function addInputFlags(command: Command, what: string): Command {
  return command
    .option('-p, --prompt <text>', `${what} (default: stdin)`)
    .option('-f, --file <path>', `read the ${what} from a file`)
    .option('--tokens <list>', 'token ids instead of a text: a list (1,2,3), @FILE, or - for stdin');
}

/** Adds the flags of {@link SamplingFlags}. */
export function addSamplingFlags(command: Command): Command {
  return command
    .option(
      '-n, --max-tokens <n>',
      'new tokens at most (default: 256, or what the context has room for)',
      integer(1, 2 ** 31 - 1),
    )
    .option('--temp <t>', 'temperature; 0 is greedy (default: as generation_config.json says, else 0)', number(0, 100))
    .option(
      '--top-p <p>',
      'sample from the likeliest tokens that make up p (default: as the file says, else 1)',
      number(0, 1, { open: true }),
    )
    .option(
      '--top-k <k>',
      'sample from the k likeliest tokens; 0 is all (default: as the file says, else 0)',
      integer(0, 2 ** 24),
    )
    .option(
      '--min-p <p>',
      'leave out what is less likely than p times the likeliest (default: as the file says, else 0)',
      number(0, 1),
    )
    .option(
      '-s, --seed <n>',
      'the same seed gives the same text (default: random)',
      integer(0, Number.MAX_SAFE_INTEGER),
    );
}

/** Adds --json. */
export function addJsonFlag(command: Command): Command {
  return command.option('--json', 'print one JSON object and nothing else on stdout');
}

/** The options of loadModel that the flags stand for. One command runs one sequence. */
export function loadOptionsOf(flags: ModelFlags): LoadOptions {
  const { context, device, dtype, cacheDtype, activationDtype, threads, deterministic } = flags;
  return { context, device, dtype, cacheDtype, activationDtype, threads, deterministic, maxSequences: 1 };
}

/** The options of generate that the flags stand for. */
export function samplingOf({ maxTokens, temp, topP, topK, minP, seed }: SamplingFlags): GenerateOptions {
  return { maxTokens, temperature: temp, topP, topK, minP, seed };
}

/** A parser of integers from `min` to `max`. */
export function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) throw new InvalidArgumentError(`Expected an integer from ${min} to ${max}.`);
    return value;
  };
}

/** A parser of lists of integers from `min` to `max`, like 1,8,32. */
export function integers(min: number, max: number): (text: string) => number[] {
  return (text) => text.split(',').map(integer(min, max));
}

/** A parser of numbers from `min` (or above it) to `max`. */
export function number(min: number, max: number, { open = false } = {}): (text: string) => number {
  return (text) => {
    const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
    if (!(value <= max && (open ? value > min : value >= min))) {
      throw new InvalidArgumentError(`Expected a number ${open ? `above ${min}, up` : `from ${min}`} to ${max}.`);
    }
    return value;
  };
}

function device(text: string): string {
  if (!/^(auto|cpu|cuda:\d{1,3}(:portable)?)$/.test(text))
    throw new InvalidArgumentError('Expected auto, cpu, cuda:N or cuda:N:portable.');
  return text;
}

export type { InputFlags };
