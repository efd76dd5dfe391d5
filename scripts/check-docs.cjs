// check-docs.cjs - what the *.md files name must exist: paths, links, npm scripts, mla commands and flags, environment
// variables, error codes, and identifiers of the code.
//
//   node scripts/check-docs.cjs
//
// Only code is looked at (between backticks, and code blocks), except for links and error codes. In CHANGELOG.md only
// the first section counts: the others speak of versions that are gone.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const ts = require('typescript');
const { treeFiles } = require('./check-shape.cjs');

/** Made by a build, so absent from a fresh checkout. */
const GENERATED = /^(build|prebuilds|models\/build|docs\/api|coverage|node_modules)(\/|$)/;
const SOURCE_NAME = /^[\w.-]+\.(ts|cts|mts|cjs|h|cc|cu|cuh|gyp|md|sh)$/;
const SHELL = new Set(['', 'sh', 'bash', 'shell', 'console', 'text']);
/** Variables that belong to the system or to other programs. */
const FOREIGN_VARIABLES = new Set([
  'CI',
  'PATH',
  'HOME',
  'CUDACXX',
  'CUDA_VISIBLE_DEVICES',
  'CUDA_DISABLE_PTX_JIT',
  'NODE_OPTIONS',
  'NO_COLOR',
]);
/** What commander adds by itself. */
const GIVEN_FLAGS = ['--help', '-h'];

/** Code in a Markdown text: [{ text, line, lang }], lang null for code between backticks. */
function codeIn(markdown) {
  const found = [];
  let fence = null;
  markdown.split('\n').forEach((line, i) => {
    const mark = /^\s*(`{3,}|~{3,})\s*([\w-]*)/.exec(line);
    if (fence !== null) {
      if (mark?.[1].startsWith(fence.mark)) {
        found.push({ text: fence.lines.join('\n'), line: fence.line, lang: fence.lang });
        fence = null;
      } else fence.lines.push(line);
    } else if (mark !== null) fence = { mark: mark[1], lang: mark[2], line: i + 2, lines: [] };
    else
      for (const inline of line.matchAll(/(`+)(.+?)\1(?!`)/g))
        found.push({ text: inline[2].trim(), line: i + 1, lang: null });
  });
  return found;
}

/** String literals of a TypeScript file; comments and names do not count as what a program accepts. */
function stringsIn(file) {
  const strings = [];
  const visit = (node) => {
    if (ts.isStringLiteralLike(node) || ts.isTemplateHead(node) || ts.isTemplateMiddleOrTemplateTail(node))
      strings.push(node.text);
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile(file, fs.readFileSync(file, 'utf8'), ts.ScriptTarget.ES2022, true));
  return strings;
}

/** What exists in the tree, gathered once. */
function gather(root) {
  const files = treeFiles(root);
  const read = (file) => fs.readFileSync(path.join(root, file), 'utf8');
  const matching = (pattern) => files.filter((file) => pattern.test(file));
  const cli = matching(/^lib\/(cli|bench|server)\/.*\.ts$/);
  const words = new Set();
  for (const file of matching(
    /^(lib|csrc|test|scripts|examples|bench|models)\/.*\.(ts|cjs|mjs|h|cc|cu|cuh|py|json)$|^[^/]+\.(json|cjs|txt|gyp)$|^\.ci\/run$/,
  ))
    if (fs.statSync(path.join(root, file)).size < 300_000)
      for (const [word] of read(file).matchAll(/[A-Za-z_]\w*/g)) words.add(word);
  const commands = new Set(['help']);
  for (const file of cli)
    for (const match of read(file).matchAll(/(?:\.command|new Command|\.alias|\bname:)\s*\(?\s*['"`]([a-z][\w-]*)/g))
      commands.add(match[1]);
  const flags = new Set(GIVEN_FLAGS);
  for (const file of cli)
    for (const text of stringsIn(path.join(root, file)))
      for (const match of text.matchAll(/(?<![\w-])(--[a-z][\w-]*|-[A-Za-z])(?![\w-])/g)) flags.add(match[1]);
  const scriptFlags = new Set();
  for (const file of matching(/^scripts\/.*\.cjs$|^bench\/.*\.(ts|cjs|mjs)$|^(test|models)\/.*\.py$/))
    for (const match of read(file).matchAll(/(?<![\w-])--[a-z][\w-]*/g)) scriptFlags.add(match[0]);
  const errors = new Set(
    matching(/^lib\/errors\/.*\.ts$/).flatMap((file) => read(file).match(/\bERR_[A-Z0-9_]+\b/g) ?? []),
  );
  const folders = new Set(files.flatMap((file) => file.split('/').map((_, i, parts) => parts.slice(0, i).join('/'))));
  return {
    files: new Set(files),
    folders,
    names: new Set(files.map((file) => path.posix.basename(file))),
    top: new Set([...files.map((file) => file.split('/')[0]), 'dist', 'build', 'prebuilds']),
    scripts: JSON.parse(read('package.json')).scripts ?? {},
    words,
    commands,
    flags,
    scriptFlags,
    errors,
  };
}

