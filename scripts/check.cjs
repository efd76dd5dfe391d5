// check.cjs - proves all that needs neither a GPU nor a running test: format, lint, types, layers, shape, docs, API.
//
//   npm run check [-- STEP...]     without STEP: all of them, in this order; a failed step does not stop the next
//
// Exit code 1 when a step fails. A tool that is missing is a failure where CI is set, and a note elsewhere.
'use strict';
const { spawnSync } = require('node:child_process');
const path = require('node:path');
const { findClangFormat, HOW_TO_INSTALL } = require('./clang-format.cjs');

const ROOT = path.resolve(__dirname, '..');
const program = (file) => path.join(ROOT, 'node_modules', file);
const script = (name) => [path.join(__dirname, name)];

const STEPS = [
  { name: 'biome', node: () => [program('@biomejs/biome/bin/biome'), 'check', '--error-on-warnings', '.'] },
  {
    name: 'clang-format',
    node: () => script('clang-format.cjs'),
    missing: () => (findClangFormat() === null ? HOW_TO_INSTALL : null),
  },
  { name: 'types-lib', node: () => [program('typescript/bin/tsc'), '--noEmit', '-p', 'tsconfig.json'] },
  { name: 'types-tests', node: () => [program('typescript/bin/tsc'), '--noEmit', '-p', 'tsconfig.test.json'] },
  { name: 'layers', node: () => script('check-layers.cjs') },
  { name: 'shape', node: () => script('check-shape.cjs') },
  { name: 'docs', node: () => script('check-docs.cjs') },
  { name: 'doc-examples', node: () => script('check-doc-examples.cjs') },
  { name: 'typedoc', node: () => [program('typedoc/bin/typedoc'), '--options', 'docs/typedoc.json', '--emit', 'none'] },
];

/** Runs one step; its output appears only when there is something to read. */
function runStep(step) {
  const missing = step.missing?.() ?? null;
  if (missing !== null) return { verdict: process.env.CI ? 'FAILED' : 'missing', output: `${missing}\n` };
  const run = spawnSync(process.execPath, step.node(), { cwd: ROOT, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (run.error !== undefined) return { verdict: 'FAILED', output: `${run.error.message}\n` };
  return { verdict: run.status === 0 ? 'ok' : 'FAILED', output: run.status === 0 ? '' : run.stdout + run.stderr };
}

function main(names) {
  const unknown = names.filter((name) => !STEPS.some((step) => step.name === name));
  if (unknown.length > 0) {
    console.error(`check: no step ${unknown.join(', ')}; there are ${STEPS.map((step) => step.name).join(', ')}.`);
    return 2;
  }
  let failed = 0;
  for (const step of STEPS.filter(({ name }) => names.length === 0 || names.includes(name))) {
    const start = performance.now();
    const { verdict, output } = runStep(step);
    if (verdict === 'FAILED') failed++;
    if (output !== '') process.stdout.write(output);
    console.log(`${verdict.padEnd(8)}${step.name.padEnd(14)}${((performance.now() - start) / 1000).toFixed(1)} s`);
  }
  console.log(failed === 0 ? 'check: all steps passed' : `check: ${failed} of the steps failed`);
  return failed === 0 ? 0 : 1;
}

process.exitCode = main(process.argv.slice(2));
