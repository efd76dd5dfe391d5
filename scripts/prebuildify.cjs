// prebuildify.cjs - makes prebuilds/linux-x64/node-mla.glibc.node, the binary that is published.
//
//   npm run prebuildify
//
// Environment: NODE_MLA_CUDA (default ON: without nvcc it fails instead of publishing a binary for the CPU alone).
//
// prebuildify moves the .node out of build/Release and strips it there, so it works on a copy of the sources in
// .build/prebuild; the checkout that tests run in keeps its build. The copy stays: the next run compiles only what
// changed. prebuildify is told to call build-native.cjs instead of node-gyp: then neither Python nor Node's headers are
// needed.
'use strict';
const { execFileSync, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const { seal, withLock } = require('./build-native.cjs');

const ROOT = path.resolve(__dirname, '..');
const SOURCES = ['csrc', 'CMakeLists.txt', 'binding.gyp', 'package.json', 'scripts'];
/** The newest glibc symbol the binary may need: Debian 12, Ubuntu 22.04, RHEL 9. */
const GLIBC = [2, 34];
/** The only libraries a user's machine must have. */
const LIBRARIES = /^(libc\.so\.6|libm\.so\.6|libgcc_s\.so\.1|ld-linux-x86-64\.so\.2)$/;

function fail(text) {
  throw new Error(text);
}

/**
 * What the published binary must have machine code for; a GPU of the same major version and newer runs it too.
 * 90a-real are the kernels written for Hopper, 90-real the portable ones there.
 */
const ARCHS = ['80-real', '90-real', '90a-real', '100-real', '120-real', '120-virtual'];

/** Reads the binary's needs out of its ELF headers and refuses what a supported machine may lack. */
function inspect(file) {
  const dump = execFileSync('objdump', ['-p', file], { encoding: 'utf8' });
  const libraries = [...dump.matchAll(/NEEDED\s+(\S+)/g)].map(([, name]) => name);
  for (const name of libraries)
    if (!LIBRARIES.test(name)) fail(`${path.basename(file)} needs ${name}, which users may not have.`);
  const versions = [...dump.matchAll(/GLIBC_(\d+)\.(\d+)/g)].map(([, major, minor]) => [+major, +minor]);
  const [major, minor] = versions.sort((a, b) => a[0] - b[0] || a[1] - b[1]).at(-1) ?? [0, 0];
  if (major > GLIBC[0] || (major === GLIBC[0] && minor > GLIBC[1]))
    fail(`${path.basename(file)} needs GLIBC_${major}.${minor}; the README promises ${GLIBC.join('.')}.`);
  console.log(`prebuildify: needs ${libraries.join(', ')}, and GLIBC_${major}.${minor} at most`);
}

/** Loads the binary the way a user's process does, and asks what is in it. */
function tryLoad(file, cuda) {
  const code = `console.log(JSON.stringify(require(${JSON.stringify(file)}).build()))`;
  const run = spawnSync(process.execPath, ['-e', code], { encoding: 'utf8' });
  if (run.status !== 0) fail(`${path.basename(file)} does not load:\n${run.stderr}`);
  const build = JSON.parse(run.stdout);
  const archs = build.archs.split(' ');
  const missing = ARCHS.filter((arch) => !archs.includes(arch));
  if (cuda && missing.length > 0) fail(`${path.basename(file)} has no code for ${missing.join(', ')}.`);
  console.log(`prebuildify: version ${build.version}, ${build.cuda ? `CUDA for ${archs.join(' ')}` : 'no CUDA'}`);
}

/** Makes `copy` hold the sources as they are now; what an earlier build left in its own .build/ stays. */
function refresh(copy) {
  fs.mkdirSync(copy, { recursive: true });
  for (const name of [...SOURCES, 'build', 'prebuilds', 'node_modules'])
    fs.rmSync(path.join(copy, name), { recursive: true, force: true });
  for (const name of SOURCES)
    fs.cpSync(path.join(ROOT, name), path.join(copy, name), { recursive: true, preserveTimestamps: true });
  fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(copy, 'node_modules'));
}

function prebuild(copy) {
  refresh(copy);
  const env = { ...process.env, NODE_MLA_CUDA: process.env.NODE_MLA_CUDA ?? 'ON' };
  delete env.NODE_MLA_CUDA_ARCHS; // would go elsewhere, with less in it
  // prebuildify starts its node-gyp with node-gyp's own arguments, which build-native.cjs need not know.
  const builder = path.join(copy, 'node-gyp');
  fs.writeFileSync(builder, '#!/bin/sh\nexec node scripts/build-native.cjs Release\n', { mode: 0o755 });
  const run = spawnSync(
    process.execPath,
    [require.resolve('prebuildify/bin.js', { paths: [ROOT] }), '--napi', '--strip', '--tag-libc', `--cwd=${copy}`],
    { cwd: copy, stdio: ['ignore', 'inherit', 'inherit'], env: { ...env, PREBUILD_NODE_GYP: builder } },
  );
  if (run.status !== 0) fail('prebuildify failed (above).');
  const built = path.join(copy, 'prebuilds', `${process.platform}-${process.arch}`);
  const target = path.join(ROOT, 'prebuilds', path.basename(built));
  const files = fs.readdirSync(built).filter((name) => name.endsWith('.node'));
  if (files.length !== 1) fail(`expected one .node in ${built}, found ${files.length}.`);
  const file = path.join(built, files[0]);
  seal(file); // prebuildify's strip has cut off the digest that the loader asks for
  inspect(file);
  tryLoad(file, env.NODE_MLA_CUDA !== 'OFF');
  fs.rmSync(target, { recursive: true, force: true });
  fs.cpSync(built, target, { recursive: true });
  const published = path.join(target, files[0]);
  console.log(`prebuildify: ${path.relative(ROOT, published)}, ${(fs.statSync(published).size / 1e6).toFixed(2)} MB`);
}

function main() {
  const copy = path.join(ROOT, '.build', 'prebuild');
  try {
    withLock(copy, () => prebuild(copy));
    return 0;
  } catch (error) {
    console.error(`prebuildify: ${error.message}`);
    return 1;
  }
}

module.exports = { inspect, tryLoad };
if (require.main === module) process.exitCode = main();
