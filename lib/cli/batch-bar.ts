// cli/batch-bar.ts - how far mla batch has come.
import { SingleBar } from 'cli-progress';

/** A bar for lines of work, on a terminal only. */
export class BatchBar {
  private bar: SingleBar | null = null;
  private readonly timer: NodeJS.Timeout | null = null;
  private began = 0;
  private done = 0;
  private skipped = 0;
  private made = 0;

  /** @param total lines in all; null where nobody knows */
  constructor(private readonly total: number | null) {
    if (!process.stderr.isTTY) return;
    this.timer = setInterval(() => this.draw(), 100).unref();
  }

  /** A line was there already. */
  skip(): void {
    this.skipped++;
  }

  /** Some of a line's tokens have come. */
  tokens(count: number): void {
    if (this.began === 0) this.began = performance.now();
    this.made += count;
  }

  /** A line has ended. */
  line(): void {
    this.done++;
  }

  /** Takes the bar away. Idempotent. */
  stop(): void {
    if (this.timer !== null) clearInterval(this.timer);
    this.bar?.stop();
    this.bar = null;
  }

  private draw(): void {
    if (this.began === 0) return;
    const { total, done, skipped } = this;
    const seconds = (performance.now() - this.began) / 1000;
    const left = total === null ? 0 : total - skipped - done;
    const values = {
      all: total ?? '?',
      rate: seconds > 0 ? (this.made / seconds).toFixed(0) : '-',
      left: total === null || done === 0 ? '-' : duration((left * seconds) / done),
    };
    if (this.bar === null) {
      this.bar = new SingleBar({
        format: `{bar} {value} of {all} | {rate} t/s | ETA {left}`,
        barsize: 30,
        stream: process.stderr,
        hideCursor: true,
        clearOnComplete: true,
      });
      this.bar.start(total ?? 0, skipped, values);
    }
    this.bar.update(skipped + done, values);
  }
}

/** 12 s, 3 min 20 s, 2 h 5 min */
function duration(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
