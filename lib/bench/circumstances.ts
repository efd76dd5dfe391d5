// bench/circumstances.ts - what every figure must come with: when, of which commit, on which GPU, driver and clocks.
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const ROOT = join(__dirname, '..', '..');
const LIMIT_MS = 10_000;

/** What belongs to a record. Fields are null where this machine cannot tell. */
export interface Circumstances {
  date: string;
  /** of the checkout, "with local changes" behind it where there are some */
  commit: string | null;
  version: string;
  node: string;
  command: string;
  gpu: GpuState | null;
}

/** A GPU at one moment, as nvidia-smi reports it. */
export interface GpuState {
  name: string;
  driver: string;
  /** MHz: now, and the most it can have */
  clockSm: number;
  clockMemory: number;
  clockSmMax: number;
  /** watts */
  powerLimit: number;
}

/** To be called right after measuring, while clocks still are what they were. `device`: 'cpu', or 'cuda:N' with whatever follows. */
export async function circumstances(device: string): Promise<Circumstances> {
  const cuda = /^cuda:(\d+)/.exec(device);
  // First of all: a clock falls within milliseconds.
  const gpu = cuda === null ? null : await gpuState(Number(cuda[1]));
  return {
    date: new Date().toISOString(),
    commit: await commitOf(ROOT),
    version: (JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string }).version,
    node: process.version,
    command: ['mla', ...process.argv.slice(2)].join(' '),
    gpu,
  };
}

/** What nvidia-smi says of a GPU; null where there is no nvidia-smi. */
export async function gpuState(index: number): Promise<GpuState | null> {
  // CUDA counts what this variable lists, nvidia-smi counts all.
  const visible = process.env.CUDA_VISIBLE_DEVICES?.split(',')[index]?.trim();
  const fields = 'name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit';
  const args = [`--query-gpu=${fields}`, '--format=csv,noheader,nounits', '-i', visible || String(index)];
  try {
    const { stdout } = await run('nvidia-smi', args, { timeout: LIMIT_MS });
    const [name = '', driver = '', ...numbers] = stdout.trim().split(/\s*,\s*/);
    const [clockSm, clockMemory, clockSmMax, powerLimit] = numbers.map(Number) as [number, number, number, number];
    return { name, driver, clockSm, clockMemory, clockSmMax, powerLimit };
  } catch {
    return null;
  }
}

/** A bundle for GPU machines has no repository and brings the name of its commit in a file. */
async function commitOf(root: string): Promise<string | null> {
  const file = join(root, 'commit.txt');
  if (existsSync(file)) return readFileSync(file, 'utf8').trim();
  if (!existsSync(join(root, '.git'))) return null;
  try {
    const git = async (...args: string[]) => (await run('git', ['-C', root, ...args], { timeout: LIMIT_MS })).stdout;
    const clean = (await git('status', '--porcelain', '--untracked-files=no')).trim() === '';
    return `${(await git('rev-parse', 'HEAD')).trim()}${clean ? '' : ' with local changes'}`;
  } catch {
    return null;
  }
}
