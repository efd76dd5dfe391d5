// entry-file.ts - where the compiled entry of a worker thread or a child process lies.
import { existsSync } from 'node:fs';
import { join, relative } from 'node:path';

const LIB = join(__dirname, '..');

/** The file `name`.js in `folder`; its place in dist/ when the TypeScript sources run directly, as in unit tests. */
export function entryFile(folder: string, name: string): string {
  const beside = join(folder, `${name}.js`);
  return existsSync(beside) ? beside : join(LIB, '..', 'dist', relative(LIB, folder), `${name}.js`);
}
