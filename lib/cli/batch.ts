// cli/batch.ts - mla batch: many prompts from a file, many at once, one result per line.
import type { Command } from 'commander';
import type { ChatOptions, Generation, Model, Result } from '../engine';
import { invalidArg, MlaError } from '../errors';
import type { ChatMessage } from '../text';
import { BatchBar } from './batch-bar';
import { BatchFile, type BatchOutput, fingerprint, STDOUT } from './batch-output';
import { FoundWanting, Interrupted, UsageError } from './failure';
import { addModelFlags, addSamplingFlags, integer, type ModelFlags, type SamplingFlags, samplingOf } from './flags';
import { type Line, linesOf } from './lines';
import { note } from './output';
import { runWithModel } from './run-with-model';

interface BatchFlags extends ModelFlags, SamplingFlags {
  output?: string;
  resume?: boolean;
  parallel: number;
}

/** What a line asks for. */
interface Task {
  readonly id: unknown;
  start(model: Model): Generation;
}

const INPUTS = ['prompt', 'tokens', 'messages'] as const;

const FORMAT = `
Each line of INPUT (- is stdin) is a JSON object with one of
  "prompt"    a text to be continued
  "tokens"    token ids to be continued
  "messages"  a conversation to be answered: [{"role":"user","content":"..."}]
and may have an "id", which comes back, and options that stand above the flags ("maxTokens", "temperature", "seed",
"stop", ... as in the library). Each result has "line", "id", "text", "tokens", "finishReason", "usage"; or "error"
with "code" and "message". Results come as they are finished: order them by "line". A run that ended early goes on
with --resume; what failed is tried again then.

Exit code 1 when a line failed.`;

/** Adds the command. */
export function addBatch(program: Command, signal: AbortSignal): void {
  const command = program
    .command('batch <input>')
    .description('Many prompts, one JSON object per line, many at once.')
    .option('-o, --output <file>', 'where results go (default: stdout)')
    .option('--resume', 'go on with an output that is there: lines with a result are left out')
    .option('--parallel <n>', 'sequences that run at once', integer(1, 1024), 16);
  addModelFlags(addSamplingFlags(command))
    .addHelpText('after', FORMAT)
    .action((input: string, flags: BatchFlags) => batch(input, flags, signal));
}

async function batch(input: string, flags: BatchFlags, signal: AbortSignal): Promise<void> {
  if (flags.resume && flags.output === undefined) throw new UsageError('--resume needs --output.');
  const total = input === '-' ? null : await countLines(input, signal);
  const output = flags.output === undefined ? STDOUT : await BatchFile.open(flags.output, !!flags.resume, signal);
  const bar = new BatchBar(total);
  const run = new BatchRun(output, flags, bar);
  try {
    await runWithModel(flags, signal, (model) => run.all(model, input, signal), { maxSequences: flags.parallel });
  } catch (error) {
    bar.stop();
    if (error instanceof Interrupted && output !== STDOUT)
      note(`${run.summary()}\n${flags.output} has what was finished: go on with --resume`);
    throw error;
  } finally {
    bar.stop();
    await output.close();
  }
  note(run.summary());
  if (run.failed > 0) throw new FoundWanting(run.firstFailure);
}

async function countLines(path: string, signal: AbortSignal): Promise<number> {
  let count = 0;
  for await (const _ of linesOf(path, signal)) count++;
  return count;
}

/** One pass over an input. */
class BatchRun {
  failed = 0;
  firstFailure = '';
  private finished = 0;
  private skipped = 0;
  private tokens = 0;
  private began = 0;
  private ended = 0;

  constructor(
    private readonly output: BatchOutput,
    private readonly flags: BatchFlags,
    private readonly bar: BatchBar,
  ) {}

  /** Keeps more lines at hand than run at once, so that a place that becomes free is taken at the next step. */
  async all(model: Model, input: string, signal: AbortSignal): Promise<void> {
    const open = new Set<Promise<void>>();
    const stop = new AbortController();
    const both = AbortSignal.any([signal, stop.signal]);
    this.began = this.ended = performance.now();
    try {
      for await (const line of linesOf(input, signal)) {
        if (this.output.has(line)) {
          this.skipped++;
          this.bar.skip();
          continue;
        }
        const one: Promise<void> = this.one(model, line, both).finally(() => open.delete(one));
        one.catch(() => {}); // awaited below
        open.add(one);
        if (open.size >= 2 * this.flags.parallel) await Promise.race(open);
      }
      await Promise.all(open);
    } finally {
      stop.abort(new Error('the run has ended')); // whoever still runs: another one has failed
      await Promise.allSettled(open);
    }
  }

  /** The last line. */
  summary(): string {
    const seconds = (this.ended - this.began) / 1000;
    const rate = seconds > 0 ? (this.tokens / seconds).toFixed(0) : '-';
    const parts = [`${this.finished} done`, `${this.failed} failed`];
    if (this.skipped > 0) parts.push(`${this.skipped} were there`);
    return `batch ${parts.join(', ')} | ${this.tokens} tok ${rate} t/s | ${seconds.toFixed(1)} s`;
  }

  /** Rejects only with what ends the whole run. */
  private async one(model: Model, line: Line, signal: AbortSignal): Promise<void> {
    const about = { line: line.number, input: fingerprint(line) };
    let id: unknown;
    let tokens = 0;
    try {
      const task = readTask(line, { ...samplingOf(this.flags), signal });
      id = task.id;
      const generation = task.start(model);
      for await (const chunk of generation) {
        tokens += chunk.tokens.length;
        this.tokens += chunk.tokens.length;
        this.bar.tokens(chunk.tokens.length);
      }
      await this.output.write({ ...about, id, ...shown(await generation.result) });
      this.finished++;
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof MlaError) || ENDS_ALL.has(error.code)) throw error;
      const { code, message } = error;
      await this.output.write({ ...about, id, error: { code, message } });
      if (this.failed++ === 0) this.firstFailure = `line ${line.number}: ${message}`;
      this.tokens -= tokens;
    }
    this.ended = performance.now();
    this.bar.line();
  }
}

/** After these no other line can succeed. */
const ENDS_ALL: ReadonlySet<string> = new Set(['ERR_DEVICE_LOST', 'ERR_WORKER_LOST', 'ERR_DISPOSED', 'ERR_FILE']);

function shown({ text, tokens, finishReason, usage, timings }: Result): object {
  const { queueMs, ttftMs, decodeMs } = timings;
  return { text, tokens, finishReason, usage, timings: { queueMs, ttftMs, decodeMs } };
}

/** @throws ERR_INVALID_ARG naming what is wrong with the line */
function readTask({ text }: Line, defaults: ChatOptions): Task {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new MlaError('ERR_INVALID_ARG', `expected a JSON object (${(cause as Error).message}).`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalidArg('line', 'an object', value);
  const { id, prompt, tokens, messages, ...own } = value as Record<string, unknown>;
  const given = INPUTS.filter((name) => (value as Record<string, unknown>)[name] !== undefined);
  if (given.length !== 1) throw invalidArg('line', `exactly one of ${INPUTS.join(', ')}`, given);
  if (own.signal !== undefined) throw invalidArg('signal', 'nothing: it is no option of a line', own.signal);
  const options = { ...defaults, ...own };
  return {
    id,
    start: (model) => {
      if (messages !== undefined) return model.chat(messages as ChatMessage[], options);
      if (prompt !== undefined && typeof prompt !== 'string') throw invalidArg('prompt', 'a text', prompt);
      return model.generate((prompt ?? tokens) as string | number[], options);
    },
  };
}
