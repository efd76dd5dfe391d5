// content-guard.ts - keeps text of messages apart from the scaffold of a chat template. Inside content, the character that
// starts an added token's spelling ('<' for DeepSeek) is replaced by a private character before the template runs, and put
// back after its output has been cut at the added tokens. So a spelling in the output is always the template's own, even
// where the template cuts, trims or joins content.
import { MlaError } from '../errors';

/** Noncharacters first: no real text holds them. Then the private use area. */
const CANDIDATES = [...codes(0xfdd0, 0xfdef), ...codes(0xe000, 0xf8ff)];
const CANDIDATE_PATTERN = /[\ufdd0-\ufdef\ue000-\uf8ff]/g;

/** Tags that templates look for in earlier answers, to cut the reasoning out; so they must stay readable there. */
const REASONING_TAG = /(<\/?think>)/;
/** What follows their first character. */
const TAGS = ['think>', '/think>'];

/** Guards the texts of one conversation. */
export class ContentGuard {
  /** Character of a spelling -> its private stand-in. */
  private readonly standIns = new Map<string, string>();
  /** Stands directly before a reasoning tag that is content. */
  private readonly mark: string;
  /** The first character of a spelling that starts like a word, where the whole spelling follows; null when there is none. */
  private readonly words: RegExp | null;
  /** A stand-in or the mark as `tojson(ensure_ascii=true)` writes it. */
  private readonly escaped: RegExp;
  /** The `<` of a marked tag whose mark is written as in `escaped`, with the mark. */
  private readonly escapedTag: RegExp;
  private readonly starters: readonly string[];
  /** Whether guarding takes nothing of a reasoning tag but its first character. */
  private readonly plainTags: boolean;
  private readonly originals = new Map<string, string>();

  /**
   * @param spellings of all added tokens
   * @param texts everything the output may consist of: contents and template. The stand-ins occur in none of them.
   * @throws ERR_TEMPLATE when the texts use up all private characters
   */
  constructor(spellings: Iterable<string>, texts: readonly string[]) {
    const starters = new Set<string>();
    const words: string[] = [];
    for (const spelling of spellings) {
      const first = String.fromCodePoint(spelling.codePointAt(0) as number);
      // Templates trim white space and compare words, so letters, digits and spaces give way only where a whole spelling stands.
      if (/[\p{L}\p{M}\p{N}\s]/u.test(first)) words.push(spelling);
      else starters.add(first);
    }
    const free = freeCharacters(texts);
    const standIn = (character: string) => {
      if (!this.standIns.has(character)) this.standIns.set(character, free());
    };
    for (const starter of starters) standIn(starter);
    for (const word of words) standIn(String.fromCodePoint(word.codePointAt(0) as number));
    this.mark = free();
    for (const [character, replacement] of this.standIns) this.originals.set(replacement, character);

    this.starters = [...starters];
    const patterns = words
      .sort((a, b) => b.length - a.length)
      .map((word) => {
        const first = String.fromCodePoint(word.codePointAt(0) as number);
        return `${escapePattern(first)}(?=${escapePattern(word.slice(first.length))})`;
      });
    this.words = patterns.length > 0 ? new RegExp(patterns.join('|'), 'gu') : null;
    this.plainTags = this.words === null && this.starters.filter((c) => '</think>'.includes(c)).join() === '<';
    this.escaped = new RegExp([...this.originals.keys(), this.mark].map(unicodeEscape).join('|'), 'giu');
    this.escapedTag = new RegExp(`${unicodeEscape(this.mark)}<(?=\\/?think>)`, 'giu');
  }

  /** Guards the text of a user, a system or a tool message, or any other value that is not the template's own. */
  guard(text: string): string {
    let guarded = text;
    for (const starter of this.starters) guarded = exchange(guarded, starter, this.standIns.get(starter) as string);
    return this.words === null ? guarded : guarded.replace(this.words, (found) => this.standIns.get(found) as string);
  }

  /** Guards an earlier answer: as `guard`, but `<think>` and `</think>` stay readable and are only marked. */
  guardAnswer(text: string): string {
    if (this.plainTags) {
      // The same, some times as fast: a tag loses its first character and gets it back.
      let guarded = this.guard(text);
      for (const tag of TAGS) guarded = exchange(guarded, `${this.standIns.get('<')}${tag}`, `${this.mark}<${tag}`);
      return guarded;
    }
    return text
      .split(REASONING_TAG) // texts at even places, tags between them
      .map((part, index) => (index % 2 === 0 ? this.guard(part) : this.mark + part))
      .join('');
  }

  /**
   * To be applied to a template's whole output, before it is cut: reasoning tags that are content are guarded like the rest.
   * A template that takes an answer apart and joins it again cannot be told from one that prints it; its tags are then text too.
   */
  settleTags(output: string): string {
    const opening = this.standIns.get('<') ?? '<';
    let settled = output;
    for (const tag of TAGS) settled = exchange(settled, `${this.mark}<${tag}`, opening + tag);
    if (/\\u/i.test(settled)) settled = settled.replace(this.escapedTag, () => opening);
    return exchange(settled, this.mark, '');
  }

  /** The text as it was, for a piece of output that holds no token. */
  restore(text: string): string {
    let restored = text;
    for (const [standIn, original] of this.originals) restored = exchange(restored, standIn, original);
    if (!restored.includes('\\u') && !restored.includes('\\U')) return restored;
    return restored.replace(
      this.escaped,
      (found) => this.originals.get(String.fromCharCode(Number.parseInt(found.slice(2), 16))) ?? '',
    );
  }
}

/**
 * `text` with every `from` as `to`. Several times as fast as replaceAll where there are millions of them, and `$` in `to`
 * means nothing.
 */
function exchange(text: string, from: string, to: string): string {
  return text.includes(from) ? text.split(from).join(to) : text;
}

/** Gives one candidate after the other that occurs in none of the texts, neither itself nor as a \uXXXX escape. */
function freeCharacters(texts: readonly string[]): () => string {
  const used = new Set<string>();
  for (const text of texts) for (const [character] of text.matchAll(CANDIDATE_PATTERN)) used.add(character);
  const lower = texts.filter((text) => text.includes('\\')).map((text) => text.toLowerCase());
  const candidates = CANDIDATES.values();
  return () => {
    for (const character of candidates) {
      if (!used.has(character) && !lower.some((text) => text.includes(unicodeEscape(character).slice(1))))
        return character;
    }
    throw new MlaError(
      'ERR_TEMPLATE',
      'The messages use every private Unicode character; at least a few must be free to keep content apart.',
    );
  };
}

function codes(first: number, last: number): string[] {
  return Array.from({ length: last - first + 1 }, (_, i) => String.fromCharCode(first + i));
}

function unicodeEscape(character: string): string {
  return `\\\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
}

function escapePattern(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&');
}
