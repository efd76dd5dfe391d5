// cpu/reference-philox.ts - the random numbers of csrc/common/philox.h once more, with integers in float64.

/** The high and low 32 bits of a product of two 32-bit integers, by halves of 16 bits. */
function multiply(a: number, b: number): [number, number] {
  const low = (a & 0xffff) * (b & 0xffff);
  const middle = (a >>> 16) * (b & 0xffff) + Math.floor(low / 65536);
  const other = (a & 0xffff) * (b >>> 16) + (middle % 65536);
  return [(a >>> 16) * (b >>> 16) + Math.floor(middle / 65536) + Math.floor(other / 65536), Math.imul(a, b) >>> 0];
}

/** The two words of a 64-bit key, low one first. */
export type Key = readonly [number, number];

export function keyOf(seed: bigint): Key {
  return [Number(BigInt.asUintN(32, seed)), Number(BigInt.asUintN(64, seed) >> 32n)];
}

/** Philox4x32-10: four words of a key and a counter of four words. */
export function philox(key: Key, counter: readonly [number, number, number, number]): number[] {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const a = multiply(c0, 0xd2511f53);
    const b = multiply(c2, 0xcd9e8d57);
    [c0, c1, c2, c3] = [(b[0] ^ c1 ^ k0) >>> 0, b[1], (a[0] ^ c3 ^ k1) >>> 0, a[1]];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

function uniform(word: number): number {
  return (2 * (word >>> 9) + 1) / 2 ** 24;
}

/** Gumbel noise of token `id` at a position. */
export function gumbelOf(key: Key, position: number, id: number): number {
  const word = philox(key, [position, id >>> 2, 0, 0])[id % 4] as number;
  return -Math.log(-Math.log(uniform(word)));
}

/** Standard normal of element i of fillRandom. */
export function normalOf(key: Key, i: number): number {
  const words = philox(key, [i % 2 ** 32, Math.floor(i / 2 ** 32), 0, 0]);
  return Math.sqrt(-2 * Math.log(uniform(words[0] as number))) * Math.cos(2 * Math.PI * uniform(words[1] as number));
}
