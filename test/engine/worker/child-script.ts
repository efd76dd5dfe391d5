// child-script.ts - what the scripts of these tests begin with, and how they are run: in processes of their own, against
// dist/, because what is tested is how a process or a thread ends.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { ROOT } from '../../native/child';

/** `workers` lists the worker threads that the package starts; `act()` says that the moment has come. */
const PRELUDE = `
const threads = require('node:worker_threads');
const workers = [];
threads.Worker = class extends threads.Worker {
  constructor(...args) {
    super(...args);
    if (String(args[0]).endsWith('model-worker.js')) workers.push(this);
  }
};
const { loadModel } = require(${JSON.stringify(ROOT)});
const act = () => process.stdout.write('act\\n');
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const load = (options) => loadModel(undefined, { device: 'cpu', threads: 2, context: 512, thread: 'worker', ...options });
const LONG = { maxTokens: 400, ignoreEos: true };
`;

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  /** from the last act() to the end */
  ms: number;
}

/** Runs a script to its end; after `limit` ms it is killed, which no test accepts. */
export function runScript(script: string, limit = 60_000): Promise<Outcome> {
  const child = spawn(process.execPath, ['-e', PRELUDE + script], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: limit,
    killSignal: 'SIGKILL',
  });
  let acted = Date.now();
  const outcome = { stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    outcome.stdout += text.replace(/^act\n/gm, () => {
      acted = Date.now();
      return '';
    });
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    outcome.stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code, signal, ms: Date.now() - acted, ...outcome }));
  });
}

/** A script as a string, for a worker of the script's own. */
export const inWorker = (script: string) => JSON.stringify(PRELUDE + script);

export const BUNDLED = join(ROOT, 'models', 'kjv-10m');
