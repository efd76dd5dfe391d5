// cpu/reference-formats.ts - element types as numbers: what a stored value is, and how a number is stored. Written from
// the formats' definitions, with float64 arithmetic instead of bit tricks, so that it shares nothing with csrc.
import type { DType } from '../../lib/native';

/** A float format: bits of exponent and mantissa, exponent bias, largest finite value, whether it has infinities. */
interface Format {
  exponentBits: number;
  mantissaBits: number;
  bias: number;
  largest: number;
  infinite: boolean;
}

const FORMATS = {
  bf16: { exponentBits: 8, mantissaBits: 7, bias: 127, largest: 2 ** 127 * (2 - 2 ** -7), infinite: true },
  f16: { exponentBits: 5, mantissaBits: 10, bias: 15, largest: 65504, infinite: true },
  f8e4m3: { exponentBits: 4, mantissaBits: 3, bias: 7, largest: 448, infinite: false },
} satisfies Record<string, Format>;

/** Rounds to the nearest integer, halves to the even one. */
function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

function roundTo(format: Format, x: number): number {
  if (!Number.isFinite(x) && (format.infinite || Number.isNaN(x))) return x;
  const limit = Math.abs(x);
  if (limit === 0) return x;
  const lowest = 1 - format.bias;
  const exponent = Math.max(limit === Infinity ? 200 : Math.floor(Math.log2(limit)), lowest);
  // log2 may be off by one next to a power of two; both neighbours give the same rounded value or the larger grid
  // is corrected here.
  const step = 2 ** ((2 ** exponent > limit && exponent > lowest ? exponent - 1 : exponent) - format.mantissaBits);
  const rounded = limit === Infinity ? Infinity : roundEven(limit / step) * step;
  if (rounded > format.largest) return Math.sign(x) * (format.infinite ? Infinity : format.largest);
  return Math.sign(x) * rounded;
}

/** The value that `x` has when it is stored as `dtype` (round to nearest even; f8e4m3 saturates). */
export function rounded(dtype: DType, x: number): number {
  switch (dtype) {
    case 'f32':
      return Math.fround(x);
    case 'bf16':
    case 'f16':
    case 'f8e4m3':
      // Through float32 first, as a float32 kernel result is.
      return roundTo(FORMATS[dtype], Math.fround(x));
    default:
      return x;
  }
}

function decodeBits(format: Format, bits: number): number {
  const { exponentBits, mantissaBits, bias, infinite } = format;
  const sign = bits >> (exponentBits + mantissaBits) === 0 ? 1 : -1;
  const exponent = (bits >> mantissaBits) & (2 ** exponentBits - 1);
  const mantissa = bits & (2 ** mantissaBits - 1);
  const top = 2 ** exponentBits - 1;
  if (infinite && exponent === top) return mantissa === 0 ? sign * Infinity : Number.NaN;
  if (!infinite && exponent === top && mantissa === 2 ** mantissaBits - 1) return Number.NaN;
  if (exponent === 0) return sign * mantissa * 2 ** (1 - bias - mantissaBits);
  return sign * (1 + mantissa / 2 ** mantissaBits) * 2 ** (exponent - bias);
}

function encodeBits(format: Format, x: number): number {
  const { exponentBits, mantissaBits, bias, infinite } = format;
  const sign = (x < 0 || Object.is(x, -0) ? 1 : 0) * 2 ** (exponentBits + mantissaBits);
  const top = (2 ** exponentBits - 1) * 2 ** mantissaBits;
  if (Number.isNaN(x)) return infinite ? top + 2 ** (mantissaBits - 1) : top + 2 ** mantissaBits - 1;
  const value = Math.abs(roundTo(format, x));
  if (value === Infinity) return sign + top;
  if (value < 2 ** (1 - bias)) return sign + value / 2 ** (1 - bias - mantissaBits);
  let exponent = Math.floor(Math.log2(value));
  if (2 ** exponent > value) exponent--;
  return sign + (exponent + bias) * 2 ** mantissaBits + (value / 2 ** exponent - 1) * 2 ** mantissaBits;
}

/** The values of all bit patterns of a narrow format, made once. */
const tables = new Map<Format, Float64Array>();

function tableOf(format: Format): Float64Array {
  let table = tables.get(format);
  if (table === undefined) {
    const bits = 1 + format.exponentBits + format.mantissaBits;
    table = Float64Array.from({ length: 2 ** bits }, (_, code) => decodeBits(format, code));
    tables.set(format, table);
  }
  return table;
}

const single = new Float32Array(1);
const singleBits = new Uint32Array(single.buffer);

/** A bf16 is the upper half of a float32; most values that are stored here are exact already. */
function encodeBf16(x: number): number {
  single[0] = x;
  const bits = singleBits[0] as number;
  return single[0] === x && (bits & 0xffff) === 0 ? bits >>> 16 : encodeBits(FORMATS.bf16, x);
}

/** Numbers as the bytes of a tensor. 64-bit integers are given as numbers too. */
export function encode(dtype: DType, values: ArrayLike<number>): Uint8Array {
  const n = values.length;
  let array: ArrayBufferView;
  if (dtype === 'f32') array = Float32Array.from(values);
  else if (dtype === 'i32') array = Int32Array.from(values);
  else if (dtype === 'u32') array = Uint32Array.from(values);
  else if (dtype === 'u8') array = Uint8Array.from(values);
  else if (dtype === 'i64') array = BigInt64Array.from(Array.from(values, (x) => BigInt(x)));
  else if (dtype === 'f8e8m0') array = Uint8Array.from(values, (x) => (Number.isNaN(x) ? 255 : Math.log2(x) + 127));
  else if (dtype === 'f8e4m3') array = Uint8Array.from(values, (x) => encodeBits(FORMATS.f8e4m3, x));
  else if (dtype === 'bf16') array = Uint16Array.from(values, encodeBf16);
  else array = Uint16Array.from(values, (x) => encodeBits(FORMATS.f16, x));
  if (n === 0) return new Uint8Array(0);
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** The bytes of a tensor as numbers. */
export function decode(dtype: DType, bytes: ArrayBuffer): Float64Array {
  if (dtype === 'f32') return Float64Array.from(new Float32Array(bytes));
  if (dtype === 'i32') return Float64Array.from(new Int32Array(bytes));
  if (dtype === 'u32') return Float64Array.from(new Uint32Array(bytes));
  if (dtype === 'u8') return Float64Array.from(new Uint8Array(bytes));
  if (dtype === 'i64') return Float64Array.from(Array.from(new BigInt64Array(bytes), Number));
  const small = dtype === 'f8e8m0' || dtype === 'f8e4m3' ? new Uint8Array(bytes) : new Uint16Array(bytes);
  if (dtype === 'f8e8m0') return Float64Array.from(small, (b) => (b === 255 ? Number.NaN : 2 ** (b - 127)));
  const table = tableOf(FORMATS[dtype]);
  return Float64Array.from(small, (b) => table[b] as number);
}
