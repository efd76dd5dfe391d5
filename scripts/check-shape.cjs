// check-shape.cjs - habits of the tree that no other tool looks at: size and names of files, tests that do not run.
//
//   node scripts/check-shape.cjs
'use strict';
const fs = require('node:fs');
const path = require('node:path');

const IGNORED = new Set([
  'node_modules',
  'build',
  '.build',
  'dist',
  'prebuilds',
  'coverage',
  '.git',
  '.corpus',
  '.bundle',
]);
/** Data of tests and models: not written by hand, of any size. */
const DATA = /^(test\/golden\/|models\/|docs\/api\/|bench\/results\/)/;
const CODE = /\.(ts|cts|mts|cjs|mjs|js|h|cc|cu|cuh|py|sh)$/;
const MAX_LINES = 600;
/** One kernel body may be longer than other files. */
const MAX_KERNEL_LINES = 800;
const SAYS_NOTHING = /^(utils?|helpers?|misc|stuff|common-utils)\./i;
const KEBAB = /^[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+)*$/;
const SNAKE = /^[a-z0-9]+(_[a-z0-9]+)*(\.[a-z0-9]+)*$/;

/** Files of the tree as paths with forward slashes, relative to `root`. */
function treeFiles(root, dir = '') {
  return fs
    .readdirSync(path.join(root, dir), { withFileTypes: true })
    .filter((entry) => !IGNORED.has(entry.name))
    .flatMap((entry) => {
      const file = dir === '' ? entry.name : `${dir}/${entry.name}`;
      if (entry.isDirectory()) return treeFiles(root, file);
      return entry.isFile() ? [file] : [];
    });
}

function checkTest(file, text) {
  const problems = [];
  const idle =
    /\b(?:it|test|describe)(?:\.(?:each|concurrent))*\.(?:only|skip|todo|failing)\b|\bx(?:it|test|describe)\s*\(|\bf(?:it|describe)\s*\(/g;
  text.split('\n').forEach((line, i) => {
    for (const [found] of line.matchAll(idle))
      problems.push(`${file}:${i + 1}: "${found.trim()}" keeps tests from running; repair or delete them`);
  });
  return problems;
}

/** Everything wrong with the shape of the tree at `root`, one line each. */
function checkShape(root) {
  const problems = [];
  for (const file of treeFiles(root)) {
    if (DATA.test(file) || !CODE.test(file)) continue;
    const name = path.posix.basename(file);
    const text = fs.readFileSync(path.join(root, file), 'utf8');
    const lines = text.split('\n').length - 1;
    const limit = /^csrc\/cuda\/.*\.cuh?$/.test(file) ? MAX_KERNEL_LINES : MAX_LINES;
    if (lines > limit) problems.push(`${file}: ${lines} lines, at most ${limit}; split it by what its parts do`);
    if (text !== '' && !text.endsWith('\n')) problems.push(`${file}: no newline at the end`);
    if (SAYS_NOTHING.test(name)) problems.push(`${file}: the name does not say what is inside`);
    if (/\.(ts|cts|mts|cjs|mjs|js)$/.test(name) && !KEBAB.test(name))
      problems.push(`${file}: names are kebab-case here`);
    if (file.startsWith('csrc/') && !SNAKE.test(name)) problems.push(`${file}: names are snake_case in csrc`);
    // The seeded violations of these two rules stand in test/habits/.
    if (file.startsWith('test/habits/')) continue;
    if (/\.ts$/.test(name)) {
      const silenced = /@ts-(?:ignore|nocheck)/.exec(text);
      if (silenced) problems.push(`${file}: ${silenced[0]} hides type errors; use @ts-expect-error with a reason`);
    }
    if (/\.test\.ts$/.test(name)) problems.push(...checkTest(file, text));
  }
  return problems;
}

module.exports = { checkShape, treeFiles };
if (require.main === module) {
  const problems = checkShape(path.resolve(__dirname, '..'));
  for (const problem of problems) console.error(problem);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
