// byte-level.ts - the alphabet of byte-level BPE: each byte 0..255 is written in tokenizer.json as one printable character.
// Printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 and up (so a space is U+0120).

function standsForItself(byte: number): boolean {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/** The character of each byte, by byte value. */
export const BYTE_TO_CHAR: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(standsForItself(byte) ? byte : next++));
})();

const CODE_TO_BYTE = (() => {
  const table = new Int16Array(0x200).fill(-1);
  BYTE_TO_CHAR.forEach((char, byte) => {
    table[char.charCodeAt(0)] = byte;
  });
  return table;
})();

/**
 * Writes the bytes that a vocabulary entry stands for into `out` at `offset`.
 * @returns the number of bytes, or -1 when some character is outside the alphabet (nothing useful was written then)
 */
export function writeTokenBytes(token: string, out: Uint8Array, offset: number): number {
  for (let i = 0; i < token.length; i++) {
    const code = token.charCodeAt(i);
    const byte = code < CODE_TO_BYTE.length ? (CODE_TO_BYTE[code] as number) : -1;
    if (byte < 0) return -1;
    out[offset + i] = byte;
  }
  return token.length;
}
