// cli/input.ts - where the text or the token ids of a command come from.
import { readFile, stat } from 'node:fs/promises';
import { MlaError } from '../errors';
import { UsageError } from './failure';

/** Exactly one of these, or stdin. */
export interface InputFlags {
  prompt?: string;
  file?: string;
  tokens?: string;
}

/** More than any text that the tokenizer takes, or any context. */
const MAX_INPUT_BYTES = 64 * 1024 * 1024;

/** Reads what the flags name: a text, or token ids. */
export async function readInput(flags: InputFlags, signal: AbortSignal): Promise<string | number[]> {
  const given = (['prompt', 'file', 'tokens'] as const).filter((name) => flags[name] !== undefined);
  if (given.length > 1) throw new UsageError(`Give only one of ${given.map((name) => `--${name}`).join(' and ')}.`);
  const { prompt, file, tokens } = flags;
  if (prompt !== undefined) return prompt;
  if (file !== undefined) return readText(file);
  if (tokens === '-') return parseTokens(await readStdin(signal), 'stdin');
  if (tokens?.startsWith('@')) return parseTokens(await readText(tokens.slice(1)), tokens.slice(1));
  if (tokens !== undefined) return parseTokens(tokens, '--tokens');
  if (process.stdin.isTTY) throw new UsageError('There is no prompt: give one with -p, -f or --tokens, or on stdin.');
  return readStdin(signal);
}

/**
 * Token ids of a list: decimal integers, separated by commas or white space, in brackets or not.
 * @throws UsageError naming the first thing that is none
 */
export function parseTokens(text: string, source: string): number[] {
  const list = text.trim();
  const inner = /^\[[^[\]]*\]$/.test(list) ? list.slice(1, -1).trim() : list;
  const words = inner.split(/\s*,\s*|\s+/);
  const wrong = words.find((word) => !/^\d{1,10}$/.test(word));
  if (wrong !== undefined) {
    const found = wrong === '' ? 'nothing between two separators' : JSON.stringify(wrong.slice(0, 40));
    throw new UsageError(`${source}: expected token ids such as 1,2,3; found ${inner === '' ? 'none' : found}.`);
  }
  return words.map(Number);
}

async function readText(path: string): Promise<string> {
  let bytes: Buffer;
  try {
    const info = await stat(path);
    // A pipe, as in -f <(command), has no size to check first.
    if (info.isDirectory()) throw new MlaError('ERR_FILE', `${path}: expected a text file, found a folder.`);
    if (info.size > MAX_INPUT_BYTES) throw tooLarge(path);
    bytes = await readFile(path);
  } catch (cause) {
    if (cause instanceof MlaError) throw cause;
    const reason = (cause as NodeJS.ErrnoException).code ?? 'unknown error';
    throw new MlaError('ERR_FILE', `${path}: cannot be read (${reason}).`, { cause });
  }
  return decode(bytes, path);
}

async function readStdin(signal: AbortSignal): Promise<string> {
  const parts: Buffer[] = [];
  let size = 0;
  const abort = () => process.stdin.destroy(signal.reason as Error);
  signal.throwIfAborted();
  signal.addEventListener('abort', abort, { once: true });
  try {
    for await (const part of process.stdin as AsyncIterable<Buffer>) {
      size += part.length;
      if (size > MAX_INPUT_BYTES) throw tooLarge('stdin');
      parts.push(part);
    }
  } finally {
    signal.removeEventListener('abort', abort);
  }
  signal.throwIfAborted();
  return decode(Buffer.concat(parts), 'stdin');
}

function decode(bytes: Buffer, source: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new MlaError('ERR_INVALID_ARG', `${source}: expected UTF-8 text, found other bytes.`, { cause });
  }
}

function tooLarge(source: string): MlaError {
  return new MlaError('ERR_INVALID_ARG', `${source}: more than ${MAX_INPUT_BYTES} bytes; expected at most that.`);
}
