// entry-file.ts - where the compiled entry of a worker thread or a child process lies.
import { existsSync } from 'node:fs';
import { join } from 'node:path';

/** The file `name`.js beside this one; in dist/text when the TypeScript sources run directly, as in unit tests. */
export function entryFile(name: string): string {
  const beside = join(__dirname, `${name}.js`);
  return existsSync(beside) ? beside : join(__dirname, '..', '..', 'dist', 'text', `${name}.js`);
}
