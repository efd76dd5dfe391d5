// checkpoint/fingerprint.ts - tells checkpoints apart that have the same shapes: a digest of the configuration, of every
// tensor's place, and of some bytes from the middle of each. Not a proof that all bytes are the same.
import { createHash } from 'node:crypto';
import { MlaError } from '../errors';
import { read } from '../files';
import type { Checkpoint, TensorInfo } from './checkpoint';

const SAMPLE_BYTES = 256;
/** Reads that are under way at once. */
const CONCURRENT_READS = 32;

/** The digest of an open checkpoint, in hexadecimal. @throws ERR_FILE */
export async function fingerprintOf(checkpoint: Checkpoint): Promise<string> {
  const tensors = [...checkpoint.tensors.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  const samples = new Array<Buffer>(tensors.length);
  let next = 0;
  const reader = async () => {
    for (let i = next++; i < tensors.length; i = next++) samples[i] = await sampleOf(tensors[i] as TensorInfo);
  };
  await Promise.all(Array.from({ length: CONCURRENT_READS }, reader));
  const hash = createHash('sha256').update(JSON.stringify(checkpoint.config));
  for (const [i, { name, dtype, shape }] of tensors.entries()) {
    hash.update(JSON.stringify([name, dtype, shape])).update(samples[i] as Buffer);
  }
  return hash.digest('hex');
}

async function sampleOf({ fd, offset, bytes, file }: TensorInfo): Promise<Buffer> {
  const size = Math.min(bytes, SAMPLE_BYTES);
  const buffer = Buffer.alloc(size);
  if (size === 0) return buffer;
  try {
    await read(fd, buffer, 0, size, offset + Math.floor((bytes - size) / 2));
  } catch (cause) {
    throw new MlaError('ERR_FILE', `${file.path}: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause,
    });
  }
  return buffer;
}
