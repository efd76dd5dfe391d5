// tokenizer-files.ts - reads the text files of a checkpoint folder: whole, plain files of a bounded size, and nothing else.
import { join } from 'node:path';
import { type ErrorCode, MlaError } from '../errors';
import { readFile, stat } from '../files';

/**
 * Reads one file of a folder.
 * @returns its bytes, or null when there is no such file
 * @throws `code` when it is not a plain file, is larger than `maxBytes`, or cannot be read
 */
export async function readFolderFile(
  dir: string,
  name: string,
  maxBytes: number,
  code: ErrorCode,
): Promise<Buffer | null> {
  const path = join(dir, name);
  try {
    const info = await stat(path); // before it is opened: opening a pipe waits for its writer
    if (!info.isFile()) throw new MlaError(code, `${path}: expected a plain file.`);
    if (info.size > maxBytes) throw new MlaError(code, `${path}: ${info.size} bytes; at most ${maxBytes} are read.`);
    const bytes = await readFile(path);
    if (bytes.length > maxBytes) throw new MlaError(code, `${path}: grew past ${maxBytes} bytes while it was read.`);
    return bytes;
  } catch (cause) {
    if (cause instanceof MlaError) throw cause;
    const { code: reason } = cause as NodeJS.ErrnoException;
    if (reason === 'ENOENT' || reason === 'ENOTDIR') return null;
    throw new MlaError(code, `${path}: cannot be read (${reason ?? 'unknown error'}).`, { cause });
  }
}

/**
 * Parses JSON.
 * @throws `code`; the message does not quote the file, which may be any file of the machine behind a link
 */
export function parseJson(text: string, name: string, code: ErrorCode): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new MlaError(
      code,
      `${name}: not valid JSON (${text.length} characters). The file may be cut off, or a Git LFS pointer.`,
    );
  }
}
