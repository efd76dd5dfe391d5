// cache/cache-row.ts - what one token leaves in one layer, as bytes.
import { DTYPE_BYTES } from '../native';

/** How rows are stored: c + r elements, or fp8 as csrc/ops/fp8_row.h says. */
export type CacheDtype = 'f32' | 'bf16' | 'fp8';

/** Channels of a row. */
export interface CacheRow {
  /** kv_lora_rank */
  c: number;
  /** qk_rope_head_dim */
  r: number;
}

const SCALE_CHANNELS = 128;
/** Exponent bits of the scales that csrc/ops/fp8_row.h makes: 2^-60 to 2^60. */
const LEAST_SCALE = 67;
const MOST_SCALE = 187;

const upTo = (bytes: number, unit: number) => Math.ceil(bytes / unit) * unit;

/** Where the parts of an fp8 row begin: c e4m3, a float32 scale per 128 of them, r bf16. The operations check it. */
export function fp8RowParts({ c, r }: CacheRow): { scaleAt: number; scales: number; ropeAt: number; bytes: number } {
  const scales = Math.ceil(c / SCALE_CHANNELS);
  const scaleAt = upTo(c, 4);
  const ropeAt = upTo(scaleAt + 4 * scales, 16);
  return { scaleAt, scales, ropeAt, bytes: upTo(ropeAt + 2 * r, 16) };
}

/** Bytes of a row. */
export function cacheRowBytes(dtype: CacheDtype, row: CacheRow): number {
  return dtype === 'fp8' ? fp8RowParts(row).bytes : (row.c + row.r) * DTYPE_BYTES[dtype];
}

/**
 * Whether rows from elsewhere hold nothing that `latentCompress` could not have written: no NaN and no infinity, and
 * scales that are powers of two of its range. One NaN would fail every step that reads it.
 */
export function validRows(rows: Buffer, dtype: CacheDtype, row: CacheRow): boolean {
  if (dtype === 'f32') {
    return new Uint32Array(rows.buffer, rows.byteOffset, rows.length / 4).every(
      (word) => (word & 0x7f800000) !== 0x7f800000,
    );
  }
  if (dtype === 'bf16') return finiteHalves(rows);
  const { scaleAt, scales, ropeAt, bytes } = fp8RowParts(row);
  for (let at = 0; at < rows.length; at += bytes) {
    const codes = rows.subarray(at, at + row.c);
    if (!codes.every((code) => (code & 0x7f) !== 0x7f)) return false;
    for (let i = 0; i < scales; i++) {
      const bits = rows.readUInt32LE(at + scaleAt + 4 * i);
      const exponent = bits >>> 23;
      const made = (bits & 0x7fffff) === 0 && exponent >= LEAST_SCALE && exponent <= MOST_SCALE;
      // A row that no token was written to is all zeros.
      if (!made && bits !== 0) return false;
    }
    if (!finiteHalves(rows.subarray(at + ropeAt, at + ropeAt + 2 * row.r))) return false;
  }
  return true;
}

/** Whether bf16 numbers, of which none may be NaN or infinite, are so. */
function finiteHalves(bytes: Buffer): boolean {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  return halves.every((half) => (half & 0x7f80) !== 0x7f80);
}
