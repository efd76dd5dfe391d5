// cli/reply.ts - one reply on its way to the reader: thoughts apart from the answer, and what became of it.
import { createColors } from 'picocolors';
import type { Generation, Result } from '../engine';
import { type ReasoningPiece, ReasoningSplitter } from '../text';
import { forTerminal, print } from './output';

/** A reply as far as it came. */
export interface Reply {
  thought: string;
  answer: string;
  /** null when it was stopped */
  result: Result | null;
}

/** How thoughts are shown. */
export type ThoughtDisplay = 'dimmed' | 'tagged' | 'hidden';

const out = createColors(process.stdout.isTTY === true && !process.env.NO_COLOR);
const err = createColors(process.stderr.isTTY === true && !process.env.NO_COLOR);

/** Dimmed where that can be seen. */
export function thoughtDisplay(think: boolean | undefined): ThoughtDisplay {
  if (think === false) return 'hidden';
  if (out.isColorSupported) return 'dimmed';
  // Thoughts in a file that look like the answer would be taken for it.
  return process.stdout.isTTY || think === true ? 'tagged' : 'hidden';
}

/**
 * Takes a reply in, and shows it as it comes.
 * @param show null shows nothing
 * @param stopped what the generation rejects with when the reader stops it: the reply then is what has come
 */
export async function receive(
  generation: Generation,
  { inThought, show, stopped }: { inThought: boolean; show: ThoughtDisplay | null; stopped: unknown },
): Promise<Reply> {
  const splitter = new ReasoningSplitter(inThought);
  const screen = show === null ? null : new Screen(show);
  const reply: Reply = { thought: '', answer: '', result: null };
  const take = async (pieces: ReasoningPiece[]) => {
    for (const piece of pieces) {
      reply[piece.kind] += piece.text;
      await screen?.put(piece);
    }
  };
  try {
    for await (const { text } of generation) {
      await take(splitter.push(text));
      screen?.tick();
    }
    await take(splitter.end());
    reply.result = await generation.result;
  } catch (error) {
    if (error !== stopped) throw error;
    await take(splitter.end());
  } finally {
    await screen?.end();
  }
  return reply;
}

/** The reader's side of stdout. */
class Screen {
  private kind: ReasoningPiece['kind'] | null = null;
  private last = '';
  private hidden = 0;

  constructor(private readonly show: ThoughtDisplay) {}

  async put({ kind, text }: ReasoningPiece): Promise<void> {
    if (kind === 'thought' && this.show === 'hidden') {
      if (this.hidden++ === 0) this.tick();
      return;
    }
    let before = '';
    if (kind !== this.kind) {
      this.clearTick();
      if (kind === 'thought' && this.show === 'tagged') before = '<think>\n';
      if (this.kind === 'thought') before = this.closing();
      this.kind = kind;
    }
    const clean = forTerminal(text);
    const shown = kind === 'thought' && this.show === 'dimmed' ? out.dim(clean) : clean;
    this.last = text;
    await print(before + shown);
  }

  /** Where thoughts are hidden, says that something is going on. */
  tick(): void {
    if (this.hidden === 0 || this.kind !== null || !process.stderr.isTTY) return;
    this.hidden++;
    process.stderr.write(`\r${err.dim(`thinking (${this.hidden - 1})`)}`);
  }

  /** Ends the reply's line. */
  async end(): Promise<void> {
    this.clearTick();
    if (this.kind === 'thought' && this.show === 'tagged') await print('\n</think>\n').catch(() => {});
    else if (this.kind !== null && !this.last.endsWith('\n')) await print('\n').catch(() => {});
  }

  private closing(): string {
    return this.show === 'tagged' ? '\n</think>\n\n' : '\n\n';
  }

  private clearTick(): void {
    if (this.hidden > 0 && this.kind === null && process.stderr.isTTY) process.stderr.write('\r\x1b[K');
  }
}
