#!/usr/bin/env node
// cli/main.ts - the mla command.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { addBatch } from './batch';
import { addBench } from './bench';
import { addChat } from './chat';
import { addDoctor } from './doctor';
import { addDownload } from './download';
import { ClosedPipe, EXIT, exitCodeOf, lineOf } from './failure';
import { addGenerate } from './generate';
import { addInspect } from './inspect';
import { Interrupts } from './interrupts';
import { complain, isClosedPipe } from './output';
import { addScore } from './score';

const EXAMPLES = `
Examples:
  mla generate -p "In the beginning"                        the small model of the package
  mla chat -m ./DeepSeek-V2-Lite-Chat                       a conversation; /help lists its commands
  mla generate --chat -m ./DeepSeek-V2-Lite-Chat -p "Why is the sky blue?"
  mla generate -m ./checkpoint --tokens 1,2,3 -n 16 --json  a folder without a tokenizer
  mla inspect org/name --gpu h200                           what it would take, by its headers alone
  mla download org/name                                     into the cache; then -m org/name
  mla doctor                                                what is wrong, if something is
  mla batch prompts.jsonl -o results.jsonl                  many at once; --resume goes on
  echo "some text" | mla score --top 5 --json

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable GPU, 4 out of memory, 130 interrupted.`;

/** Runs the command line. @returns the exit code */
async function main(): Promise<number> {
  const interrupts = new Interrupts();
  const { signal } = interrupts;
  process.stdout.on('error', (error) => interrupts.end(isClosedPipe(error) ? new ClosedPipe() : error));
  process.stderr.on('error', () => {}); // there is nobody left to tell
  interrupts.listen();

  const program = new Command('mla')
    .description('Runs DeepSeek-family language models on an NVIDIA GPU or on the CPU.')
    .version(packageVersion(), '-V, --version')
    .addHelpText('after', EXAMPLES)
    .showHelpAfterError('(add --help for the list of flags)')
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'mla: ')) })
    .exitOverride();
  program.configureHelp({ showGlobalOptions: false });
  addGenerate(program, signal);
  addChat(program, interrupts);
  addBatch(program, signal);
  addScore(program, signal);
  addBench(program, signal);
  addInspect(program, signal);
  addDownload(program, signal);
  addDoctor(program);
  try {
    await program.parseAsync();
    return EXIT.ok;
  } catch (error) {
    const line = lineOf(error);
    if (line !== null) complain(line);
    return exitCodeOf(error);
  }
}

function packageVersion(): string {
  const text = readFileSync(join(__dirname, '..', '..', 'package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

// Everything has been written and given back; what else still keeps the process alive need not be waited for.
void main().then((code) => process.exit(code));
