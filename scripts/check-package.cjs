// check-package.cjs - the package as strangers get it: packed, linted, installed without scripts into an empty folder,
// and used there.
//
//   npm run check:package [-- --tarball FILE] [--without-cuda]
//
//   --tarball FILE    check this one instead of packing
//   --without-cuda    accept a prebuilt binary without CUDA kernels: tries the script where nvcc is missing
//
// Packing needs dist/ (npm run build) and the prebuilt binary (npm run prebuildify). Dependencies come from the npm
// registry that is set up. The last line says how long install and first text took; above LIMIT_SECONDS it fails.
'use strict';
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { pathToFileURL } = require('node:url');

const ROOT = path.resolve(__dirname, '..');
const MOST_BYTES = 40e6;
const LIMIT_SECONDS = 60;
const PROMPT = 'In the beginning';

/** How users resolve modules, and which of their files does it. */
const RESOLUTIONS = [
  { module: 'node16', moduleResolution: 'node16', files: ['use.mts', 'use.cts'] },
  { module: 'nodenext', moduleResolution: 'nodenext', files: ['use.mts', 'use.cts'] },
  { module: 'esnext', moduleResolution: 'bundler', files: ['use.mts'] },
];
const USE = `const load = async (): Promise<string> => {
  const model: Model = await loadModel(undefined, { device: 'cpu', context: 256 });
  const { text } = await model.generate('x', { maxTokens: 4 }).result;
  await model.dispose();
  return text;
};
const isOurs = (error: unknown): boolean => error instanceof MlaError && error.code === 'ERR_FILE';
export = { load, isOurs };
`;

class CheckFailed extends Error {}

function run(program, args, options = {}) {
  const result = spawnSync(program, args, { encoding: 'utf8', ...options });
  if (result.error) throw result.error;
  if (result.status !== 0)
    throw new CheckFailed(
      `${program} ${args.join(' ')} ended with ${result.status}:\n${result.stdout}${result.stderr}`,
    );
  return result.stdout;
}

const mb = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const say = (text) => console.log(`check-package: ${text}`);

function pack(folder) {
  const args = ['pack', '--json', '--ignore-scripts', '--loglevel=error', `--pack-destination=${folder}`];
  const [packed] = JSON.parse(run('npm', args, { cwd: ROOT }));
  return path.join(folder, packed.filename);
}

function checkSize(tarball) {
  const { size } = fs.statSync(tarball);
  const names = run('tar', ['-tzf', tarball]).trim().split('\n');
  const binaries = names.filter((name) => name.endsWith('.node'));
  if (binaries.length === 0)
    throw new CheckFailed('there is no prebuilt binary in it; run "npm run prebuildify" first');
  if (size > MOST_BYTES) throw new CheckFailed(`${mb(size)} packed, at most ${mb(MOST_BYTES)} are allowed`);
  say(`${path.basename(tarball)}, ${mb(size)}, ${names.length} files, ${binaries.join(' ')}`);
}

/** Entry points and types as linters of packages see them. */
async function lint(tarball) {
  const load = (name) => import(pathToFileURL(require.resolve(name, { paths: [ROOT] })).href);
  const { publint } = await load('publint');
  const { formatMessage } = await load('publint/utils');
  const bytes = fs.readFileSync(tarball);
  const tar = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  const { messages, pkg } = await publint({ pack: { tarball: tar }, strict: true });
  const found = messages.filter(({ type }) => type !== 'suggestion');
  if (found.length > 0) throw new CheckFailed(`publint: ${found.map((m) => formatMessage(m, pkg)).join('; ')}`);
  const { checkPackage, createPackageFromTarballData } = await import(
    pathToFileURL(path.join(ROOT, 'node_modules', '@arethetypeswrong', 'core', 'dist', 'index.js')).href
  );
  const { problems = [], types } = await checkPackage(createPackageFromTarballData(new Uint8Array(bytes)));
  if (types === false) throw new CheckFailed('are the types wrong: the package has no types');
  if (problems.length > 0) throw new CheckFailed(`are the types wrong: ${JSON.stringify(problems)}`);
  say(`publint and are-the-types-wrong find nothing${messages.length > 0 ? ` (${messages.length} suggestions)` : ''}`);
}

