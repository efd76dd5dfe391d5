// native/graph.ts - the Graph class.
import { invalidArg } from '../errors';
import { check, type RawGraph } from './raw';
import type { Graph } from './types';

export class NativeGraph implements Graph {
  readonly #raw: RawGraph;

  constructor(raw: RawGraph) {
    this.#raw = raw;
  }

  static #of(value: unknown, method: string): RawGraph {
    if (typeof value === 'object' && value !== null && #raw in value) return value.#raw;
    throw invalidArg(`Graph.${method}: this`, 'a graph', value);
  }

  get operations(): number {
    return NativeGraph.#of(this, 'operations').operations();
  }

  get launches(): number {
    return NativeGraph.#of(this, 'launches').launches();
  }

  get disposed(): boolean {
    return NativeGraph.#of(this, 'disposed').disposed();
  }

  replay(): void {
    check(NativeGraph.#of(this, 'replay').replay());
  }

  dispose(): void {
    NativeGraph.#of(this, 'dispose').dispose();
  }
}
