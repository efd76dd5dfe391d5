// bench/expert-weights.ts - random matrices of experts on the device, in bf16 or in fp8 with scales, and rows of them as
// numbers.
import type { Tensor } from '../native';
import type { Workbench } from './workbench';

export type WeightType = 'bf16' | 'fp8';

/** Rows and columns that share one fp8 scale: kScaleBlock in csrc/ops/ops.h. */
const BLOCK = 128;

/** What each e4m3 code means; the two NaN codes are not made. */
const CODES = Float32Array.from({ length: 256 }, (_, code) => {
  const [exponent, mantissa] = [(code >> 3) & 15, code & 7];
  const size = exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7);
  return code < 128 ? size : -size;
});

/** `count` matrices of `rows` rows, a multiple of 128, and `columns` columns. */
export class ExpertWeights {
  private constructor(
    private readonly bench: Workbench,
    private readonly shape: { rows: number; columns: number },
    private readonly w: Tensor,
    private readonly scale: Tensor | undefined,
  ) {}

  static async random(bench: Workbench, type: WeightType, count: number, rows: number, columns: number) {
    const shape = { rows, columns };
    const stddev = columns ** -0.5;
    if (type === 'bf16') {
      return new ExpertWeights(bench, shape, await bench.random('bf16', [count, rows, columns], stddev), undefined);
    }
    const w = await bench.zeros('f8e4m3', [count, rows, columns]);
    const scale = await bench.zeros('f32', [count, rows / BLOCK, Math.ceil(columns / BLOCK)]);
    const x = await bench.random('bf16', [rows, columns], stddev);
    for (let m = 0; m < count; m++) {
      bench.stream.fillRandom({ out: x, seed: m + 1, mean: 0, stddev });
      bench.stream.quantize({
        x,
        q: bench.part(w, m, [rows, columns]),
        scale: bench.part(scale, m, [rows / BLOCK, Math.ceil(columns / BLOCK)]),
        pow2: false,
      });
    }
    return new ExpertWeights(bench, shape, w, scale);
  }

  /** The i-th `count` matrices, as operations take them; their scales in lines of `parts` (gate and up) or in one. */
  take(i: number, count: number, parts: 1 | 2): { w: Tensor; w_scale: Tensor | undefined } {
    const { rows, columns } = this.shape;
    const lines = rows / BLOCK;
    const scales = [Math.ceil(columns / BLOCK)];
    return {
      w: this.bench.part(this.w, i, [count, rows, columns]),
      w_scale:
        this.scale && this.bench.part(this.scale, i, [count, ...(parts === 2 ? [2, lines / 2] : [lines]), ...scales]),
    };
  }

  /** Row `row` of matrix m, whose scales are line `line` of the matrix's. */
  async row(m: number, row: number, line: number): Promise<Float32Array> {
    const { rows, columns } = this.shape;
    const first = (m * rows + row) * columns;
    if (this.scale === undefined) return this.bench.read(this.w, first, columns);
    const across = Math.ceil(columns / BLOCK);
    const scales = await this.bench.read(this.scale, (m * (rows / BLOCK) + line) * across, across);
    const view = this.w.view('u8', [columns], first);
    try {
      const codes = new Uint8Array(await this.bench.stream.read(view));
      return Float32Array.from(codes, (code, k) => (CODES[code] as number) * (scales[Math.floor(k / BLOCK)] as number));
    } finally {
      view.dispose();
    }
  }
}
