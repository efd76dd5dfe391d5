// build-dist.cjs - compiles lib/ into dist/ and makes the commands of package.json runnable from the checkout.
//
//   node scripts/build-dist.cjs
//
// Compiles into a folder of its own and then copies what changed, file by file: a test that runs dist/ at the same
// moment never meets an empty folder, and files that lib/ no longer has disappear.
'use strict';
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const ROOT = path.resolve(__dirname, '..');

/** All files under `dir`, as paths relative to it. */
function filesUnder(dir) {
  if (!fs.existsSync(dir)) return [];
  return fs
    .readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(dir, path.join(entry.parentPath ?? entry.path, entry.name)));
}

/** Makes `to` equal to `from`, replacing each changed file in one step; the others are dated now, as built from lib/. */
function mirror(from, to) {
  const wanted = new Set(filesUnder(from));
  const now = new Date();
  for (const file of wanted) {
    const source = path.join(from, file);
    const target = path.join(to, file);
    if (fs.existsSync(target) && fs.readFileSync(target).equals(fs.readFileSync(source))) {
      fs.utimesSync(target, now, now);
      continue;
    }
    fs.mkdirSync(path.dirname(target), { recursive: true });
    const next = `${target}.${process.pid}.next`;
    fs.copyFileSync(source, next);
    fs.renameSync(next, target);
  }
  for (const file of filesUnder(to)) if (!wanted.has(file)) fs.rmSync(path.join(to, file), { force: true });
}

/**
 * Makes each command executable and links it into node_modules/.bin, where npx looks first. Without the link npx
 * installs the checkout into its own cache on each machine before it runs anything.
 */
function linkCommands(root, bin) {
  const modules = path.join(root, 'node_modules');
  for (const [name, file] of Object.entries(bin)) {
    const target = path.join(root, file);
    if (!fs.existsSync(target))
      throw new Error(`package.json names ${file} as the command "${name}", but lib/ has no source for it.`);
    fs.chmodSync(target, 0o755);
    if (!fs.existsSync(modules)) continue;
    const link = path.join(modules, '.bin', name);
    const to = path.relative(path.dirname(link), target);
    fs.mkdirSync(path.dirname(link), { recursive: true });
    if (fs.lstatSync(link, { throwIfNoEntry: false })?.isSymbolicLink() && fs.readlinkSync(link) === to) continue;
    fs.rmSync(link, { force: true });
    fs.symlinkSync(to, link);
  }
}

function main() {
  const bin = require(path.join(ROOT, 'package.json')).bin;
  const dist = path.join(ROOT, 'dist');
  let tsc;
  try {
    tsc = require.resolve('typescript/bin/tsc', { paths: [ROOT] });
  } catch {
    // A packed install has dist/ and no compiler; there is nothing to do.
    if (fs.existsSync(path.join(dist, 'index.js'))) return 0;
    console.error('build-dist: dist/ is missing and typescript is not installed. Run "npm ci" in the checkout first.');
    return 1;
  }
  fs.mkdirSync(path.join(ROOT, 'build'), { recursive: true });
  const out = fs.mkdtempSync(path.join(ROOT, 'build', 'dist-'));
  try {
    const run = spawnSync(process.execPath, [tsc, '-p', path.join(ROOT, 'tsconfig.json'), '--outDir', out], {
      cwd: ROOT,
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    if (run.status !== 0) {
      console.error('build-dist: the TypeScript compiler found errors (above); dist/ is left as it was.');
      return 1;
    }
    mirror(out, dist);
    linkCommands(ROOT, bin);
    return 0;
  } catch (error) {
    console.error(`build-dist: ${error.message}`);
    return 1;
  } finally {
    fs.rmSync(out, { recursive: true, force: true });
  }
}

process.exitCode = main();
