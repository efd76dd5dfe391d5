// bench/peers.ts - other libraries at the same shapes, on this GPU, in the same call: cuBLAS, cuDNN and grouped_mm through
// PyTorch, where a python3 with it is on the PATH (bench/peers.py).
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { MlaError } from '../errors';

const SCRIPT = join(__dirname, '..', '..', 'bench', 'peers.py');

/** What a library took for the case of this name. */
export interface PeerResult {
  id: string;
  us: number;
  by: string;
}

/**
 * Measures these cases, one after the other; those without a counterpart are left out, those that fail there are in
 * `failed`. Rejects with ERR_UNSUPPORTED where python3 or PyTorch is missing, or with the signal's reason.
 */
export async function benchPeers(
  ids: readonly string[],
  report: (result: PeerResult) => void,
  signal?: AbortSignal,
): Promise<{ failed: { id: string; error: string }[] }> {
  const child = spawn('python3', [SCRIPT, ...ids], { stdio: ['ignore', 'pipe', 'pipe'], signal });
  let complaints = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaints = (complaints + text).slice(-2000);
  });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', (error) => reject(signal?.aborted ? signal.reason : missing(error.message)));
    child.once('close', resolve);
  });
  ended.catch(() => {}); // awaited below, after the lines
  const failed: { id: string; error: string }[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const found = JSON.parse(line) as PeerResult | { id: string; error: string };
    if ('error' in found) failed.push(found);
    else report(found);
  }
  if ((await ended) !== 0) throw missing(complaints.trim().split('\n').at(-1) ?? '');
  return { failed };
}

function missing(why: string): MlaError {
  return new MlaError('ERR_UNSUPPORTED', `--peers needs a python3 with PyTorch on the PATH (${why}).`);
}
