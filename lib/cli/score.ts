// cli/score.ts - mla score: how likely a text is, token by token.
import type { Command } from 'commander';
import type { Model, Score } from '../engine';
import { UsageError } from './failure';
import {
  addInputFlags,
  addJsonFlag,
  addModelFlags,
  type InputFlags,
  integer,
  type JsonFlag,
  type ModelFlags,
} from './flags';
import { readInput } from './input';
import { note, print } from './output';
import { runWithModel } from './run-with-model';

interface ScoreFlags extends ModelFlags, InputFlags, JsonFlag {
  top: number;
  logits?: boolean;
}

/** Adds the command. */
export function addScore(program: Command, signal: AbortSignal): void {
  const command = program
    .command('score')
    .description('Log-probabilities of a text or of token ids: one line per token (position, id, logprob, text).');
  addInputFlags(command, 'text')
    .option('--top <k>', 'also the k likeliest tokens in the place of each, up to 20', integer(0, 20), 0)
    .option('--logits', 'also the logits after the last token; with --json');
  addJsonFlag(addModelFlags(command)).action((flags: ScoreFlags) => score(flags, signal));
}

async function score(flags: ScoreFlags, signal: AbortSignal): Promise<void> {
  if (flags.logits && !flags.json) throw new UsageError('--logits needs --json.');
  const input = await readInput(flags, signal);
  if (input.length === 0) throw new UsageError('The text is empty.');
  await runWithModel(flags, signal, async (model) => {
    const scored = await model.score(input, { top: flags.top, logits: flags.logits ?? false, signal });
    await print(flags.json ? `${jsonOf(scored)}\n` : await tableOf(scored, model));
    if (!flags.json) note(summaryOf(scored));
  });
}

function jsonOf({ tokens, logprobs, top, logits }: Score): string {
  const shown = { tokens, logprobs, top };
  return JSON.stringify(logits === null ? shown : { ...shown, logits: Array.from(logits) });
}

/** Tab-separated; texts as JSON strings, so that a line is a line. */
async function tableOf({ tokens, logprobs, top }: Score, model: Model): Promise<string> {
  const texts = model.info.hasTokenizer ? await Promise.all(tokens.map((id) => model.decode([id]))) : [];
  const lines = tokens.map((id, i) => {
    const text = texts.length > 0 ? [JSON.stringify(texts[i])] : [];
    const others = top[i]?.length ? [top[i].map((other) => `${other.id}:${other.logprob.toFixed(4)}`).join(' ')] : [];
    return [i, id, logprobs[i]?.toFixed(4) ?? '-', ...text, ...others].join('\t');
  });
  return `${lines.join('\n')}\n`;
}

function summaryOf({ tokens, logprobs }: Score): string {
  const known = logprobs.filter((value) => value !== null);
  if (known.length === 0) return `score ${tokens.length} tok`;
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  return `score ${tokens.length} tok | mean logprob ${mean.toFixed(4)} | perplexity ${Math.exp(-mean).toFixed(3)}`;
}
