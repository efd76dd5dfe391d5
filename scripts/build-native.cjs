// build-native.cjs - builds the native addon with plain CMake into build/Release (or build/Debug)/node_mla.node.
//
//   node scripts/build-native.cjs [Release|Debug]
//
// Environment: NODE_MLA_CUDA=auto|ON|OFF (CUDA kernels), NODE_MLA_SANITIZE=ON (the result goes to
// .build/sanitize/build/Release instead), NODE_MLA_CUDA_ARCHS=90-real and the like (kernels for these GPUs only, in a
// fraction of the time; the result goes to .build/archs/build/Release), CMAKE_BUILD_PARALLEL_LEVEL (compilers at once;
// all cores by default).
//
// CMake works in .build/, because npm and node-gyp empty build/; so a second run compiles only what changed.
'use strict';
const { spawnSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const ROOT = path.resolve(__dirname, '..');
const WORK = path.join(ROOT, '.build');
const LOCK_POLL_MS = 250;
/** The last 40 bytes of a sealed .node are this and the SHA-256 of everything before. */
const SEAL_MAGIC = 'MLASEAL1';

class BuildError extends Error {}

/** Runs a program with its output on ours. */
function run(program, args, env) {
  const result = spawnSync(program, args, { cwd: ROOT, stdio: 'inherit', env });
  if (result.error?.code === 'ENOENT') {
    throw new BuildError(
      `"${program}" was not found. Building node-mla needs CMake 3.24 or newer and a C++20 compiler (g++ 11 or newer);` +
        ' on Debian and Ubuntu: apt-get install cmake g++',
    );
  }
  if (result.error) throw result.error;
  if (result.status !== 0) throw new BuildError(`${program} ${args[0]} failed (its messages are above).`);
}

/** The first of these programs that can be started, or undefined. */
function firstOf(programs) {
  return programs.find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0);
}

/** A compiler is what people lack most often; CMake's own message about it is a page long. */
function requireCompiler(env) {
  if (env.CXX || firstOf(['c++', 'g++', 'clang++'])) return;
  throw new BuildError(
    'no C++ compiler was found; node-mla needs g++ 11 or newer. On Debian and Ubuntu: apt-get install g++',
  );
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

/** Two builds in one folder would spoil each other: the second waits. */
function withLock(folder, body) {
  fs.mkdirSync(WORK, { recursive: true });
  const lock = path.join(WORK, `${path.basename(folder)}.lock`);
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  for (;;) {
    try {
      fs.writeFileSync(lock, String(process.pid), { flag: 'wx' });
      break;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
      let holder = 0;
      try {
        holder = Number(fs.readFileSync(lock, 'utf8'));
      } catch {}
      if (holder > 0 && !isAlive(holder)) fs.rmSync(lock, { force: true });
      else Atomics.wait(sleeper, 0, 0, LOCK_POLL_MS);
    }
  }
  try {
    return body();
  } finally {
    fs.rmSync(lock, { force: true });
  }
}

/**
 * Appends the digest that lib/native/load.ts checks, so that a damaged or truncated file is refused before it is
 * mapped. The system's loader ignores what follows the ELF image; `strip` cuts it off, so sealing comes after it.
 */
function seal(file) {
  const content = fs.readFileSync(file);
  const at = content.length - SEAL_MAGIC.length - 32;
  const sealed = at >= 0 && content.toString('latin1', at, at + SEAL_MAGIC.length) === SEAL_MAGIC;
  const body = sealed ? content.subarray(0, at) : content;
  const digest = createHash('sha256').update(body).digest();
  fs.writeFileSync(file, Buffer.concat([body, Buffer.from(SEAL_MAGIC, 'latin1'), digest]));
}

/** Puts a finished .node in place in one step: a process that has the old one mapped keeps it. */
function install(built, target) {
  fs.mkdirSync(path.dirname(target), { recursive: true });
  const next = `${target}.${process.pid}.next`;
  fs.copyFileSync(built, next);
  seal(next);
  if (fs.existsSync(target) && fs.readFileSync(target).equals(fs.readFileSync(next))) fs.rmSync(next);
  else fs.renameSync(next, target);
}

/** What the command line and the environment ask for. */
function readOptions(config) {
  if (!['Release', 'Debug'].includes(config)) throw new BuildError(`expected Release or Debug, got "${config}".`);
  const cuda = process.env.NODE_MLA_CUDA ?? 'auto';
  if (!['auto', 'ON', 'OFF'].includes(cuda))
    throw new BuildError(`NODE_MLA_CUDA must be auto, ON or OFF; got "${cuda}".`);
  const archs = process.env.NODE_MLA_CUDA_ARCHS ?? '';
  if (!/^(\d+[af]?(-real|-virtual)?(;|$))*$/.test(archs))
    throw new BuildError(`NODE_MLA_CUDA_ARCHS must be a list like 80-real;90-real; got "${archs}".`);
  const env = { ...process.env };
  env.CMAKE_BUILD_PARALLEL_LEVEL ??= String(os.availableParallelism());
  requireCompiler(env);
  const sanitize = env.NODE_MLA_SANITIZE === 'ON';
  const variant = `${sanitize ? '-sanitize' : ''}${archs === '' ? '' : '-archs'}`;
  const folder = path.join(WORK, `cmake-${config.toLowerCase()}${variant}`);
  return { config, cuda, archs, sanitize, env, folder };
}

function build({ config, cuda, archs, sanitize, env, folder }) {
  const { version } = require(path.join(ROOT, 'package.json'));
  const configure = [
    `-S${ROOT}`,
    `-B${folder}`,
    `-DCMAKE_BUILD_TYPE=${config}`,
    `-DNODE_MLA_CUDA=${cuda}`,
    `-DNODE_MLA_SANITIZE=${sanitize ? 'ON' : 'OFF'}`,
    `-DNODE_MLA_PACKAGE_VERSION=${version}`,
    ...(archs === '' ? [] : [`-DNODE_MLA_CUDA_ARCHS=${archs}`, `-DCMAKE_CUDA_ARCHITECTURES=${archs}`]),
    '-Wno-dev',
  ];
  // A generator cannot be changed in an existing folder, so it is chosen once.
  if (!fs.existsSync(path.join(folder, 'CMakeCache.txt')) && !env.CMAKE_GENERATOR && firstOf(['ninja'])) {
    configure.push('-GNinja');
  }
  run('cmake', configure, env);
  run('cmake', ['--build', folder], env);
  const place = sanitize ? path.join(WORK, 'sanitize') : archs !== '' ? path.join(WORK, 'archs') : ROOT;
  const target = path.join(place, 'build', place === ROOT ? config : 'Release', 'node_mla.node');
  install(path.join(folder, 'node_mla.node'), target);
  console.log(`build-native: ${path.relative(ROOT, target)}, ${(fs.statSync(target).size / 1e6).toFixed(2)} MB`);
}

function main(config = 'Release') {
  try {
    const options = readOptions(config);
    withLock(options.folder, () => build(options));
    return 0;
  } catch (error) {
    if (!(error instanceof BuildError)) throw error;
    console.error(`build-native: ${error.message}`);
    return 1;
  }
}

module.exports = { seal, withLock };
if (require.main === module) process.exitCode = main(process.argv[2]);
