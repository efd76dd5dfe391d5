// model/specs.ts - trees of named tensors: planned as shapes, allocated as one piece of memory.

import { type Device, DTYPE_BYTES, type Tensor, type TensorSpec } from '../native';

/** Start of every tensor inside an allocation: what TMA and vector loads want, with room to spare. */
const ALIGNMENT = 256;

/** A tree whose leaves are tensors or their specs. */
export type Tree<Leaf> = { [name: string]: Leaf | Tree<Leaf> | Tree<Leaf>[] | undefined };

/** The same tree with tensors for specs. */
export type Allocated<T> = T extends TensorSpec
  ? Tensor
  : T extends (infer Item)[]
    ? Allocated<Item>[]
    : T extends object
      ? { [K in keyof T]: Allocated<T[K]> }
      : T;

function isSpec(value: unknown): value is TensorSpec {
  return typeof value === 'object' && value !== null && 'dtype' in value && 'shape' in value;
}

/** Elements of a shape. */
export function elements(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1);
}

/** Bytes of a tensor of this spec. */
export function specBytes(spec: TensorSpec): number {
  return elements(spec.shape) * DTYPE_BYTES[spec.dtype];
}

/** Calls `visit` for every leaf, in the order of definition. */
export function eachSpec(tree: object, visit: (spec: TensorSpec) => void): void {
  mapSpecs(tree, (spec) => {
    visit(spec);
    return spec;
  });
}

/** The same tree with `map(leaf)` in place of each leaf. */
export function mapSpecs(tree: unknown, map: (spec: TensorSpec) => unknown): unknown {
  if (isSpec(tree)) return map(tree);
  if (Array.isArray(tree)) return tree.map((item) => mapSpecs(item, map));
  if (typeof tree === 'object' && tree !== null) {
    return Object.fromEntries(Object.entries(tree).map(([name, value]) => [name, mapSpecs(value, map)]));
  }
  return tree;
}

/** Bytes that allocateTree takes. */
export function treeBytes(tree: object): number {
  let bytes = 0;
  eachSpec(tree, (spec) => {
    bytes = alignUp(bytes) + specBytes(spec);
  });
  return bytes;
}

/**
 * One zero-filled allocation for all leaves of a tree, each a view of it.
 * Rejects with ERR_OUT_OF_MEMORY or ERR_OUT_OF_DEVICE_MEMORY; nothing leaks.
 */
export async function allocateTree<T extends object>(
  device: Device,
  tree: T,
): Promise<{ tensors: Allocated<T>; dispose(): void }> {
  const arena = await device.allocate('u8', [treeBytes(tree)]);
  const views: Tensor[] = [];
  let offset = 0;
  const tensors = mapSpecs(tree, (spec) => {
    offset = alignUp(offset);
    const tensor = arena.view(spec.dtype, spec.shape, offset);
    offset += specBytes(spec);
    views.push(tensor);
    return tensor;
  }) as Allocated<T>;
  const dispose = () => {
    for (const view of views) view.dispose();
    arena.dispose();
  };
  return { tensors, dispose };
}

function alignUp(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
