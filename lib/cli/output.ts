// cli/output.ts - results to stdout, everything else to stderr.
import { SingleBar } from 'cli-progress';
import { createColors } from 'picocolors';
import type { LoadProgress } from '../model';
import { ClosedPipe } from './failure';

const colors = createColors(process.stderr.isTTY === true && !process.env.NO_COLOR);

/**
 * Writes to stdout, and waits until it has been taken: a slow reader slows the command down.
 * Rejects with ClosedPipe when the reader has gone.
 */
export function print(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => {
      if (error === null || error === undefined) resolve();
      else reject(isClosedPipe(error) ? new ClosedPipe() : error);
    });
  });
}

/** A model's text as a terminal may have it: control characters, escape sequences among them, become U+FFFD. */
export function forTerminal(text: string): string {
  return process.stdout.isTTY ? text.replace(/[^\P{Cc}\n\t]/gu, '\uFFFD') : text;
}

/** Whether a stream's error says that its reader has gone. */
export function isClosedPipe(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return code === 'EPIPE' || code === 'ERR_STREAM_DESTROYED' || code === 'ERR_STREAM_WRITE_AFTER_END';
}

/** A line of statistics on stderr. */
export function note(line: string): void {
  process.stderr.write(`${colors.dim(line)}\n`);
}

/** The line of a failure on stderr. */
export function complain(line: string): void {
  process.stderr.write(`${colors.red(line)}\n`);
}

/** A bar for bytes, on a terminal only. */
export class ByteBar {
  private bar: SingleBar | null = null;
  private began = 0;

  constructor(private readonly verb: string) {}

  /** Shows how far it has come. */
  set(loadedBytes: number, totalBytes: number): void {
    if (!process.stderr.isTTY) return;
    const now = performance.now();
    if (this.bar === null) {
      this.began = now;
      this.bar = new SingleBar({
        format: `${this.verb} {bar} {loaded} of {all}, {rate}, ETA {eta} s`,
        stream: process.stderr,
        hideCursor: true,
        clearOnComplete: true,
      });
      this.bar.start(totalBytes, 0, { loaded: size(0), all: size(totalBytes), rate: '-' });
    }
    const seconds = (now - this.began) / 1000;
    this.bar.setTotal(totalBytes);
    this.bar.update(loadedBytes, {
      loaded: size(loadedBytes),
      all: size(totalBytes),
      rate: seconds > 0 ? `${size(loadedBytes / seconds)}/s` : '-',
    });
  }

  /** Takes the bar away. Idempotent. */
  stop(): void {
    this.bar?.stop();
    this.bar = null;
  }
}

/** A bar for loading. */
export class LoadBar {
  private readonly bar = new ByteBar('loading');

  /** For the onProgress option of loadModel. */
  readonly update = ({ phase, loadedBytes, totalBytes }: LoadProgress): void => {
    if (phase === 'weights') this.bar.set(loadedBytes, totalBytes);
    else if (phase === 'ready') this.stop();
  };

  /** Takes the bar away. Idempotent. */
  stop(): void {
    this.bar.stop();
  }
}

/** Bytes for people: "12 MiB", "29.3 GiB". */
export function size(bytes: number): string {
  return bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(0)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`;
}
