// messages.ts - how names and values out of files are shown in error texts: always on one line, never long.
import type { JsonValue } from './json';

const LONGEST_NAME = 160;

/** A name or text out of a file in quotes, with control characters escaped (one error stays one line) and cut when long. */
export function quoted(text: string): string {
  const shown = text.length > LONGEST_NAME ? `${text.slice(0, LONGEST_NAME)}...` : text;
  // JSON leaves U+007F-U+009F and the line separators alone; terminals do not.
  return JSON.stringify(shown).replace(
    /[\u007f-\u009f\u2028\u2029]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** A short printable form of a JSON value, for the "found" half of a message. */
export function shown(value: JsonValue | undefined): string {
  if (value === undefined) return 'nothing';
  if (typeof value === 'string') return quoted(value);
  if (Array.isArray(value)) {
    const flat = value.every((item) => typeof item !== 'object' || item === null);
    if (flat && value.length <= 8) return `[${value.map(shown).join(', ')}]`;
    return `an array of ${value.length}`;
  }
  if (typeof value === 'object' && value !== null) {
    const keys = Object.keys(value);
    const first = keys.slice(0, 4).map(quoted).join(', ');
    return keys.length === 0 ? 'an empty object' : `an object with ${first}${keys.length > 4 ? ', ...' : ''}`;
  }
  return String(value);
}

/** A shape as it is written everywhere in this project: [out, in]. */
export function shapeText(shape: readonly number[]): string {
  return shape.length > 8 ? `${shape.length} dimensions` : `[${shape.join(', ')}]`;
}
