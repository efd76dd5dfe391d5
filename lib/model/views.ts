// model/views.ts - views that live as long as one pass (or one graph) and are disposed together, so that no memory waits
// for the garbage collector.

import type { Tensor } from '../native';

/** Collects views; dispose() ends them all. */
export class Views {
  readonly #made: Tensor[] = [];

  /** The first elements of `tensor` as another shape of the same element type. */
  of(tensor: Tensor, shape: readonly number[], offsetBytes = 0): Tensor {
    const view = tensor.view(tensor.dtype, shape, offsetBytes);
    this.#made.push(view);
    return view;
  }

  dispose(): void {
    for (const view of this.#made) view.dispose();
    this.#made.length = 0;
  }
}
