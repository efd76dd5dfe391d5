// check-layers.cjs - imports point down only; docs/architecture.md draws the picture.
//
//   node scripts/check-layers.cjs
//
// An import may skip layers downwards, never go up and never go sideways between folders of one layer. A folder that
// is in no list is refused, so that a new one is a decision.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const ts = require('typescript');

/** lib/, from the bottom. `index.ts` is the public entry; the names beside each other do not know each other. */
const LIB_LAYERS = [
  ['errors', 'files'],
  ['native'],
  ['cache', 'checkpoint'],
  ['hub', 'model', 'text'],
  ['engine'],
  ['index.ts'],
  ['cli', 'bench', 'server'],
];

/** The one arrow that goes sideways: `mla bench` is a command like the others. */
const LIB_EXTRA = new Set(['cli -> bench', 'cli -> server']);

/** Who may use fs/promises; lib/files says why not all. A command's process ends with it: nobody terminates its thread. */
const MAY_PROMISE_FILES = new Set(['cli', 'files']);
const throughFiles = (from, said) => `${from} reads and writes files through lib/files, this says ${said}`;

/** csrc/: what each folder may include besides itself. Backends are reached through the interface in ops/ alone. */
const CSRC_MAY_INCLUDE = {
  common: [],
  ops: ['common'],
  cpu: ['common', 'ops'],
  cuda: ['common', 'ops'],
  runtime: ['common', 'ops'],
  addon: ['common', 'ops', 'runtime'],
};

/** System headers that only one folder may see. */
const CSRC_OWN_HEADERS = [
  { pattern: /^(napi|node_api|js_native_api|node|uv)(\.h|\/)/, owner: 'addon' },
  { pattern: /^(cuda|cuda_\w+|cudaTypedefs|curand\w*|cooperative_groups|nvtx3\/\w+)(\.h|\/|$)/, owner: 'cuda' },
];

function sourceFiles(dir, extension) {
  if (!fs.existsSync(dir)) return [];
  return fs
    .readdirSync(dir, { recursive: true })
    .filter((file) => extension.test(file))
    .sort();
}

/** 'engine/queue.ts' -> 'engine', 'index.ts' -> 'index.ts'. */
const folderOf = (file) => file.split(path.sep)[0];
const lineOf = (text, position) => text.slice(0, position).split('\n').length;

/** The file below lib/ that a relative import names, without its extension resolved; null for packages. */
function importTarget(file, specifier) {
  if (!specifier.startsWith('.')) return null;
  return path.normalize(path.join(path.dirname(file), specifier)).replace(/\.(js|ts)$/, '');
}

function checkLib(root) {
  const lib = path.join(root, 'lib');
  const rank = new Map(LIB_LAYERS.flatMap((names, i) => names.map((name) => [name, i])));
  const problems = [];
  for (const file of sourceFiles(lib, /\.ts$/)) {
    const text = fs.readFileSync(path.join(lib, file), 'utf8');
    const from = folderOf(file);
    const say = (position, what) => problems.push(`lib/${file}:${lineOf(text, position)}: ${what}`);
    if (!rank.has(from)) {
      say(0, `"${from}" is in no layer; put the file into a folder of the list in scripts/check-layers.cjs`);
      continue;
    }
    for (const { fileName, pos } of ts.preProcessFile(text, true, true).importedFiles) {
      if (from !== 'native' && (fileName === 'node-gyp-build' || fileName.endsWith('.node')))
        say(pos, `only lib/native loads the addon, this imports ${fileName}`);
      if (/^(node:)?fs\/promises$/.test(fileName) && !MAY_PROMISE_FILES.has(from))
        say(pos, throughFiles(from, fileName));
      const target = importTarget(file, fileName);
      if (target === null) continue;
      if (target.startsWith('..')) {
        if (target !== path.join('..', 'package.json') && target !== path.join('..', 'package'))
          say(pos, `${fileName} is outside lib/`);
        continue;
      }
      const to = target === 'index' || target === '.' ? 'index.ts' : folderOf(target);
      if (to === from) continue;
      if (!rank.has(to)) say(pos, `imports ${fileName}: "${to}" is in no layer`);
      else if (rank.get(to) > rank.get(from)) say(pos, `${from} must not import ${to}, which stands above it`);
      else if (rank.get(to) === rank.get(from) && !LIB_EXTRA.has(`${from} -> ${to}`))
        say(pos, `${from} must not import ${to}, which stands beside it`);
    }
    const promises = /\bfs\.promises\b/.exec(text);
    if (promises && !MAY_PROMISE_FILES.has(from)) say(promises.index, throughFiles(from, promises[0]));
    const dlopen = /process\.dlopen|['"`][^'"`\n]*\.node['"`]/.exec(text);
    if (dlopen && from !== 'native') say(dlopen.index, `only lib/native loads the addon, this says ${dlopen[0]}`);
  }
  return problems;
}

function checkCsrc(root) {
  const csrc = path.join(root, 'csrc');
  const problems = [];
  for (const file of sourceFiles(csrc, /\.(h|hpp|c|cc|cpp|cu|cuh)$/)) {
    const text = fs.readFileSync(path.join(csrc, file), 'utf8');
    const from = folderOf(file);
    const say = (position, what) => problems.push(`csrc/${file}:${lineOf(text, position)}: ${what}`);
    const allowed = CSRC_MAY_INCLUDE[from];
    if (allowed === undefined) {
      say(0, `"${from}" is in no layer; put the file into a folder of the list in scripts/check-layers.cjs`);
      continue;
    }
    for (const match of text.matchAll(/^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]/gm)) {
      const header = match[2];
      const foreign = CSRC_OWN_HEADERS.find(({ pattern, owner }) => pattern.test(header) && owner !== from);
      if (foreign) say(match.index, `only csrc/${foreign.owner} includes <${header}>`);
      if (match[1] === '<') continue;
      // Quoted includes are searched beside the file first, then from csrc/.
      const beside = path.normalize(path.join(path.dirname(file), header));
      const target =
        !beside.startsWith('..') && fs.existsSync(path.join(csrc, beside)) ? beside : path.normalize(header);
      if (!fs.existsSync(path.join(csrc, target)))
        say(match.index, `"${header}" is neither beside the file nor in csrc/`);
      const to = folderOf(target);
      if (to !== from && CSRC_MAY_INCLUDE[to] !== undefined && !allowed.includes(to))
        say(match.index, `${from} must not include ${to}; it may include ${[...allowed, from].join(', ')}`);
    }
  }
  return problems;
}

/** All arrows that point up or sideways in the tree at `root`, one line each; empty when all is well. */
function checkLayers(root) {
  return [...checkLib(root), ...checkCsrc(root)];
}

module.exports = { checkLayers };
if (require.main === module) {
  const problems = checkLayers(path.resolve(__dirname, '..'));
  for (const problem of problems) console.error(problem);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
