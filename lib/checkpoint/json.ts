// json.ts - a strict JSON reader for files that nobody vouches for: linear time, no silent choices.
// Unlike JSON.parse it refuses duplicate keys, integers that a double cannot hold exactly, numbers that overflow,
// lone surrogates, and anything deeper or larger than its limits; a key named __proto__ is a key like any other.
import { isUtf8 } from 'node:buffer';
import { type ErrorCode, MlaError } from '../errors';
import { quoted } from './messages';

/** What a JSON text can hold. Objects have no prototype. */
export type JsonValue = null | boolean | number | string | JsonValue[] | JsonObject;
/** A JSON object; made without a prototype, so that every key is an own one. */
export interface JsonObject {
  [key: string]: JsonValue;
}

/** How {@link parseJson} treats a text. */
export interface JsonOptions {
  /** Code of the error thrown for a broken text. */
  code: ErrorCode;
  /** Names the file in messages. */
  source: string;
  /** Longest text in bytes. */
  maxBytes: number;
  /** Deepest nesting of arrays and objects. Default 64. */
  maxDepth?: number;
  /** Most values in the whole text, which bounds the memory of the result. Default 1,000,000. */
  maxValues?: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const ZERO = 0x30;
const NINE = 0x39;
/** Largest integer below which a double holds each one exactly. */
const LARGEST = Number.MAX_SAFE_INTEGER;

/**
 * A cursor over the bytes of a JSON text. The caller asks for what must come next, so a text of the wrong structure is
 * refused at its first wrong byte and nothing is built for it.
 */
export class JsonReader {
  /** Offset of the next byte. */
  at = 0;

  /**
   * @param bytes the whole text
   * @param refuse makes the error for a broken text; gets what is wrong, the offset of it, and a kind: 'utf8' or 'syntax'
   */
  constructor(
    readonly bytes: Buffer,
    private readonly refuse: (text: string, at: number, kind: 'utf8' | 'syntax') => MlaError,
  ) {
    if (!isUtf8(bytes)) throw refuse('found bytes that are not UTF-8, expected UTF-8 text', 0, 'utf8');
  }

  /** Skips white space; gives the next byte without taking it, or -1 at the end. */
  peek(): number {
    const { bytes } = this;
    let at = this.at;
    let c = bytes[at];
    while (c === 0x20 || c === 0x0a || c === 0x0d || c === 0x09) c = bytes[++at];
    this.at = at;
    return c === undefined ? -1 : c;
  }

  /** Takes the character if it comes next. */
  take(character: number): boolean {
    if (this.peek() !== character) return false;
    this.at++;
    return true;
  }

  /** Takes the character or refuses the text. */
  expect(character: number, where: string): void {
    if (!this.take(character)) throw this.wrong(`${quoted(String.fromCharCode(character))} ${where}`);
  }

  /** Refuses unless only white space is left. */
  end(): void {
    if (this.peek() !== -1) throw this.wrong('the end of the text');
  }

  /** The error "expected X, found Y" at the present position. */
  wrong(expected: string): MlaError {
    const c = this.bytes[this.at];
    const found =
      c === undefined ? 'the end of the text' : c < 0x80 ? quoted(String.fromCharCode(c)) : `byte 0x${c.toString(16)}`;
    return this.refuse(`found ${found}, expected ${expected}`, this.at, 'syntax');
  }

  /** A string, decoded. */
  string(what = 'a string'): string {
    if (this.peek() !== QUOTE) throw this.wrong(what);
    const { bytes } = this;
    const start = this.at + 1;
    let at = start;
    let seen = 0;
    for (;;) {
      const c = bytes[at];
      if (c === QUOTE) break;
      if (c === BACKSLASH) return this.escaped(start);
      if (c === undefined || c < 0x20) {
        this.at = at;
        throw this.wrong(c === undefined ? 'the end of a string' : 'no control character inside a string');
      }
      seen |= c;
      at++;
    }
    this.at = at + 1;
    return bytes.toString(seen < 0x80 ? 'latin1' : 'utf8', start, at);
  }

