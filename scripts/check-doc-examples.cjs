// check-doc-examples.cjs - the TypeScript blocks of the *.md files must compile against lib/index.ts.
//
//   node scripts/check-doc-examples.cjs
//
// Each ```ts block is a module of its own, so it may use `await` at its top and must import what it uses.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const ts = require('typescript');
const { codeIn } = require('./check-docs.cjs');
const { treeFiles } = require('./check-shape.cjs');

/** Type errors in the blocks under `root`, one line each. */
function checkDocExamples(root) {
  const blocks = new Map();
  for (const file of treeFiles(root).filter((name) => name.endsWith('.md')))
    for (const code of codeIn(fs.readFileSync(path.join(root, file), 'utf8')))
      if (code.lang === 'ts')
        blocks.set(path.join(root, `${file.replace(/\W/g, '-')}-${code.line}.mts`), {
          file,
          line: code.line,
          text: code.text,
        });
  if (blocks.size === 0) return [];

  const { config } = ts.readConfigFile(path.join(root, 'tsconfig.json'), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
  Object.assign(options, {
    noEmit: true,
    rootDir: root,
    types: ['node'],
    paths: { 'node-mla': [path.join(root, 'lib', 'index.ts')] },
    // An example may end before it has used everything.
    noUnusedLocals: false,
  });
  const host = ts.createCompilerHost(options);
  const { fileExists, readFile, getSourceFile } = host;
  host.fileExists = (name) => blocks.has(name) || fileExists(name);
  host.readFile = (name) => blocks.get(name)?.text ?? readFile(name);
  host.getSourceFile = (name, language, ...rest) =>
    blocks.has(name)
      ? ts.createSourceFile(name, `${blocks.get(name).text}\nexport {};\n`, language)
      : getSourceFile.call(host, name, language, ...rest);
  const program = ts.createProgram([...blocks.keys()], options, host);
  return ts
    .getPreEmitDiagnostics(program)
    .filter((diagnostic) => diagnostic.file === undefined || blocks.has(diagnostic.file.fileName))
    .map((diagnostic) => {
      const text = ts.flattenDiagnosticMessageText(diagnostic.messageText, ' ');
      if (diagnostic.file === undefined) return `tsconfig.json: ${text}`;
      const block = blocks.get(diagnostic.file.fileName);
      const { line } = diagnostic.file.getLineAndCharacterOfPosition(diagnostic.start ?? 0);
      return `${block.file}:${block.line + line}: ${text}`;
    });
}

module.exports = { checkDocExamples };
if (require.main === module) {
  const problems = checkDocExamples(path.resolve(__dirname, '..'));
  for (const problem of problems) console.error(problem);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
