import { resolve } from 'node:path';
import { withTree } from './seed-tree';

const { checkShape } = require('../../scripts/check-shape.cjs') as { checkShape(root: string): string[] };

test('the tree itself is in shape', () => {
  expect(checkShape(resolve(__dirname, '../..'))).toEqual([]);
});

describe('each bad habit is named with its file', () => {
  const cases: [what: string, file: string, content: string, expected: RegExp | null][] = [
    ['600 lines are allowed', 'lib/a.ts', 'x;\n'.repeat(600), null],
    ['601 lines are not', 'lib/a.ts', 'x;\n'.repeat(601), /^lib\/a\.ts: 601 lines, at most 600/],
    ['a kernel may have 800', 'csrc/cuda/gemm/gemm_sm90.cu', 'x;\n'.repeat(800), null],
    ['but not 801', 'csrc/cuda/gemm/gemm_sm90.cuh', 'x;\n'.repeat(801), /801 lines, at most 800/],
    ['golden data may be long', 'test/golden/table.ts', 'x;\n'.repeat(2000), null],
    ['build output is not looked at', 'build/utils.ts', 'x;\n'.repeat(2000), null],
    ['utils', 'lib/model/utils.ts', '', /does not say what is inside/],
    ['helpers', 'csrc/cpu/helper.h', '', /does not say what is inside/],
    ['camelCase file', 'lib/model/ropeConfig.ts', '', /kebab-case/],
    ['kebab-case header', 'csrc/cpu/thread-pool.h', '', /snake_case/],
    ['silenced compiler', 'lib/a.ts', '// @ts-ignore\nx;\n', /hides type errors/],
    [
      'a test alone',
      'test/a.test.ts',
      '\nit.only("x", f);\n',
      /^test\/a\.test\.ts:2: "it\.only" keeps tests from running/,
    ],
    ['a skipped table', 'test/a.test.ts', 'test.each.skip([])();\n', /test\.each\.skip/],
    ['a skipped group', 'test/a.test.ts', 'xdescribe("x", f);\n', /keeps tests from running/],
    ['no newline at the end', 'lib/a.ts', 'x;', /no newline/],
  ];
  test.each(cases)('%s', (_what, file, content, expected) => {
    const problems = withTree({ [file]: content }, checkShape);
    if (expected === null) expect(problems).toEqual([]);
    else expect(problems).toEqual([expect.stringMatching(expected)]);
  });
});
