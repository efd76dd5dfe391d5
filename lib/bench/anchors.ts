// bench/anchors.ts - what public libraries reach, out of bench/anchors.json, and the ceilings of the GPU it was measured on.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** A public figure. */
export interface Anchor {
  id: string;
  by: string;
  /** microseconds of one operation; absent for whole models */
  us?: number;
  /** whole models */
  tokensPerSecond?: number;
}

/** What a GPU's memory and matrix units reach at best, measured. */
export interface Ceilings {
  bytesPerSecond: number;
  bf16FlopsPerSecond: number;
  /** products of two operands in fp8 */
  fp8FlopsPerSecond: number;
}

interface AnchorFile {
  gpu: string;
  ceilings: Ceilings;
  figures: (Anchor & { us: number })[];
  models: (Anchor & { tokensPerSecond: number })[];
}

/** The committed figures. A figure compares with a measurement only on the same kind of GPU. */
export class Anchors {
  readonly #file: AnchorFile;

  constructor() {
    const path = join(__dirname, '..', '..', 'bench', 'anchors.json');
    this.#file = JSON.parse(readFileSync(path, 'utf8')) as AnchorFile;
  }

  /** The GPU the figures were measured on. */
  get gpu(): string {
    return this.#file.gpu;
  }

  /** The ceilings of this GPU, where they are known. */
  ceilings(gpu: string): Ceilings | undefined {
    return gpu === this.#file.gpu ? this.#file.ceilings : undefined;
  }

  /** The fastest public figure for an operation. */
  kernel(id: string): (Anchor & { us: number }) | undefined {
    // Public products with fp8 weights take rows in fp8 too; they stand beside ours of either kind.
    const shape = id.replace(/ fp8 x fp8$/, ' fp8');
    return this.#file.figures.filter((figure) => figure.id === shape).sort((a, b) => a.us - b.us)[0];
  }

  /** All public figures for a model. */
  model(id: string): (Anchor & { tokensPerSecond: number })[] {
    return this.#file.models.filter((figure) => figure.id === id);
  }
}