  /** The slow path of {@link string}: the text holds a backslash. Decoded into one buffer, never longer than the text. */
  private escaped(start: number): string {
    const { bytes } = this;
    let at = start;
    while (bytes[at] !== QUOTE) {
      if (at >= bytes.length) {
        this.at = at;
        throw this.wrong('the end of a string');
      }
      at += bytes[at] === BACKSLASH ? 2 : 1;
    }
    const decoded = Buffer.allocUnsafe(at - start);
    let length = 0;
    at = start;
    for (;;) {
      const c = bytes[at] as number;
      if (c === QUOTE) break;
      if (c < 0x20) {
        this.at = at;
        throw this.wrong('no control character inside a string');
      }
      if (c !== BACKSLASH) {
        decoded[length++] = c;
        at++;
        continue;
      }
      const letter = bytes[at + 1];
      const plain = letter === undefined ? undefined : ESCAPES.get(letter);
      if (plain !== undefined) {
        decoded[length++] = plain;
        at += 2;
      } else if (letter === 0x75) {
        let point = this.hex(at + 2);
        at += 6;
        if (point >= 0xd800 && point <= 0xdfff) {
          this.at = at;
          const low = bytes[at] === BACKSLASH && bytes[at + 1] === 0x75 ? this.hex(at + 2) : -1;
          if (point > 0xdbff || low < 0xdc00 || low > 0xdfff) throw this.wrong('both halves of a surrogate pair');
          point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
          at += 6;
        }
        length = encode(point, decoded, length);
      } else {
        this.at = at + 1;
        throw this.wrong('one of " \\ / b f n r t u after a backslash');
      }
    }
    this.at = at + 1;
    return decoded.toString('utf8', 0, length);
  }

  /** Four hexadecimal digits. */
  private hex(at: number): number {
    let value = 0;
    for (let i = at; i < at + 4; i++) {
      const c = this.bytes[i] ?? 0;
      const digit =
        c >= ZERO && c <= NINE ? c - ZERO : c >= 0x41 && c <= 0x46 ? c - 55 : c >= 0x61 && c <= 0x66 ? c - 87 : -1;
      if (digit < 0) {
        this.at = i;
        throw this.wrong('a hexadecimal digit');
      }
      value = value * 16 + digit;
    }
    return value;
  }

  /** True when the next value is a plain non-negative integer that a double holds exactly; the value is in {@link integer}. */
  uint(): boolean {
    let c = this.peek();
    if (c < ZERO || c > NINE) return false;
    const { bytes } = this;
    const start = this.at;
    let at = start;
    let value = 0;
    while (c >= ZERO && c <= NINE) {
      value = value * 10 + (c - ZERO);
      if (value > LARGEST) return false;
      c = bytes[++at] ?? 0;
    }
    if (bytes[start] === ZERO && at > start + 1) return false;
    if (c === 0x2e || c === 0x65 || c === 0x45) return false;
    this.integer = value;
    this.at = at;
    return true;
  }

  /** The value of the last successful {@link uint}. */
  integer = 0;

  /** A number of the JSON grammar as a double. Integers beyond 2^53 and overflow are refused, not rounded. */
  number(): number {
    this.peek();
    const { bytes } = this;
    const start = this.at;
    let at = start;
    let whole = true;
    const digits = (): void => {
      const first = at;
      while (isDigit(bytes[at])) at++;
      if (at === first) {
        this.at = at;
        throw this.wrong('a digit');
      }
    };
    if (bytes[at] === 0x2d) at++;
    if (bytes[at] === ZERO && isDigit(bytes[at + 1])) {
      this.at = at;
      throw this.wrong('a number without leading zeros');
    }
    digits();
    if (bytes[at] === 0x2e) {
      whole = false;
      at++;
      digits();
    }
    if (bytes[at] === 0x65 || bytes[at] === 0x45) {
      whole = false;
      at++;
      if (bytes[at] === 0x2b || bytes[at] === 0x2d) at++;
      digits();
    }
    const value = Number(bytes.toString('latin1', start, at));
    if (!Number.isFinite(value) || (whole && !Number.isSafeInteger(value))) {
      throw this.refuse('found a number that is too large, expected one that a double holds exactly', start, 'syntax');
    }
    this.at = at;
    return value;
  }

