// model/random-weights.ts - fills planned weights with random numbers on the device, so that activations stay of order
// one through any number of layers: matrices get a standard deviation of columns^-0.5, norms are 1.
import type { Device, Stream, Tensor } from '../native';
import { elements } from './specs';
import type { Weights } from './weights';

/** Rows of a matrix that are quantised at a time. */
const STAGING_ELEMENTS = 1 << 26;

/** Fills every weight. Resolves when the device has done it. */
export async function fillRandomWeights(device: Device, stream: Stream, weights: Weights<Tensor>): Promise<void> {
  const filler = new Filler(device, stream);
  try {
    await filler.visit(weights, '');
    await stream.record().done;
  } finally {
    await filler.dispose();
  }
}

class Filler {
  #seed = 1;
  #staging: Tensor | undefined;

  constructor(
    private readonly device: Device,
    private readonly stream: Stream,
  ) {}

  async visit(node: unknown, name: string): Promise<void> {
    if (typeof node !== 'object' || node === null) return;
    if ('byteLength' in node) return this.#fill(node as Tensor, name);
    const { w, scale } = node as { w?: Tensor; scale?: Tensor };
    if (w !== undefined && scale !== undefined) return this.#quantized(w, scale);
    for (const [key, value] of Object.entries(node)) await this.visit(value, key);
  }

  #fill(out: Tensor, name: string): void {
    const isNorm = out.shape.length === 1 && name !== 'bias';
    const columns = out.shape.at(-1) as number;
    const stddev = isNorm ? 0 : name === 'bias' ? 0.01 : name === 'embed' ? 1 : columns ** -0.5;
    this.stream.fillRandom({ out, seed: this.#seed++, mean: isNorm ? 1 : 0, stddev });
  }

  /**
   * Matrix by matrix: random bf16, then fp8 with scales. Gate and up rows of a fused matrix share the scales of the
   * rows that they stand among; random numbers do not mind.
   */
  async #quantized(w: Tensor, scale: Tensor): Promise<void> {
    const [rows, columns] = w.shape.slice(-2) as [number, number];
    const matrices = elements(w.shape) / (rows * columns);
    const scales = elements(scale.shape) / matrices;
    const scaleColumns = Math.ceil(columns / 128);
    this.#staging ??= await this.device.allocate('bf16', [STAGING_ELEMENTS]);
    const step = Math.floor(STAGING_ELEMENTS / columns / 128) * 128;
    for (let m = 0; m < matrices; m++) {
      for (let row = 0; row < rows; row += step) {
        const count = Math.min(step, rows - row);
        const x = this.#staging.view('bf16', [count, columns]);
        const q = w.view('f8e4m3', [count, columns], (m * rows + row) * columns);
        const first = m * scales + (row / 128) * scaleColumns;
        const s = scale.view('f32', [Math.ceil(count / 128), scaleColumns], first * 4);
        this.stream.fillRandom({ out: x, seed: this.#seed++, mean: 0, stddev: columns ** -0.5 });
        this.stream.quantize({ x, q, scale: s, pow2: false });
        for (const view of [x, q, s]) view.dispose();
      }
    }
  }

  async dispose(): Promise<void> {
    await this.stream.record().done.catch(() => {});
    this.#staging?.dispose();
  }
}
