import { resolve } from 'node:path';
import { withTree } from './seed-tree';

const { checkLayers } = require('../../scripts/check-layers.cjs') as { checkLayers(root: string): string[] };

/** A tree that obeys every arrow, one file per folder. */
const GOOD = {
  'lib/index.ts': "export { Engine } from './engine/engine';\n",
  'lib/errors/index.ts': 'export class MlaError extends Error {}\n',
  'lib/native/addon.ts': "import load from 'node-gyp-build';\nimport '../errors';\nload('addon.node');\n",
  'lib/files/index.ts': "export { open } from 'node:fs/promises';\n",
  'lib/cache/pool.ts': "import '../errors';\nimport type { Tensor } from '../native/addon';\n",
  'lib/checkpoint/files.ts': "import '../errors';\nimport type { promises } from 'node:fs';\n",
  'lib/model/model.ts': "import '../cache/pool';\nimport '../checkpoint/files';\nimport './rope';\n",
  'lib/model/rope.ts': '',
  'lib/text/bpe.ts': "import '../errors';\n",
  'lib/engine/engine.ts': "import '../model/model';\nimport '../text/bpe';\nimport '../errors';\n",
  'lib/cli/main.ts': "import '../index';\nimport '../bench/bench';\nimport '../../package.json';\n",
  'lib/bench/bench.ts': "import '../native/addon';\n",
  'csrc/common/view.h': '#include <cstdint>\n',
  'csrc/ops/ops.h': '#include "common/view.h"\n',
  'csrc/cpu/kernels/gemm.cc': '#include "cpu/pool.h"\n#include "ops/ops.h"\n#include "tile.h"\n',
  'csrc/cpu/kernels/tile.h': '',
  'csrc/cpu/pool.h': '#include "common/view.h"\n',
  'csrc/cuda/gemm/gemm.cu': '#include <cuda_bf16.h>\n#include "ops/ops.h"\n',
  'csrc/runtime/queue.cc': '#include "ops/ops.h"\n',
  'csrc/runtime/queue.h': '#include "common/view.h"\n',
  'csrc/addon/device.cc': '#include <napi.h>\n#include "runtime/queue.h"\n',
};

const problemsWith = (files: Record<string, string>): string[] => withTree({ ...GOOD, ...files }, checkLayers);

test('the tree itself obeys its arrows', () => {
  expect(checkLayers(resolve(__dirname, '../..'))).toEqual([]);
});

test('a tree that obeys every arrow has no problem', () => {
  expect(problemsWith({})).toEqual([]);
});

describe('an arrow that is not allowed is named with its file and line', () => {
  const cases: [what: string, file: string, content: string, expected: RegExp][] = [
    ['up', 'lib/cache/pool.ts', "\nimport '../model/model';\n", /^lib\/cache\/pool\.ts:2: cache must not import model/],
    ['sideways', 'lib/text/bpe.ts', "import '../model/model';\n", /^lib\/text\/bpe\.ts:1: text must not import model/],
    ['sideways below', 'lib/cache/pool.ts', "import '../checkpoint/files';\n", /cache must not import checkpoint/],
    ['bench to cli', 'lib/bench/bench.ts', "import '../cli/main';\n", /bench must not import cli/],
    [
      'as a type',
      'lib/errors/index.ts',
      "import type { Tensor } from '../native/addon';\n",
      /errors must not import native/,
    ],
    [
      'as a type expression',
      'lib/errors/index.ts',
      "export type T = import('../native/addon').T;\n",
      /errors must not/,
    ],
    ['by export', 'lib/model/rope.ts', "export * from '../engine/engine';\n", /model must not import engine/],
    ['by require', 'lib/model/rope.ts', "const e = require('../engine/engine');\n", /model must not import engine/],
    ['dynamically', 'lib/model/rope.ts', "void import('../engine/engine');\n", /model must not import engine/],
    ['to the public entry', 'lib/engine/engine.ts', "import '../index';\n", /engine must not import index\.ts/],
    ['to the public entry, short', 'lib/engine/engine.ts', "import '..';\n", /engine must not import index\.ts/],
    ['out of lib', 'lib/engine/engine.ts', "import '../../test/fake';\n", /outside lib/],
    ['to an unknown folder', 'lib/engine/engine.ts', "import '../tools/x';\n", /"tools" is in no layer/],
    ['from an unknown folder', 'lib/tools/x.ts', '', /^lib\/tools\/x\.ts:1: "tools" is in no layer/],
    ['addon loaded elsewhere', 'lib/model/rope.ts', "import load from 'node-gyp-build';\n", /only lib\/native loads/],
    ['addon opened elsewhere', 'lib/cli/main.ts', "process.dlopen(module, 'x');\n", /only lib\/native loads/],
    ['addon named elsewhere', 'lib/cli/main.ts', "require('../build/mla.node');\n", /only lib\/native loads/],
    [
      'files as promises',
      'lib/cache/pool.ts',
      "import { open } from 'node:fs/promises';\n",
      /cache reads and writes files through lib\/files, this says node:fs\/promises$/,
    ],
    ['files as promises, by require', 'lib/hub/x.ts', "require('fs/promises');\n", /hub reads .* says fs\/promises$/],
    ['files as promises, short', 'lib/hub/x.ts', "fs.promises.open('x');\n", /hub reads .* says fs\.promises$/],
    ['cpu to cuda', 'csrc/cpu/pool.h', '#include "cuda/gemm/gemm.h"\n', /cpu must not include cuda/],
    ['cuda to cpu', 'csrc/cuda/gemm/gemm.cu', '\n#include "cpu/pool.h"\n', /gemm\.cu:2: cuda must not include cpu/],
    ['ops to cpu', 'csrc/ops/ops.h', '#include "cpu/pool.h"\n', /ops must not include cpu/],
    ['common to ops', 'csrc/common/view.h', '# include "ops/ops.h"\n', /common must not include ops/],
    ['by a relative path', 'csrc/common/view.h', '#include "../ops/ops.h"\n', /common must not include ops/],
    ['addon to a backend', 'csrc/addon/device.cc', '#include "cpu/pool.h"\n', /addon must not include cpu/],
    ['runtime to a backend', 'csrc/runtime/queue.h', '#include "cpu/pool.h"\n', /runtime must not include cpu/],
    ['runtime to the addon', 'csrc/runtime/queue.h', '#include "addon/x.h"\n', /runtime must not include addon/],
    ['N-API below the addon', 'csrc/runtime/queue.h', '#include <napi.h>\n', /only csrc\/addon includes <napi\.h>/],
    ['CUDA outside its backend', 'csrc/runtime/queue.h', '#include <cuda_runtime.h>\n', /only csrc\/cuda includes/],
    [
      'a header that is not there',
      'csrc/ops/ops.h',
      '#include "common/absent.h"\n',
      /neither beside the file nor in csrc/,
    ],
    ['an unknown folder', 'csrc/tools/x.cc', '', /"tools" is in no layer/],
  ];
  test.each(cases)('%s', (_what, file, content, expected) => {
    const problems = problemsWith({ [file]: content });
    expect(problems).toContainEqual(expect.stringMatching(expected));
  });
});
