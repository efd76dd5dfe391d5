// cli/composer.ts - messages from lines: one line is a message, unless it says that it goes on.

/** Begins and ends a message of several lines. */
export const BLOCK = '"""';

/** What lines have become. */
export interface Composed {
  readonly text: string;
  /** whether it was one plain line: only such a line can be a command */
  readonly plain: boolean;
}

/**
 * Puts messages together: a line that ends with a backslash goes on in the next one, {@link BLOCK} begins a message that
 * ends with the next {@link BLOCK}, and pasted lines belong together.
 */
export class Composer {
  private lines: string[] = [];
  private inBlock = false;
  private plain = true;

  /** Whether a message has begun and not ended. */
  get open(): boolean {
    return this.lines.length > 0 || this.inBlock;
  }

  /**
   * Adds a line.
   * @param more whether another line follows for certain, as within a pasted text
   * @returns the message, when it ends here
   */
  add(line: string, more = false): Composed | null {
    if (this.inBlock || (!this.open && line.trimStart().startsWith(BLOCK))) return this.addToBlock(line, more);
    const goesOn = !more && line.endsWith('\\');
    this.lines.push(goesOn ? line.slice(0, -1) : line);
    if (more || goesOn) {
      this.plain = false;
      return null;
    }
    return this.finish();
  }

  /** Ends what is open; null when nothing is. */
  finish(): Composed | null {
    const text = this.lines.join('\n');
    const composed = this.open && text.trim() !== '' ? { text, plain: this.plain } : null;
    this.clear();
    return composed;
  }

  /** Forgets what is open. */
  clear(): void {
    this.lines = [];
    this.inBlock = false;
    this.plain = true;
  }

  private addToBlock(line: string, more: boolean): Composed | null {
    let rest = line;
    if (!this.inBlock) {
      this.inBlock = true;
      this.plain = false;
      rest = line.trimStart().slice(BLOCK.length);
      if (rest.trim() === '') return null;
    }
    const end = rest.trimEnd();
    if (!end.endsWith(BLOCK)) {
      this.lines.push(rest);
      return null;
    }
    const last = end.slice(0, -BLOCK.length);
    if (last !== '') this.lines.push(last);
    return more ? null : this.finish();
  }
}
