// run-cli.ts - runs the built command line as its users do: dist/cli/main.js in a process of its own.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

export const ROOT = join(__dirname, '..', '..');
const MAIN = join(ROOT, 'dist', 'cli', 'main.js');

export interface Ran {
  /** exit code, or null when a signal ended the process */
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  /** what stdin gives; undefined is nothing at all */
  stdin?: string | Buffer;
  /** leaves stdin open */
  keepStdin?: boolean;
  env?: Record<string, string>;
  /** told of the process and of what stdout has given so far, at each piece */
  onStdout?: (child: ChildProcessWithoutNullStreams, soFar: string) => void;
  onStart?: (child: ChildProcessWithoutNullStreams) => void;
}

/** Runs `mla ...args` to its end; after 25 s it is killed, and `signal` says so. */
export function runCli(args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  if (!existsSync(MAIN)) throw new Error(`${MAIN} does not exist; run "npm run build" first.`);
  const child = spawn(process.execPath, [MAIN, ...args], { cwd: ROOT, env: { ...process.env, ...options.env } });
  const timer = setTimeout(() => child.kill('SIGKILL'), 25_000);
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    options.onStdout?.(child, stdout);
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  child.stdin.on('error', () => {}); // it may have ended before it read everything
  if (options.stdin !== undefined) child.stdin.write(options.stdin);
  if (!options.keepStdin) child.stdin.end();
  options.onStart?.(child);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr });
    });
  });
}

/** A folder of test/golden: a tiny checkpoint without a tokenizer. */
export const golden = (name: string) => join(ROOT, 'test', 'golden', name);
