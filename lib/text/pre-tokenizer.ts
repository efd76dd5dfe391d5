// pre-tokenizer.ts - cuts a text into the words that byte pair encoding works on. The patterns of tokenizer.json are written
// for another regular-expression engine; @huggingface/tokenizers translates them, the walk over the text is ours: it keeps
// no list of pieces, so a long text costs no memory here.
import { MlaError } from '../errors';
import type { PreTokenizerStage } from './tokenizer-spec';

/** The part of @huggingface/tokenizers used here; its own type files do not resolve from a CommonJS package. */
interface PatternTranslator {
  SplitPreTokenizer: new (config: {
    type: 'Split';
    pattern: object;
    behavior: string;
    invert: boolean;
  }) => { pattern: RegExp | null };
}
const { SplitPreTokenizer } = require('@huggingface/tokenizers') as PatternTranslator;

type Cut = (piece: string, emit: (piece: string) => void) => void;

/** The steps of one pre-tokenizer, ready to run. */
export class PreTokenizer {
  private readonly cuts: readonly Cut[];

  /** @throws ERR_TOKENIZER for a pattern that cannot be translated */
  constructor(stages: readonly PreTokenizerStage[]) {
    this.cuts = stages.map((stage, index) =>
      stage.kind === 'prefix-space' ? prefixSpace : cutAt(compile(stage.pattern, index)),
    );
  }

  /** Calls `emit` for each word of `text`, in order. A `RangeError` means that a pattern overflowed V8's backtrack stack. */
  forEachWord(text: string, emit: (word: string) => void): void {
    this.run(text, 0, emit);
  }

  private run(piece: string, stage: number, emit: (word: string) => void): void {
    const cut = this.cuts[stage];
    if (cut === undefined) emit(piece);
    else cut(piece, (part) => this.run(part, stage + 1, emit));
  }
}

function compile(pattern: { Regex: string } | { String: string }, index: number): RegExp {
  try {
    const compiled = new SplitPreTokenizer({ type: 'Split', pattern, behavior: 'Isolated', invert: false } as never)
      .pattern;
    if (compiled !== null) return compiled;
  } catch (cause) {
    throw new MlaError(
      'ERR_TOKENIZER',
      `pre_tokenizer split ${index}: this pattern cannot be translated to JavaScript.`,
      { cause },
    );
  }
  throw new MlaError('ERR_TOKENIZER', `pre_tokenizer split ${index}: no pattern.`);
}

/** Every match and everything between matches is a piece of its own ("Isolated"). */
function cutAt(pattern: RegExp): Cut {
  return (piece, emit) => {
    let from = 0;
    pattern.lastIndex = 0;
    for (let match = pattern.exec(piece); match !== null; match = pattern.exec(piece)) {
      const found = match[0];
      if (found.length === 0) {
        pattern.lastIndex = match.index + ((piece.codePointAt(match.index) ?? 0) > 0xffff ? 2 : 1);
        continue;
      }
      if (match.index > from) emit(piece.slice(from, match.index));
      emit(found);
      from = match.index + found.length;
    }
    if (from < piece.length) emit(piece.slice(from));
  };
}

function prefixSpace(piece: string, emit: (piece: string) => void): void {
  emit(piece.startsWith(' ') ? piece : ` ${piece}`);
}
