// reasoning.ts - separates what a model thinks from what it answers, as the text comes. Models that reason write
// <think>thoughts</think>answer; the opening tag is often the end of the prompt already, so where a text begins has to be
// told by the prompt (see `endsInThought`), never guessed from the text.

const OPEN = '<think>';
const CLOSE = '</think>';

/** A piece of an answer. */
export interface ReasoningPiece {
  readonly kind: 'thought' | 'answer';
  readonly text: string;
}

/** Whether a prompt ends inside a thought, so that what follows goes on with it. */
export function endsInThought(prompt: string): boolean {
  return /<think>\s*$/.test(prompt);
}

/** Splits a stream of text. All pieces of a kind joined are that part of the text; tags belong to neither. */
export class ReasoningSplitter {
  /** 'start' is before anything but white space has come: only there an opening tag counts. */
  private state: 'start' | 'thought' | 'answer';
  private held = '';
  /** White space between the thoughts and the answer belongs to neither. */
  private trimming = true;

  /** @param inThought whether the text begins inside a thought */
  constructor(inThought = false) {
    this.state = inThought ? 'thought' : 'start';
  }

  /** Adds text; what may be the beginning of a tag is held back. */
  push(text: string): ReasoningPiece[] {
    this.held += text;
    const pieces: ReasoningPiece[] = [];
    if (this.state === 'start') {
      const begun = this.held.trimStart();
      if (begun.startsWith(OPEN)) {
        this.state = 'thought';
        this.held = begun.slice(OPEN.length);
      } else if (OPEN.startsWith(begun)) {
        return pieces; // white space, or part of the tag
      } else {
        this.state = 'answer';
        this.trimming = false; // an answer without thoughts stays as it is
      }
    }
    if (this.state === 'thought') {
      const end = this.held.indexOf(CLOSE);
      if (end >= 0) {
        this.emit(pieces, 'thought', this.held.slice(0, end).trimEnd());
        this.state = 'answer';
        this.trimming = true;
        this.held = this.held.slice(end + CLOSE.length);
      } else {
        // White space is held too: at the end of the thoughts it is left out.
        const keep = heldLength(this.held);
        this.emit(pieces, 'thought', this.held.slice(0, this.held.length - keep));
        this.held = this.held.slice(this.held.length - keep);
      }
    }
    if (this.state === 'answer') {
      this.emit(pieces, 'answer', this.held);
      this.held = '';
    }
    return pieces;
  }

  /** Ends the text: what was held back is no tag. */
  end(): ReasoningPiece[] {
    const pieces: ReasoningPiece[] = [];
    const kind = this.state === 'thought' ? 'thought' : 'answer';
    this.trimming &&= kind === 'thought';
    this.emit(pieces, kind, this.held);
    this.held = '';
    return pieces;
  }

  private emit(pieces: ReasoningPiece[], kind: 'thought' | 'answer', text: string): void {
    const shown = this.trimming ? text.trimStart() : text;
    if (shown === '') return;
    this.trimming = false;
    pieces.push({ kind, text: shown });
  }
}

/** How much of the end of a thought may belong to what ends it: white space, then the beginning of the closing tag. */
function heldLength(text: string): number {
  let tag = Math.min(CLOSE.length - 1, text.length);
  while (tag > 0 && !text.endsWith(CLOSE.slice(0, tag))) tag--;
  return text.length - text.slice(0, text.length - tag).trimEnd().length;
}
