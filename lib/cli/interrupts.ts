// cli/interrupts.ts - what Ctrl+C does: it ends the command, unless the command has something smaller to end.
import { EXIT, Interrupted } from './failure';

/** The one listener of SIGINT, and the signal that ends a command. */
export class Interrupts {
  private readonly stop = new AbortController();
  private readonly smaller: (() => void)[] = [];

  /** Ends the command: aborted by Ctrl+C, or by {@link end}. */
  readonly signal: AbortSignal = this.stop.signal;

  /** Starts to listen. A second Ctrl+C after the one that ends the command does not wait for it. */
  listen(): void {
    process.on('SIGINT', () => this.interrupt());
  }

  /** As Ctrl+C does. */
  interrupt(): void {
    const smaller = this.smaller.pop();
    if (smaller !== undefined) {
      smaller();
      return;
    }
    if (this.signal.aborted) process.exit(EXIT.interrupted);
    this.stop.abort(new Interrupted());
  }

  /** Ends the command for another reason. */
  end(reason: unknown): void {
    this.stop.abort(reason);
  }

  /**
   * Runs `work`, with a signal that the next Ctrl+C aborts instead of ending the command. One more ends the command.
   * The signal also aborts when the command ends.
   */
  async during<T>(reason: unknown, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const controller = new AbortController();
    const smaller = () => controller.abort(reason);
    this.smaller.push(smaller);
    try {
      return await work(AbortSignal.any([controller.signal, this.signal]));
    } finally {
      const at = this.smaller.indexOf(smaller);
      if (at >= 0) this.smaller.splice(at, 1);
    }
  }
}
