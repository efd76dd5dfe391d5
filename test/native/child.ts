// native/child.ts - runs scripts in processes of their own, against dist/, as users do.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';

export const ROOT = resolve(__dirname, '..', '..');
export const NATIVE = resolve(ROOT, 'dist', 'native');

export interface Ended {
  /** Exit code; null after a signal. */
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  ms: number;
}

/** Runs a script in which `native` is the built dist/native. Ends after `limitMs` with SIGKILL, which no test accepts. */
export function run(
  script: string,
  env: NodeJS.ProcessEnv = {},
  flags: string[] = [],
  limitMs = 30_000,
): Promise<Ended> {
  if (!existsSync(NATIVE)) throw new Error('dist/ is missing: run "npm run build" (npm test does it by itself).');
  const start = Date.now();
  const source = `const native = require(${JSON.stringify(NATIVE)});\n${script}`;
  const child = spawn(process.execPath, [...flags, '-e', source], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: limitMs,
    killSignal: 'SIGKILL',
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise((done, failed) => {
    child.on('error', failed);
    child.on('close', (code, signal) => done({ code, signal, stdout, stderr, ms: Date.now() - start }));
  });
}

/** Runs `count` jobs, two at a time. */
export async function twoAtATime<T>(count: number, job: (i: number) => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  let next = 0;
  const lane = async () => {
    while (next < count) {
      const i = next++;
      results[i] = await job(i);
    }
  };
  await Promise.all([lane(), lane()]);
  return results;
}
