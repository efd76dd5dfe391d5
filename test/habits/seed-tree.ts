// seed-tree.ts - a small source tree in a temporary folder, for tests of the checkers in scripts/.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

/** Writes `files` (path to content) below a new folder, calls `body` with it and removes it. */
export function withTree<T>(files: Readonly<Record<string, string>>, body: (root: string) => T): T {
  const root = mkdtempSync(join(tmpdir(), 'node-mla-tree-'));
  try {
    for (const [file, content] of Object.entries(files)) {
      mkdirSync(dirname(join(root, file)), { recursive: true });
      writeFileSync(join(root, file), content);
    }
    return body(root);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}
