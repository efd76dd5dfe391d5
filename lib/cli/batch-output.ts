// cli/batch-output.ts - the results of mla batch: one JSON object per line, in a file that can be gone on with or on stdout.
import { createHash } from 'node:crypto';
import { type FileHandle, open, rename, rm, stat } from 'node:fs/promises';
import { MlaError } from '../errors';
import { UsageError } from './failure';
import { type Line, linesOf } from './lines';
import { print } from './output';

/** Where results go. */
export interface BatchOutput {
  /** Whether the result of a line is there already. @throws ERR_FILE when it is that of another line */
  has(line: Line): boolean;
  /** Appends a result; resolves when it is written. */
  write(result: object): Promise<void>;
  close(): Promise<void>;
}

/** Names a line's content, so that results are not taken for those of another input. */
export function fingerprint({ text }: Line): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}

/** Results on stdout. */
export const STDOUT: BatchOutput = {
  has: () => false,
  write: (result) => print(`${JSON.stringify(result)}\n`),
  close: async () => {},
};

/** Results in a file. */
export class BatchFile implements BatchOutput {
  private last: Promise<void> = Promise.resolve();

  private constructor(
    private readonly path: string,
    private readonly file: FileHandle,
    private readonly done: ReadonlyMap<number, string>,
  ) {}

  /**
   * Opens a file for results. With `resume`, what succeeded in it counts; failures and a line that was cut off are taken
   * out, and so are tried again. Rejects with ERR_FILE, or a UsageError for a file that is there, without `resume`.
   */
  static async open(path: string, resume: boolean, signal: AbortSignal): Promise<BatchFile> {
    const size = await sizeOf(path);
    if (size > 0 && !resume)
      throw new UsageError(`${path} is there already: add --resume to go on with it, or give another --output.`);
    const done = new Map<number, string>();
    try {
      if (size > 0) await keepSuccesses(path, done, signal);
      return new BatchFile(path, await open(path, 'a'), done);
    } catch (cause) {
      if (cause instanceof MlaError || signal.aborted) throw cause;
      throw new MlaError('ERR_FILE', `${path}: cannot be written (${(cause as NodeJS.ErrnoException).code}).`, {
        cause,
      });
    }
  }

  /** How many results there are. */
  get count(): number {
    return this.done.size;
  }

  has(line: Line): boolean {
    const known = this.done.get(line.number);
    if (known === undefined) return false;
    if (known === fingerprint(line)) return true;
    throw new MlaError(
      'ERR_FILE',
      `${this.path}: its result of line ${line.number} belongs to another input; give another --output.`,
    );
  }

  /** One after the other, each line as a whole. */
  write(result: object): Promise<void> {
    this.last = this.last.then(async () => {
      await this.file.appendFile(`${JSON.stringify(result)}\n`);
    });
    return this.last;
  }

  async close(): Promise<void> {
    await this.last.catch(() => {});
    await this.file.close();
  }
}

/** Rewrites the file with the results that count; the file is the old or the new one at any moment. */
async function keepSuccesses(path: string, done: Map<number, string>, signal: AbortSignal): Promise<void> {
  const next = `${path}.${process.pid}.next`;
  const file = await open(next, 'wx');
  try {
    for await (const line of linesOf(path, signal)) {
      const result = parsed(line.text);
      if (result === null) continue; // cut off
      if (typeof result.line !== 'number' || typeof result.input !== 'string')
        throw new MlaError('ERR_FILE', `${path}:${line.number}: expected a result of mla batch.`);
      if (result.error !== undefined || done.has(result.line)) continue;
      done.set(result.line, result.input);
      await file.appendFile(`${line.text}\n`);
    }
    await file.close();
    await rename(next, path);
  } catch (error) {
    await file.close().catch(() => {});
    await rm(next, { force: true });
    throw error;
  }
}

function parsed(text: string): { line?: unknown; input?: unknown; error?: unknown } | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : {};
  } catch {
    return null;
  }
}

async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch {
    return 0; // open() says what is wrong
  }
}
