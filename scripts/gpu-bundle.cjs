// gpu-bundle.cjs - packs what a GPU machine without Node, npm or network needs to run the tests and benches of this
// checkout; scripts/gpu-run.sh is the other half.
//
//   node scripts/gpu-bundle.cjs [--out DIR] [--with-data] [--no-build]
//
//   --out DIR     where to put it; default .bundle (ignored by git)
//   --with-data   also the golden checkpoints and the bundled model; without, gpu-run.sh takes them from the checkout
//                 that it is started in
//   --no-build    the addon that the last run built, instead of building
//
// Environment: NODE_MLA_CUDA_ARCHS (default 90-real: one GPU generation keeps the build and the bundle small).
// The bundle: node.xz (the running Node, stripped), app.tar.xz (addon, compiled lib and tests, run-time packages),
// data.tar with --with-data, gpu-run.sh, bundle.json (commit, versions, sizes).
'use strict';
const { execFileSync, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { seal } = require('./build-native.cjs');
const { compile } = require('./gpu-tests.cjs');

const ROOT = path.resolve(__dirname, '..');
const WORK = path.join(ROOT, '.build');
const MOST_BYTES = 60 * 2 ** 20;
/** Parts of packages that run-time code never opens. */
const NOT_RUN = /\.(d\.[cm]?ts|map|md|markdown|[cm]?ts|h|gypi?|yml)$|^(docs?|tests?|examples?|src|include)$/;
/** The only build-time packages among the dependencies. */
const NOT_NEEDED = new Set(['node-addon-api', 'node-api-headers']);

const run = (program, args, options = {}) => {
  const result = spawnSync(program, args, { cwd: ROOT, stdio: 'inherit', ...options });
  if (result.error) throw result.error;
  if (result.status !== 0) throw new Error(`${program} ${args[0]} failed (its messages are above)`);
};
const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** The running Node, stripped and packed once per version: packing takes over a minute. */
function packNode(target) {
  const kept = path.join(WORK, `node-${process.version}-${process.arch}.xz`);
  if (!fs.existsSync(kept)) {
    const stripped = path.join(WORK, `node-${process.version}`);
    fs.mkdirSync(WORK, { recursive: true });
    fs.copyFileSync(fs.realpathSync(process.execPath), stripped);
    run('strip', [stripped]);
    const out = fs.openSync(`${kept}.next`, 'w');
    run('xz', ['--x86', '--lzma2=preset=9e', '-c', stripped], { stdio: ['ignore', out, 'inherit'] });
    fs.closeSync(out);
    fs.rmSync(stripped);
    fs.renameSync(`${kept}.next`, kept);
  }
  fs.copyFileSync(kept, target);
}

/** The addon, built, stripped and sealed again. */
function packAddon(target, archs, build) {
  const addon = path.join(WORK, 'archs', 'build', 'Release', 'node_mla.node');
  if (build)
    run(process.execPath, [path.join(__dirname, 'build-native.cjs')], {
      env: { ...process.env, NODE_MLA_CUDA: process.env.NODE_MLA_CUDA ?? 'ON', NODE_MLA_CUDA_ARCHS: archs },
    });
  if (!fs.existsSync(addon)) throw new Error(`${path.relative(ROOT, addon)} is missing; run without --no-build`);
  fs.mkdirSync(path.dirname(target), { recursive: true });
  fs.copyFileSync(addon, target);
  run('strip', [target]);
  seal(target);
}

/**
 * Programs of the GPU tests that stand alone, and an addon; only the build folder of these archs has them. They lie
 * beside build/Release: in it, the loader would take the addon for the one it looks for.
 */
const PROGRAMS = ['test-ptx', 'seeded-bugs', 'resident-step', 'gpu-faults.node'];

function packPrograms(target, build) {
  const folder = path.join(WORK, 'cmake-release-archs');
  if (build) run('cmake', ['--build', folder, '--target', 'gpu-programs']);
  fs.mkdirSync(target, { recursive: true });
  for (const name of PROGRAMS) {
    fs.copyFileSync(path.join(folder, name), path.join(target, name));
    run('strip', [path.join(target, name)]);
  }
}

/** Copies the packages that lib/ needs at run time, without what never runs. */
function packPackages(target) {
  const wanted = Object.keys(require(path.join(ROOT, 'package.json')).dependencies).filter((n) => !NOT_NEEDED.has(n));
  const seen = new Set();
  while (wanted.length > 0) {
    const name = wanted.pop();
    if (seen.has(name)) continue;
    seen.add(name);
    const from = path.join(ROOT, 'node_modules', name);
    fs.cpSync(fs.realpathSync(from), path.join(target, name), {
      recursive: true,
      filter: (file) => !NOT_RUN.test(path.basename(file)),
    });
    wanted.push(...Object.keys(require(path.join(from, 'package.json')).dependencies ?? {}));
  }
}

function commit() {
  const git = (...args) => execFileSync('git', ['-C', ROOT, ...args], { encoding: 'utf8' }).trim();
  const clean = git('status', '--porcelain', '--untracked-files=no') === '';
  return `${git('rev-parse', 'HEAD')}${clean ? '' : ' with local changes'}`;
}

function main(args) {
  const withData = args.includes('--with-data');
  const build = !args.includes('--no-build');
  const at = args.indexOf('--out');
  const out = path.resolve(at < 0 ? path.join(ROOT, '.bundle') : args[at + 1]);
  const archs = process.env.NODE_MLA_CUDA_ARCHS ?? '90-real';
  const app = fs.mkdtempSync(path.join(os.tmpdir(), 'node-mla-bundle-'));
  try {
    compile(app);
    packAddon(path.join(app, 'build', 'Release', 'node_mla.node'), archs, build);
    packPrograms(path.join(app, 'build', 'programs'), build);
    packPackages(path.join(app, 'node_modules'));
    fs.copyFileSync(path.join(ROOT, 'package.json'), path.join(app, 'package.json'));
    fs.writeFileSync(path.join(app, 'commit.txt'), `${commit()}\n`); // lib/bench/circumstances.ts puts it into records
    fs.cpSync(path.join(ROOT, 'bench'), path.join(app, 'bench'), { recursive: true });
    fs.mkdirSync(path.join(app, 'scripts'));
    fs.copyFileSync(path.join(__dirname, 'gpu-bench.cjs'), path.join(app, 'scripts', 'gpu-bench.cjs'));
    fs.rmSync(out, { recursive: true, force: true });
    fs.mkdirSync(out, { recursive: true });
    run('tar', ['-C', app, '--owner=0', '--group=0', '-cJf', path.join(out, 'app.tar.xz'), '.']);
    packNode(path.join(out, 'node.xz'));
    if (withData) run('tar', ['-cJf', path.join(out, 'data.tar.xz'), 'test/golden', 'models/kjv-10m']);
    fs.copyFileSync(path.join(__dirname, 'gpu-run.sh'), path.join(out, 'gpu-run.sh'));
    const files = Object.fromEntries(fs.readdirSync(out).map((f) => [f, fs.statSync(path.join(out, f)).size]));
    const about = { commit: commit(), node: process.version, archs, made: new Date().toISOString(), files };
    fs.writeFileSync(path.join(out, 'bundle.json'), `${JSON.stringify(about, null, 2)}\n`);
    const total = Object.values(files).reduce((sum, bytes) => sum + bytes, 0);
    for (const [file, bytes] of Object.entries(files)) console.log(`${mib(bytes).padStart(10)}  ${file}`);
    console.log(`gpu-bundle: ${path.relative(process.cwd(), out)}, ${mib(total)}`);
    if (total > MOST_BYTES) throw new Error(`the bundle is larger than ${mib(MOST_BYTES)}`);
    return 0;
  } finally {
    fs.rmSync(app, { recursive: true, force: true });
  }
}

try {
  process.exitCode = main(process.argv.slice(2));
} catch (error) {
  console.error(`gpu-bundle: ${error.message}`);
  process.exitCode = 1;
}
