// bench/fp8-pages.ts - an fp8 cache of random rows: a few pages that are made here, again and again.
import { type CacheRow, fp8RowParts, PAGE_TOKENS } from '../cache';
import type { Tensor } from '../native';
import type { Dice, Workbench } from './workbench';

const PAGES = 16;
/** e4m3 codes of magnitudes from 0.25 to 2. */
const [LEAST_CODE, CODES] = [0x28, 0x19];

/** Rows of magnitudes around 1, and what they read as. */
export class Fp8Pages {
  readonly #bytes: Uint8Array;
  readonly #rows: Float32Array;
  readonly #pageBytes: number;
  readonly #pageNumbers: number;

  constructor({ c, r }: CacheRow, dice: Dice) {
    const { scaleAt, ropeAt, bytes: rowBytes } = fp8RowParts({ c, r });
    this.#pageBytes = PAGE_TOKENS * rowBytes;
    this.#pageNumbers = PAGE_TOKENS * (c + r);
    const view = new DataView(new ArrayBuffer(PAGES * this.#pageBytes));
    this.#rows = new Float32Array(PAGES * this.#pageNumbers);
    for (let row = 0; row < PAGES * PAGE_TOKENS; row++) {
      const [at, to] = [row * rowBytes, row * (c + r)];
      let scale = 1;
      for (let i = 0; i < c; i++) {
        if (i % 128 === 0) {
          scale = 2 ** -dice.below(2);
          view.setFloat32(at + scaleAt + i / 32, scale, true);
        }
        const [code, sign] = [LEAST_CODE + dice.below(CODES), dice.below(2)];
        view.setUint8(at + i, code | (sign << 7));
        this.#rows[to + i] = (1 - 2 * sign) * (1 + (code & 7) / 8) * 2 ** ((code >> 3) - 7) * scale;
      }
      for (let i = 0; i < r; i++) {
        const [mantissa, sign] = [dice.below(128), dice.below(2)];
        view.setUint16(at + ropeAt + 2 * i, 0x3f80 | mantissa | (sign << 15), true);
        this.#rows[to + c + i] = (1 - 2 * sign) * (1 + mantissa / 128);
      }
    }
    this.#bytes = new Uint8Array(view.buffer);
  }

  /** A cache of so many pages on the device. */
  async fill(bench: Workbench, pages: number): Promise<Tensor> {
    const some = await bench.put(new Int32Array(this.#bytes.buffer));
    const cache = await bench.zeros('f8e4m3', [pages, PAGE_TOKENS, this.#pageBytes / PAGE_TOKENS]);
    for (let first = 0; first < PAGES && first < pages; first++) {
      bench.stream.copy({
        src: some,
        dst: cache,
        blocks: Math.ceil((pages - first) / PAGES),
        block_bytes: this.#pageBytes,
        src_offset: first * this.#pageBytes,
        dst_offset: first * this.#pageBytes,
        dst_stride: PAGES * this.#pageBytes,
      });
    }
    return cache;
  }

  /** What a page of that cache reads as, [64, c + r]. */
  rows(page: number): Float32Array {
    const first = (page % PAGES) * this.#pageNumbers;
    return this.#rows.subarray(first, first + this.#pageNumbers);
  }
}