/** The two lines of a newcomer, in an empty folder, with scripts switched off. */
function install(folder, tarball) {
  fs.writeFileSync(path.join(folder, 'package.json'), '{ "name": "consumer", "version": "1.0.0", "private": true }\n');
  const began = performance.now();
  run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', tarball], { cwd: folder });
  const installed = performance.now();
  const text = run('npx', ['mla', 'generate', '-p', PROMPT, '-n', '16'], { cwd: folder });
  if (text.trim() === '') throw new CheckFailed('mla generate printed nothing');
  const seconds = (performance.now() - began) / 1000;
  say(`"${PROMPT}" is followed by "${text.trim().slice(0, 60)}"`);
  return { seconds, installSeconds: (installed - began) / 1000 };
}

function checkBinary(folder, cuda) {
  const doctor = JSON.parse(run('npx', ['mla', 'doctor', '--json'], { cwd: folder }));
  if (doctor.addon.origin !== 'prebuilt')
    throw new CheckFailed(`the addon was ${doctor.addon.origin}, expected prebuilt`);
  if (cuda && !doctor.addon.cuda) throw new CheckFailed('the prebuilt binary has no CUDA kernels');
  const libraries = run('ldd', [doctor.addon.file]);
  const strange = libraries.match(/\S*(?:cuda|cublas|cudnn|nvrtc|stdc\+\+)\S*/);
  if (strange !== null) throw new CheckFailed(`the addon wants ${strange[0]}`);
  const names = [...libraries.matchAll(/^\s*(\S+?\.so\S*|linux-vdso\S*)/gm)].map(([, name]) => path.basename(name));
  say(
    `the addon (${mb(fs.statSync(doctor.addon.file).size)}; ${doctor.addon.archs.join(' ') || 'no CUDA'}) asks for ${names.join(', ')}`,
  );
}

function checkModules(folder) {
  const code = "typeof loadModel + ' ' + new MlaError('ERR_FILE', 'x').code";
  const required = `const { loadModel, MlaError } = require('node-mla'); console.log(${code})`;
  const imported = `import { loadModel, MlaError } from 'node-mla'; console.log(${code})`;
  for (const args of [
    ['-e', required],
    ['--input-type=module', '-e', imported],
  ]) {
    const out = run(process.execPath, args, { cwd: folder }).trim();
    if (out !== 'function ERR_FILE') throw new CheckFailed(`${args.join(' ')} printed "${out}"`);
  }
  say('require and import give the same');
}

function checkTypes(folder) {
  fs.writeFileSync(path.join(folder, 'use.cts'), `import { loadModel, MlaError, type Model } from 'node-mla';\n${USE}`);
  const asModule = USE.replace('export =', 'export default');
  fs.writeFileSync(
    path.join(folder, 'use.mts'),
    `import { loadModel, MlaError, type Model } from 'node-mla';\n${asModule}`,
  );
  const tsc = require.resolve('typescript/bin/tsc', { paths: [ROOT] });
  for (const { files, ...options } of RESOLUTIONS) {
    const compilerOptions = {
      ...options,
      target: 'es2022',
      lib: ['es2023', 'esnext.disposable'],
      strict: true,
      exactOptionalPropertyTypes: true,
      noEmit: true,
      types: ['node'],
      typeRoots: [path.join(ROOT, 'node_modules', '@types')],
    };
    fs.writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files }));
    run(process.execPath, [tsc, '-p', folder], { cwd: folder });
  }
  say(`types resolve by ${RESOLUTIONS.map(({ moduleResolution }) => moduleResolution).join(', ')}`);
}

async function main(args) {
  const at = args.indexOf('--tarball');
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'node-mla-package-'));
  try {
    const tarball = at < 0 ? pack(work) : path.resolve(args[at + 1]);
    checkSize(tarball);
    await lint(tarball);
    const folder = path.join(work, 'consumer');
    fs.mkdirSync(folder);
    const { seconds, installSeconds } = install(folder, tarball);
    checkBinary(folder, !args.includes('--without-cuda'));
    checkModules(folder);
    checkTypes(folder);
    say(`from nothing to text in ${seconds.toFixed(1)} s, ${installSeconds.toFixed(1)} s of it npm install`);
    if (seconds > LIMIT_SECONDS) throw new CheckFailed(`at most ${LIMIT_SECONDS} s are allowed`);
    return 0;
  } catch (error) {
    if (!(error instanceof CheckFailed)) throw error;
    console.error(`check-package: ${error.message}`);
    return 1;
  } finally {
    fs.rmSync(work, { recursive: true, force: true });
  }
}

main(process.argv.slice(2)).then((code) => {
  process.exitCode = code;
});