/** 'a/{b,c}' -> ['a/b', 'a/c']. */
function expandBraces(token) {
  const match = /\{([^{}]+)\}/.exec(token);
  if (match === null) return [token];
  return match[1].split(',').flatMap((part) => expandBraces(token.replace(match[0], part)));
}

function pathExists(tree, token) {
  const wanted = token.replace(/^dist\/(.*)\.(?:d\.ts|js)$/, 'lib/$1.ts').replace(/\/$/, '');
  if (wanted === 'dist' || GENERATED.test(wanted)) return true;
  if (!/[*<]/.test(wanted)) return tree.files.has(wanted) || tree.folders.has(wanted);
  const source = wanted.replace(/[.+?^$()|[\]\\]/g, '\\$&').replace(/<[^>]*>|\*+/g, '[^/]*');
  const pattern = new RegExp(`^${source}$`);
  return [...tree.files, ...tree.folders].some((file) => pattern.test(file));
}

function checkPaths(tree, code, say) {
  for (const raw of code.text.split(/[\s'"`(),;|=]+(?![^{]*\})/)) {
    const token = raw
      .replace(/^\.\//, '')
      .replace(/[.:]+$/, '')
      .replace(/:\d+$/, '');
    if (token.includes('://') || token.startsWith('/') || token.startsWith('@')) continue;
    if (token.includes('/')) {
      if (!tree.top.has(token.split('/')[0])) continue;
      for (const file of expandBraces(token)) if (!pathExists(tree, file)) say(`the path ${file} does not exist`);
    } else if (code.lang === null && SOURCE_NAME.test(token) && !tree.names.has(token))
      say(`no file is called ${token}`);
  }
}

function checkCommands(root, tree, code, say) {
  for (const match of code.text.matchAll(/\bnpm (?:run|run-script) ([\w:.-]+)/g))
    if (!Object.hasOwn(tree.scripts, match[1])) say(`package.json has no script "${match[1]}"`);
  for (const match of code.text.matchAll(/\bnpm (test|start|stop|restart)\b/g))
    if (!Object.hasOwn(tree.scripts, match[1])) say(`package.json has no script "${match[1]}"`);
  if (code.lang !== null && !SHELL.has(code.lang)) return;
  for (const match of code.text.matchAll(/\bnpx (?!mla\b)([\w-]+)/g))
    if (!fs.existsSync(path.join(root, 'node_modules', '.bin', match[1])))
      say(`npx ${match[1]}: no package here has that command`);
  for (const line of code.text.replace(/\\\n/g, ' ').split('\n')) {
    const match = /(?:^|[\s(&|])mla\s+(.*)$/.exec(line);
    if (match === null) continue;
    const args = match[1].split(/\s[|&>#]/)[0].replace(/"[^"]*"|'[^']*'/g, 'TEXT');
    const command = /^([a-z][\w-]*)/.exec(args);
    if (command !== null && !tree.commands.has(command[1])) say(`mla has no command "${command[1]}"`);
    for (const [flag] of args.matchAll(/(?<=^|\s)(--[a-z][\w-]*|-[A-Za-z])(?=$|[\s=])/g))
      if (!tree.flags.has(flag)) say(`mla has no flag ${flag}`);
  }
  const bare = code.lang === null && /^(--[a-z][\w-]*)(?=$|[\s=])/.exec(code.text);
  if (bare && !tree.flags.has(bare[1]) && !tree.scriptFlags.has(bare[1]))
    say(`neither mla nor a script has the flag ${bare[1]}`);
}

function checkNames(tree, code, say) {
  const known = (name) => tree.words.has(name) || FOREIGN_VARIABLES.has(name);
  const variables = new Set();
  for (const match of code.text.matchAll(/\b(?:NODE_)?MLA_[A-Z0-9_]+\b/g)) variables.add(match[0]);
  if (code.lang === null || SHELL.has(code.lang))
    for (const match of code.text.matchAll(/(?<![\w-])([A-Z][A-Z0-9_]+)=|\$\{?([A-Z][A-Z0-9_]+)/g))
      variables.add(match[1] ?? match[2]);
  for (const name of variables) if (!known(name)) say(`nothing in the tree reads or defines ${name}`);
  if (code.lang !== null) return;
  // One identifier between backticks, if it is long enough to be no variable of a formula.
  const name = /^([A-Za-z_]\w{3,})(?:\(\))?$/.exec(code.text)?.[1];
  if (name === undefined || name.startsWith('ERR_') || variables.has(name)) return;
  if (/[a-z][A-Z]|_/.test(name) && !known(name)) say(`the name ${name} occurs nowhere in the code`);
}

/** How GitHub turns a heading into an anchor. */
const anchorOf = (heading) =>
  heading
    .trim()
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, '')
    .replace(/\s/g, '-');

function checkLinks(root, file, markdown, report) {
  let fenced = false;
  markdown.split('\n').forEach((line, i) => {
    if (/^\s*(```|~~~)/.test(line)) fenced = !fenced;
    if (fenced) return;
    for (const match of line.replace(/`[^`]*`/g, '').matchAll(/\]\(([^)\s]+)\)/g)) {
      const [target, anchor] = match[1].split('#');
      if (/^[a-z]+:/.test(target)) continue;
      const to = target === '' ? file : path.posix.join(path.posix.dirname(file), target);
      if (!fs.existsSync(path.join(root, to))) {
        report(i + 1, `the link leads to ${to}, which does not exist`);
      } else if (anchor && to.endsWith('.md')) {
        const headings = fs.readFileSync(path.join(root, to), 'utf8').matchAll(/^#+\s+(.*)$/gm);
        if (![...headings].some((heading) => anchorOf(heading[1]) === anchor))
          report(i + 1, `${to} has no heading #${anchor}`);
      }
    }
  });
}

/** The part of a file that speaks of today's tree; line numbers stay. */
function presentPart(file, markdown) {
  if (path.posix.basename(file) !== 'CHANGELOG.md') return markdown;
  const sections = [...markdown.matchAll(/^## /gm)];
  return sections.length > 1 ? markdown.slice(0, sections[1].index) : markdown;
}

/** Everything the *.md files under `root` name that does not exist, one line each. */
function checkDocs(root) {
  const tree = gather(root);
  const problems = [];
  for (const file of [...tree.files].filter((name) => name.endsWith('.md'))) {
    const markdown = presentPart(file, fs.readFileSync(path.join(root, file), 'utf8'));
    const report = (line, what) => problems.push(`${file}:${line}: ${what}`);
    for (const code of codeIn(markdown)) {
      const say = (what) => report(code.line, what);
      checkPaths(tree, code, say);
      checkCommands(root, tree, code, say);
      checkNames(tree, code, say);
    }
    markdown.split('\n').forEach((line, i) => {
      for (const [code] of line.matchAll(/\bERR_[A-Z0-9_]+\b/g))
        if (!tree.errors.has(code)) report(i + 1, `lib/errors has no code ${code}`);
    });
    checkLinks(root, file, markdown, report);
  }
  return problems;
}

module.exports = { checkDocs, codeIn };
if (require.main === module) {
  const problems = checkDocs(path.resolve(__dirname, '..'));
  for (const problem of problems) console.error(problem);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
