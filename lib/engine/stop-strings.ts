// engine/stop-strings.ts - finds strings that end a text, however the text is cut into pieces.

/** What became of one piece of text. */
export interface StopSearch {
  /** text that no stop string can begin in any more */
  readonly text: string;
  /** the stop string that is complete now; `text` ends before it, and nothing follows */
  readonly found: string | null;
}

/**
 * Looks for stop strings in a growing text. The one that is complete first counts, of several that end in the same place
 * the longest; so the result does not depend on the pieces. What may be the beginning of a stop string is held back.
 */
export class StopFinder {
  private held = '';

  constructor(private readonly stops: readonly string[]) {}

  /** Adds a piece and returns what is certain. */
  push(piece: string): StopSearch {
    if (this.stops.length === 0) return { text: piece, found: null };
    const text = this.held + piece;
    let end = Number.POSITIVE_INFINITY;
    let found: string | null = null;
    for (const stop of this.stops) {
      const at = text.indexOf(stop);
      if (at < 0) continue;
      const ends = at + stop.length;
      if (ends < end || (ends === end && stop.length > (found as string).length)) {
        end = ends;
        found = stop;
      }
    }
    if (found !== null) {
      this.held = '';
      return { text: text.slice(0, end - found.length), found };
    }
    const hold = Math.max(...this.stops.map((stop) => overlap(text, stop)));
    this.held = text.slice(text.length - hold);
    return { text: text.slice(0, text.length - hold), found: null };
  }

  /** The end of the text: what was held back. */
  end(): string {
    const rest = this.held;
    this.held = '';
    return rest;
  }
}

/** Length of the longest end of `text` that is a beginning of `stop`, and not the whole of it. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
