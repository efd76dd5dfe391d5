// model/load-weights.ts - streams a checkpoint into planned weights: read, convert, place. What can go straight to its
// place does; the rest passes through a staging buffer on the device.

import { readSync } from 'node:fs';
import type { Checkpoint } from '../checkpoint';
import { MlaError } from '../errors';
import { type Device, DTYPE_BYTES, type DType, type Event, type Stream, type Tensor } from '../native';
import { fileDtype, type Part, type Placement, planReadBytes, SCALE_BLOCK, type WeightPlan } from './weights';

/** Bytes of reads that may be under way: enough to keep the disk busy, few enough to abort soon. */
const WINDOW_BYTES = 64 << 20;

/** A planned weight and the tensor it goes to. */
export interface WeightTarget {
  plan: WeightPlan;
  tensor: Tensor;
}

/**
 * Fills all targets. Rejects with ERR_FILE or ERR_CHECKPOINT when files changed under it, with the signal's reason
 * when aborted; the targets' content is undefined then.
 */
export async function loadWeights(
  device: Device,
  stream: Stream,
  checkpoint: Checkpoint,
  targets: readonly WeightTarget[],
  onBytes: (loaded: number, total: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const total = targets.reduce((sum, { plan }) => sum + planReadBytes(plan), 0);
  const tensors = new Map(targets.map(({ plan, tensor }) => [plan, tensor]));
  const staging = await Staging.create(device, targets);
  try {
    let enqueued = 0;
    let windowStart = 0;
    let previous: { event: Event; bytes: number } | null = null;
    onBytes(0, total);
    const settle = async (): Promise<void> => {
      const event = stream.record();
      const bytes = enqueued;
      if (previous !== null) {
        await previous.event.done;
        onBytes(previous.bytes, total);
      }
      previous = { event, bytes };
      windowStart = enqueued;
    };
    for (const { plan, tensor } of targets) {
      for (const part of plan.parts) {
        signal?.throwIfAborted();
        staging.place(stream, part, plan, tensor, tensors);
        enqueued += part.rows * part.columns * DTYPE_BYTES[fileDtype(part.tensor)];
        if (enqueued - windowStart >= WINDOW_BYTES) await settle();
      }
    }
    await settle();
    await (previous as { event: Event } | null)?.event.done;
    signal?.throwIfAborted();
    await checkpoint.verifyUnchanged();
    onBytes(total, total);
  } finally {
    // whatever is still queued writes into buffers that die after this
    await stream.record().done.catch(() => {});
    staging.dispose();
  }
}

/** Buffers a part passes through when it is converted or scattered. */
class Staging {
  private constructor(
    private readonly raw: Tensor,
    private readonly converted: Tensor,
    private readonly scale: Tensor,
    private readonly wide: Tensor,
  ) {}

  static async create(device: Device, targets: readonly WeightTarget[]): Promise<Staging> {
    let raw = 0;
    let converted = 0;
    let scale = 0;
    let wide = 0;
    for (const { plan } of targets) {
      for (const part of plan.parts) {
        if (isDirect(part, plan)) continue;
        const count = part.rows * part.columns;
        raw = Math.max(raw, count * DTYPE_BYTES[fileDtype(part.tensor)]);
        if (fileDtype(part.tensor) !== plan.dtype) converted = Math.max(converted, count * DTYPE_BYTES[plan.dtype]);
        if (part.scale !== undefined) scale = Math.max(scale, part.scale.bytes);
        if (part.quantized === undefined) continue;
        if (fileDtype(part.tensor) === 'f16') wide = Math.max(wide, count * DTYPE_BYTES.f32);
        scale = Math.max(
          scale,
          scaleShape(part).reduce((a, b) => a * b, DTYPE_BYTES.f32),
        );
      }
    }
    const made: Tensor[] = [];
    try {
      for (const bytes of [raw, converted, scale, wide]) made.push(await device.allocate('u8', [bytes]));
    } catch (error) {
      for (const tensor of made) tensor.dispose();
      throw error;
    }
    return new Staging(...(made as [Tensor, Tensor, Tensor, Tensor]));
  }

  dispose(): void {
    for (const tensor of [this.raw, this.converted, this.scale, this.wide]) tensor.dispose();
  }

  /** Enqueues what brings one part to its place, and the scales that it gets on the way to theirs. */
  place(stream: Stream, part: Part, plan: WeightPlan, target: Tensor, tensors: ReadonlyMap<WeightPlan, Tensor>): void {
    const source = fileDtype(part.tensor);
    const position = part.tensor.offset + part.offset * DTYPE_BYTES[source];
    const count = part.rows * part.columns;
    const views: Tensor[] = [];
    const view = (tensor: Tensor, ...rest: Parameters<Tensor['view']>): Tensor => {
      const made = tensor.view(...rest);
      views.push(made);
      return made;
    };
    try {
      if (isDirect(part, plan)) {
        const start = (part.placements[0]?.dstOffset ?? 0) * DTYPE_BYTES[plan.dtype];
        stream.readFile(view(target, plan.dtype, [count], start), part.tensor.fd, position);
        return;
      }
      const shape = [part.rows, part.columns];
      let value = view(this.raw, source === 'f8e8m0' ? 'u8' : source, shape);
      if (source === 'f8e8m0') {
        // a handful of scale bytes: exponents become powers of two on the host
        value = view(this.converted, 'f32', shape);
        stream.write(value, readExponents(part.tensor.fd, position, count));
      } else {
        stream.readFile(value, part.tensor.fd, position);
      }
      if (part.quantized !== undefined) {
        if (source === 'f16') {
          const wide = view(this.wide, 'f32', shape);
          stream.cast({ x: value, out: wide });
          value = wide;
        }
        const q = view(this.converted, plan.dtype, shape);
        const scale = view(this.scale, 'f32', scaleShape(part));
        stream.quantize({ x: value, q, scale, pow2: false });
        scatter(stream, scale, tensors.get(part.quantized.scale) as Tensor, part.quantized.placements, 'f32');
        value = q;
      } else if (source !== plan.dtype && source !== 'f8e8m0') {
        const out = view(this.converted, plan.dtype, shape);
        if (part.scale !== undefined) {
          const scale = view(this.scale, fileDtype(part.scale), [...part.scale.shape]);
          stream.readFile(scale, part.scale.fd, part.scale.offset);
          stream.dequantize({ q: value, scale, out });
        } else {
          stream.cast({ x: value, out });
        }
        value = out;
      }
      scatter(stream, value, target, part.placements, plan.dtype);
    } finally {
      for (const made of views) made.dispose();
    }
  }
}

/** Enqueues the copies that bring `src` to its places. */
function scatter(stream: Stream, src: Tensor, dst: Tensor, placements: readonly Placement[], dtype: DType): void {
  const size = DTYPE_BYTES[dtype];
  for (const p of placements) {
    stream.copy({
      src,
      dst,
      blocks: p.blocks,
      block_bytes: p.blockElements * size,
      src_offset: p.srcOffset * size,
      src_stride: p.srcStride * size,
      dst_offset: p.dstOffset * size,
      dst_stride: p.dstStride * size,
    });
  }
}

/** Shape of the block scales of a part. */
function scaleShape({ rows, columns }: Part): [number, number] {
  return [Math.ceil(rows / SCALE_BLOCK), Math.ceil(columns / SCALE_BLOCK)];
}

/** Whether a part's bytes stand in the file just as they will on the device. */
function isDirect(part: Part, plan: WeightPlan): boolean {
  const [first] = part.placements;
  return (
    fileDtype(part.tensor) === plan.dtype &&
    part.placements.length === 1 &&
    first?.blocks === 1 &&
    first.srcOffset === 0
  );
}

/** e8m0 bytes as float32: value 2^(b - 127); 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1). */
function readExponents(fd: number, position: number, count: number): Float32Array {
  const bytes = new Uint8Array(count);
  if (readSync(fd, bytes, 0, count, position) !== count) {
    throw new MlaError(
      'ERR_FILE',
      `A checkpoint file ended before byte ${position + count}; it changed during the load.`,
    );
  }
  return Float32Array.from(bytes, (b) => (b === 255 ? Number.NaN : 2 ** (b - 127)));
}
