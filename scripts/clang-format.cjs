// clang-format.cjs - checks the format of csrc/ against .clang-format; with --write, applies it.
//
//   node scripts/clang-format.cjs [--write]
//
// Version 14 is preferred where several are installed: later ones place a few things differently.
'use strict';
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const ROOT = path.resolve(__dirname, '..');
const CANDIDATES = ['clang-format-14', 'clang-format'];
const HOW_TO_INSTALL = 'clang-format is not installed. On Debian or Ubuntu: apt-get install clang-format-14';

/** The program's name, or null where there is none. */
function findClangFormat() {
  return CANDIDATES.find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0) ?? null;
}

/** Every C++ and CUDA file of csrc/ and of the native tests. */
function nativeSources(root = ROOT) {
  return ['csrc', 'test']
    .filter((dir) => fs.existsSync(path.join(root, dir)))
    .flatMap((dir) =>
      fs.readdirSync(path.join(root, dir), { recursive: true }).map((file) => path.join(root, dir, file)),
    )
    .filter((file) => /\.(h|cc|cu|cuh)$/.test(file))
    .sort();
}

function main(args) {
  const program = findClangFormat();
  if (program === null) {
    console.error(HOW_TO_INSTALL);
    return 1;
  }
  const files = nativeSources();
  if (files.length === 0) return 0;
  const mode = args.includes('--write') ? ['-i'] : ['--dry-run', '-Werror'];
  const run = spawnSync(program, [...mode, '--style=file', ...files], { cwd: ROOT, stdio: 'inherit' });
  if (run.status !== 0) console.error('clang-format: fix with "npm run format".');
  return run.status === 0 ? 0 : 1;
}

module.exports = { findClangFormat, HOW_TO_INSTALL };
if (require.main === module) process.exitCode = main(process.argv.slice(2));
