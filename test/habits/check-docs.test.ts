import { resolve } from 'node:path';
import { withTree } from './seed-tree';

const { checkDocs } = require('../../scripts/check-docs.cjs') as { checkDocs(root: string): string[] };
const { checkDocExamples } = require('../../scripts/check-doc-examples.cjs') as {
  checkDocExamples(root: string): string[];
};

const REPOSITORY = resolve(__dirname, '../..');

const TREE = {
  'package.json': '{ "scripts": { "test": "jest", "check": "node scripts/check.cjs" } }\n',
  'scripts/check.cjs': "if (process.argv.includes('--write')) void 0;\n",
  'lib/errors/index.ts': "export const CODES = ['ERR_FILE'];\n",
  'lib/engine/engine.ts': 'export const maxTokens = process.env.NODE_MLA_THREADS;\n',
  'lib/cli/main.ts': [
    '// --commented-out',
    "program.command('generate').option('-p, --prompt <text>', 'text').option('--no-color');",
    '',
  ].join('\n'),
  'csrc/ops/ops.h': '#define MLA_OPS(X)\n',
  'docs/glossary.md': '# Glossary\n## Heads and dims\n',
};

const problemsOf = (markdown: string): string[] =>
  withTree({ ...TREE, 'README.md': `# Title\n${markdown}\n` }, checkDocs);

describe('what exists may be named', () => {
  test.each([
    ['a file', '`lib/engine/engine.ts`'],
    ['a file by its line', '`lib/engine/engine.ts:1`'],
    ['a file by its name', '`ops.h`'],
    ['a folder', '`lib/engine/` and `csrc`'],
    ['a pattern', '`csrc/<folder>/*.h`'],
    ['alternatives', '`lib/{engine,cli}`'],
    ['a compiled file', '`dist/cli/main.js`'],
    ['build output', '`build/Release/x.node`'],
    ['a script', '`npm run check` and `npm test`'],
    ['a command with a flag', '`npx mla generate -p "text --none" --prompt x | cat --other`'],
    ['a bare flag', '`--prompt TEXT` and `--write`'],
    ['a variable', '`NODE_MLA_THREADS=4`, `MLA_OPS`'],
    ['an error code', 'ERR_FILE'],
    ['an identifier', '`maxTokens`'],
    ['a link with an anchor', '[dims](docs/glossary.md#heads-and-dims) and [title](#title)'],
    ['a web address', '[web](https://example.org/lib/nothing.ts)'],
    ['a formula', '`q_r * k_r`, `H`, `2*d`'],
    ['prose', 'lib/nothing.ts without backticks is no claim'],
  ])('%s', (_what, markdown) => {
    expect(problemsOf(markdown)).toEqual([]);
  });
});

describe('what does not exist is named with file and line', () => {
  test.each([
    ['a file', '`lib/engine/absent.ts`', /^README\.md:2: the path lib\/engine\/absent\.ts does not exist/],
    ['a file in a block', '```\ncat lib/absent.ts\n```', /^README\.md:3: the path lib\/absent\.ts does not/],
    ['a file by its name', '`absent.h`', /no file is called absent\.h/],
    ['a pattern', '`lib/*/*.cc`', /the path lib\/\*\/\*\.cc does not exist/],
    ['one of several', '`lib/{engine,absent}`', /the path lib\/absent does not exist/],
    ['a compiled file without a source', '`dist/absent.js`', /dist\/absent\.js does not exist/],
    ['a script', '`npm run absent`', /package\.json has no script "absent"/],
    ['npm start', '```sh\nnpm start\n```', /no script "start"/],
    ['a command', '`npx mla absent`', /mla has no command "absent"/],
    ['a command in a block', '```sh\n$ mla absent -p x\n```', /mla has no command "absent"/],
    ['a flag', '`mla generate --absent`', /mla has no flag --absent/],
    ['a short flag', '```sh\nnpx mla generate \\\n  -z 1\n```', /mla has no flag -z/],
    ['a flag that is only a comment', '`mla generate --commented-out`', /mla has no flag --commented-out/],
    ['a bare flag', '`--absent`', /neither mla nor a script has the flag --absent/],
    ['a program', '`npx absent`', /npx absent: no package here/],
    ['a variable', '`NODE_MLA_ABSENT=1`', /nothing in the tree reads or defines NODE_MLA_ABSENT/],
    ['a variable of a shell line', '```sh\nABSENT=1 npm test\n```', /nothing in the tree reads or defines ABSENT/],
    ['an error code', 'It throws ERR_ABSENT.', /^README\.md:2: lib\/errors has no code ERR_ABSENT/],
    ['an identifier', '`minTokens`', /the name minTokens occurs nowhere/],
    ['a link', '[a](docs/absent.md)', /the link leads to docs\/absent\.md/],
    ['an anchor', '[a](docs/glossary.md#absent)', /has no heading #absent/],
  ])('%s', (_what, markdown, expected) => {
    expect(problemsOf(markdown)).toEqual([expect.stringMatching(expected)]);
  });
});

test('a changelog speaks of today only in its first section', () => {
  const changelog = '# Changelog\n## 2.0.0\n`lib/absent.ts`\n## 1.0.0\n`lib/gone.ts`\n';
  const problems = withTree({ ...TREE, 'CHANGELOG.md': changelog }, checkDocs);
  expect(problems).toEqual([expect.stringMatching(/^CHANGELOG\.md:3: .*absent/)]);
});

test('an example that does not compile is named with its line', () => {
  const files = {
    'tsconfig.json': JSON.stringify({
      compilerOptions: {
        target: 'ES2022',
        module: 'node16',
        moduleResolution: 'node16',
        strict: true,
        types: ['node'],
        typeRoots: [resolve(REPOSITORY, 'node_modules/@types')],
      },
      include: ['lib'],
    }),
    'lib/index.ts': 'export async function loadModel(dir: string): Promise<string> {\n  return dir;\n}\n',
    'README.md': [
      '```ts',
      "import { loadModel } from 'node-mla';",
      'const model: number = await loadModel(1);',
      '```',
      '```ts',
      "import { absent } from 'node-mla';",
      '```',
      '```ts',
      "import { loadModel } from 'node-mla';",
      "const same = await loadModel('.');",
      '```',
    ].join('\n'),
  };
  expect(withTree(files, checkDocExamples)).toEqual([
    expect.stringMatching(/^README\.md:3: Type 'string' is not assignable/),
    expect.stringMatching(/^README\.md:3: Argument of type 'number'/),
    expect.stringMatching(/^README\.md:6: .*no exported member 'absent'/),
  ]);
});
