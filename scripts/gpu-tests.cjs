// gpu-tests.cjs - compiles lib/ and test/gpu/ into a folder of .build/ and runs the tests there with node --test: on a machine
// with a GPU, after `npm run build:native`.
//
//   npm run test:gpu [-- NAME...]     NAME: files of test/gpu without .test.ts; all of them without
//
// Environment: NODE_MLA_TEST_DEVICE=cuda:N|cpu (default cuda:0).
'use strict';
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const ROOT = path.resolve(__dirname, '..');
const WORK = path.join(ROOT, '.build');
/** What the compiled files look for beside them: the addon, data of tests, the bundled model. */
const DATA = ['build', 'package.json', 'models', 'test/golden', 'bench'];

/** Compiles into `out`. Throws when the compiler finds errors, which it prints. */
function compile(out) {
  const tsc = require.resolve('typescript/bin/tsc', { paths: [ROOT] });
  const run = spawnSync(
    process.execPath,
    [tsc, '-p', path.join(ROOT, 'test', 'gpu', 'tsconfig.json'), '--outDir', out],
    {
      cwd: ROOT,
      stdio: ['ignore', 'inherit', 'inherit'],
    },
  );
  if (run.status !== 0) throw new Error('the TypeScript compiler found errors (above)');
}

/** Compiled test files below `out`, by the names of the command line. */
function testFiles(out, names) {
  const folder = path.join(out, 'test', 'gpu');
  const all = fs.readdirSync(folder).filter((file) => file.endsWith('.test.js'));
  const chosen = names.length === 0 ? all : names.map((name) => `${name}.test.js`);
  const unknown = chosen.filter((file) => !all.includes(file));
  if (unknown.length > 0) throw new Error(`no test ${unknown.join(', ')}; there are ${all.join(', ')}`);
  return chosen.map((file) => path.join(folder, file));
}

function main(names) {
  // A folder of its own: two runs at once must not compile into each other.
  fs.mkdirSync(WORK, { recursive: true });
  const out = fs.mkdtempSync(path.join(WORK, 'gpu-'));
  try {
    compile(out);
    for (const name of DATA) {
      const link = path.join(out, name);
      fs.mkdirSync(path.dirname(link), { recursive: true });
      fs.symlinkSync(path.relative(path.dirname(link), path.join(ROOT, name)), link);
    }
    // One file at a time: they share the GPU's memory, and some of them measure it.
    const args = ['--test', '--test-concurrency=1', '--expose-gc', ...testFiles(out, names)];
    return spawnSync(process.execPath, args, { cwd: out, stdio: 'inherit' }).status ?? 1;
  } finally {
    fs.rmSync(out, { recursive: true, force: true });
  }
}

module.exports = { compile, testFiles };
if (require.main === module) {
  try {
    process.exitCode = main(process.argv.slice(2));
  } catch (error) {
    console.error(`gpu-tests: ${error.message}`);
    process.exitCode = 1;
  }
}
