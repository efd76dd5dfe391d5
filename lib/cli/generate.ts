// cli/generate.ts - mla generate: continues a text, answers a message, or continues token ids.
import type { Command } from 'commander';
import { Option } from 'commander';
import type { ChatOptions, Generation, Model, Timings, Usage } from '../engine';
import { BUILT_IN_TEMPLATES, type BuiltInTemplate, type ChatMessage } from '../text';
import { Interrupted, UsageError } from './failure';
import {
  addInputFlags,
  addJsonFlag,
  addModelFlags,
  addSamplingFlags,
  type InputFlags,
  type JsonFlag,
  type ModelFlags,
  type SamplingFlags,
  samplingOf,
} from './flags';
import { readInput } from './input';
import { forTerminal, note, print } from './output';
import { runWithModel } from './run-with-model';

interface GenerateFlags extends ModelFlags, InputFlags, SamplingFlags, JsonFlag {
  ignoreEos?: boolean;
  chat?: boolean;
  system?: string;
  template?: BuiltInTemplate;
}

/** Adds the command. */
export function addGenerate(program: Command, signal: AbortSignal): void {
  const command = program
    .command('generate')
    .description('Continue a text, or answer a message with --chat. The text goes to stdout as it comes.');
  addSamplingFlags(addInputFlags(command, 'prompt'))
    .option('--ignore-eos', 'go on where the model ends its text')
    .option('--chat', "the prompt is a user's message: use the checkpoint's chat template")
    .option('--system <text>', 'system message; with --chat')
    .addOption(
      new Option('--template <name>', "built-in format instead of the checkpoint's template; with --chat").choices(
        BUILT_IN_TEMPLATES,
      ),
    );
  addJsonFlag(addModelFlags(command)).action((flags: GenerateFlags) => generate(flags, signal));
}

async function generate(flags: GenerateFlags, signal: AbortSignal): Promise<void> {
  if (!flags.chat) {
    for (const name of ['system', 'template'] as const) {
      if (flags[name] !== undefined) throw new UsageError(`--${name} needs --chat.`);
    }
  } else if (flags.tokens !== undefined) {
    throw new UsageError('--chat needs a text; it does not go with --tokens.');
  }
  let input = await readInput(flags, signal);
  // A text piped in by a shell ends with a line break that nobody means to be continued.
  if (typeof input === 'string' && flags.prompt === undefined) input = input.replace(/\r?\n$/, '');
  if (input.length === 0) throw new UsageError('The prompt is empty.');
  const prompt = input;
  await runWithModel(flags, signal, (model) => {
    const generation = start(model, prompt, flags, signal);
    return flags.json ? printJson(generation) : stream(generation, model.info.hasTokenizer);
  });
}

function start(model: Model, input: string | number[], flags: GenerateFlags, signal: AbortSignal): Generation {
  const options: ChatOptions = {
    ...samplingOf(flags),
    ignoreEos: flags.ignoreEos ?? false,
    signal,
  };
  if (!flags.chat || typeof input !== 'string') return model.generate(input, options);
  const messages: ChatMessage[] = [{ role: 'user', content: input }];
  if (flags.system !== undefined) messages.unshift({ role: 'system', content: flags.system });
  return model.chat(messages, flags.template === undefined ? options : { ...options, template: flags.template });
}

/** Text as it comes; ids, separated by spaces, where there is no tokenizer. */
async function stream(generation: Generation, hasTokenizer: boolean): Promise<void> {
  let written = '';
  try {
    for await (const { text, tokens } of generation) {
      const piece = hasTokenizer ? forTerminal(text) : `${written === '' ? '' : ' '}${tokens.join(' ')}`;
      if (piece === '') continue;
      await print(piece);
      written = piece;
    }
  } finally {
    // On a terminal the next line begins at its start; a file gets the text and nothing else.
    if (written !== '' && !written.endsWith('\n') && (process.stdout.isTTY || !hasTokenizer)) {
      await print('\n').catch(() => {});
    }
  }
  const { usage, timings } = await generation.result;
  note(summaryOf(usage, timings));
}

/** One object; after an interrupt, with what has come until then. */
export async function printJson(generation: Generation): Promise<void> {
  const tokens: number[] = [];
  let text = '';
  try {
    for await (const chunk of generation) {
      text += chunk.text;
      tokens.push(...chunk.tokens);
    }
  } catch (error) {
    if (error instanceof Interrupted) {
      const usage = { promptTokens: null, completionTokens: tokens.length };
      await print(`${JSON.stringify({ tokens, text, finishReason: 'aborted', usage, timings: null })}\n`);
    }
    throw error;
  }
  const { finishReason, usage, timings } = await generation.result;
  await print(`${JSON.stringify({ tokens, text, finishReason, usage, timings })}\n`);
}

/** The last line on stderr. */
export function summaryOf({ promptTokens, completionTokens }: Usage, timings: Timings): string {
  const rate = (value: number | null) => (value === null ? '-' : value.toFixed(value < 100 ? 1 : 0));
  return [
    `prefill ${promptTokens} tok ${rate(timings.prefillTokensPerSecond)} t/s`,
    `decode ${completionTokens} tok ${rate(timings.decodeTokensPerSecond)} t/s`,
    `ttft ${timings.ttftMs.toFixed(0)} ms`,
  ].join(' | ');
}
