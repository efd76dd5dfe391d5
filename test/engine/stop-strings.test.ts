// Stop strings: the same text and the same end however it is cut, compared with a search character by character.
import { StopFinder } from '../../lib/engine/stop-strings';
import { randomBelow } from './random-load';

/** By definition: the first place where some stop string ends; of several there, the longest. */
function expected(text: string, stops: readonly string[]): { text: string; found: string | null } {
  for (let end = 1; end <= text.length; end++) {
    const ending = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length);
    if (ending[0] !== undefined) return { text: text.slice(0, end - ending[0].length), found: ending[0] };
  }
  return { text, found: null };
}

function inPieces(text: string, stops: readonly string[], sizes: () => number) {
  const finder = new StopFinder(stops);
  let out = '';
  for (let at = 0; at < text.length; ) {
    const size = sizes();
    const { text: sure, found } = finder.push(text.slice(at, at + size));
    out += sure;
    // nothing certain is held back: at most one character less than the longest stop string
    const read = Math.min(text.length, at + size);
    if (found === null) expect(read - out.length).toBeLessThan(Math.max(1, ...stops.map((stop) => stop.length)));
    if (found !== null) return { text: out, found };
    at += size;
  }
  return { text: out + finder.end(), found: null };
}

test.each([
  ['hello world', ['o w']],
  ['aaab', ['aab']],
  ['abcabd', ['abd', 'cab']],
  ['xyz', ['yz', 'xyz', 'z']],
  ['no such thing', ['nothing']],
  ['ends with half', ['halfway']],
  ['', ['a']],
  ['ab', ['b', 'ab']],
])('%j with %j, in pieces of every size', (text, stops) => {
  for (let size = 1; size <= Math.max(1, text.length); size++) {
    expect(inPieces(text, stops, () => size)).toEqual(expected(text, stops));
  }
});

test('5,000 random texts, stop strings and pieces', () => {
  const random = randomBelow(3);
  const word = (most: number) => Array.from({ length: 1 + random(most) }, () => 'ab€'[random(3)] as string).join('');
  let found = 0;
  for (let i = 0; i < 5000; i++) {
    const text = word(24);
    const stops = Array.from({ length: 1 + random(3) }, () => word(6));
    const result = inPieces(text, stops, () => 1 + random(5));
    expect(result).toEqual(expected(text, stops));
    if (result.found !== null) found++;
  }
  expect(found).toBeGreaterThan(1000);
  expect(found).toBeLessThan(4900);
});
