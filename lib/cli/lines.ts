// cli/lines.ts - the lines of a large file or of stdin, one after the other.
import { createReadStream } from 'node:fs';
import { TextDecoder } from 'node:util';
import { MlaError } from '../errors';

/** Longer than any prompt that the tokenizer takes. */
const MAX_LINE_LENGTH = 64 * 1024 * 1024;

/** A line that is not empty. */
export interface Line {
  /** from 1 */
  readonly number: number;
  readonly text: string;
}

/**
 * The lines of a file (`-` is stdin) that are not blank.
 * @throws ERR_FILE when it cannot be read; ERR_INVALID_ARG for bytes that are not UTF-8, or a line without an end
 */
export async function* linesOf(path: string, signal: AbortSignal): AsyncGenerator<Line> {
  const source = path === '-' ? process.stdin : createReadStream(path);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  const abort = () => source.destroy(signal.reason as Error);
  let number = 0;
  let rest = '';
  signal.addEventListener('abort', abort, { once: true });
  try {
    for await (const part of source as AsyncIterable<Buffer>) {
      const lines = (rest + decode(decoder, part, path, number)).split('\n');
      rest = lines.pop() as string;
      if (rest.length > MAX_LINE_LENGTH)
        throw new MlaError('ERR_INVALID_ARG', `${path}:${number + 1}: more than ${MAX_LINE_LENGTH} characters.`);
      for (const text of lines) {
        number++;
        if (text.trim() !== '') yield { number, text };
      }
    }
    rest += decode(decoder, undefined, path, number);
    if (rest.trim() !== '') yield { number: number + 1, text: rest };
  } catch (cause) {
    signal.throwIfAborted();
    if (cause instanceof MlaError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new MlaError('ERR_FILE', `${path}: cannot be read (${code ?? message}).`, { cause });
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

function decode(decoder: TextDecoder, part: Buffer | undefined, path: string, number: number): string {
  try {
    return decoder.decode(part, { stream: part !== undefined });
  } catch (cause) {
    throw new MlaError('ERR_INVALID_ARG', `${path}: expected UTF-8 text, found other bytes after line ${number}.`, {
      cause,
    });
  }
}