  /** What kind of thing comes next, for messages. */
  describeNext(): string {
    const c = this.peek();
    if (c === -1) return 'the end of the text';
    if (c === QUOTE) return quoted(this.string());
    if (c === 0x7b) return 'an object';
    if (c === 0x5b) return 'an array';
    if (c === 0x5d || c === 0x7d || c === 0x2c || c === 0x3a) return quoted(String.fromCharCode(c));
    let at = this.at;
    while (at < this.at + 40 && /[-+.\w]/.test(String.fromCharCode(this.bytes[at] ?? 0))) at++;
    return at === this.at ? quoted(String.fromCharCode(c)) : this.bytes.toString('latin1', this.at, at);
  }
}

const ESCAPES = new Map<number, number>([
  [QUOTE, QUOTE],
  [BACKSLASH, BACKSLASH],
  [0x2f, 0x2f],
  [0x62, 0x08],
  [0x66, 0x0c],
  [0x6e, 0x0a],
  [0x72, 0x0d],
  [0x74, 0x09],
]);

/** Writes a code point as UTF-8; gives the offset after it. */
function encode(point: number, to: Buffer, at: number): number {
  if (point < 0x80) {
    to[at++] = point;
  } else if (point < 0x800) {
    to[at++] = 0xc0 | (point >> 6);
    to[at++] = 0x80 | (point & 63);
  } else if (point < 0x10000) {
    to[at++] = 0xe0 | (point >> 12);
    to[at++] = 0x80 | ((point >> 6) & 63);
    to[at++] = 0x80 | (point & 63);
  } else {
    to[at++] = 0xf0 | (point >> 18);
    to[at++] = 0x80 | ((point >> 12) & 63);
    to[at++] = 0x80 | ((point >> 6) & 63);
    to[at++] = 0x80 | (point & 63);
  }
  return at;
}

function isDigit(c: number | undefined): boolean {
  return c !== undefined && c >= ZERO && c <= NINE;
}

/** Parses a whole text into values. Throws an {@link MlaError} of the given code that names source, byte and rule. */
export function parseJson(text: string | Uint8Array, options: JsonOptions): JsonValue {
  const { code, source, maxBytes, maxDepth = 64, maxValues = 1_000_000 } = options;
  const refuse = (what: string, at: number): MlaError =>
    new MlaError(code, `${source}: broken JSON at byte ${at}: ${what}.`);
  const bytes =
    typeof text === 'string' ? Buffer.from(text, 'utf8') : Buffer.from(text.buffer, text.byteOffset, text.byteLength);
  if (bytes.length > maxBytes) {
    throw new MlaError(code, `${source}: found ${bytes.length} bytes of JSON, expected at most ${maxBytes}.`);
  }
  const reader = new JsonReader(bytes, refuse);
  let left = maxValues;

  const value = (depth: number): JsonValue => {
    if (--left < 0) throw refuse(`found more than ${maxValues} values, expected fewer`, reader.at);
    const c = reader.peek();
    if (c === QUOTE) return reader.string();
    if (c === 0x7b || c === 0x5b) {
      if (depth >= maxDepth) throw refuse(`found nesting deeper than ${maxDepth}, expected less`, reader.at);
      reader.at++;
      return c === 0x7b ? object(depth + 1) : array(depth + 1);
    }
    if (c === 0x2d || isDigit(c)) return reader.number();
    if (word('true')) return true;
    if (word('false')) return false;
    if (word('null')) return null;
    throw reader.wrong('a value');
  };
  const word = (text: string): boolean => {
    if (bytes.toString('latin1', reader.at, reader.at + text.length) !== text) return false;
    reader.at += text.length;
    return true;
  };
  const array = (depth: number): JsonValue[] => {
    const items: JsonValue[] = [];
    if (reader.take(0x5d)) return items;
    do items.push(value(depth));
    while (reader.take(0x2c));
    reader.expect(0x5d, 'or "," in an array');
    return items;
  };
  const object = (depth: number): JsonObject => {
    const members = Object.create(null) as JsonObject;
    if (reader.take(0x7d)) return members;
    do {
      reader.peek();
      const keyAt = reader.at;
      const key = reader.string('a key in quotes');
      if (key in members) throw refuse(`found the key ${quoted(key)} twice, expected each key once`, keyAt);
      reader.expect(0x3a, 'after a key');
      members[key] = value(depth);
    } while (reader.take(0x2c));
    reader.expect(0x7d, 'or "," in an object');
    return members;
  };

  const result = value(0);
  reader.end();
  return result;
}
