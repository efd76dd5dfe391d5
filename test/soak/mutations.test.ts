// The golden data catches the mistakes that implementations of these models are known to make: each is made on purpose, in
// a copy of the sources, and must move some log-probability by at least five times the tolerance. With bf16 activations
// rounding alone moves some of them by more than their tolerance, so there a mistake must bring some checkpoint that much
// further off than the right build is; and it must be more than the tests of the bf16 path let pass
// (test/gpu/model.test.ts): a mean or a worst distance beyond those factors of what the right build has.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ROOT = join(__dirname, '..', '..');
const TOLERANCE = { f32: 1e-2, bf16: 5e-2 };
const FACTOR = 5;
const MEAN_FACTOR = 1.25;
const WORST_FACTOR = 2;

/** By checkpoint, how far log-probabilities are from the reference. */
type Distances = Record<string, { worst: number; mean: number }>;
type Dtype = keyof typeof TOLERANCE;

interface Mutation {
  name: string;
  file: string;
  /** must stand in the file exactly once */
  find: string;
  replace: string;
}

const mutations: Mutation[] = [
  {
    name: 'no YaRN softmax factor',
    file: 'lib/checkpoint/rope.ts',
    find: 'return scale * yarnMagnitude(yarn.factor, yarn.mscale_all_dim) ** 2;',
    replace: 'return scale;',
  },
  {
    name: 'softmax scale (rank + rope)^-0.5',
    file: 'lib/checkpoint/rope.ts',
    find: 'const scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5;',
    replace: 'const scale = (512 + config.qk_rope_head_dim) ** -0.5;',
  },
  {
    name: 'latent cached without its norm',
    file: 'csrc/cpu/kernels/latent.cc',
    find: 'norm_row(row, p.latent_norm.as<const W>(), rms_factor(row, c, p.latent_eps), c, row);',
    replace: 'norm_row(row, p.latent_norm.as<const W>(), 1.0f, c, row);',
  },
  {
    name: 'routing weights with bias',
    file: 'csrc/cpu/kernels/router.cc',
    find: 'weights[j] = scores[e];',
    replace: 'weights[j] = bias == nullptr ? scores[e] : scores[e] + bias[e];',
  },
  {
    name: 'routed scaling factor twice',
    file: 'csrc/cpu/kernels/router.cc',
    find: 'weights[j] *= p.scale;',
    replace: 'weights[j] *= p.scale * p.scale;',
  },
  {
    name: 'no shared expert',
    file: 'csrc/cpu/kernels/router.cc',
    find: 'weights[p.top_k + j] = 1.0f;',
    replace: 'weights[p.top_k + j] = 0.0f;',
  },
  {
    name: 'group mask 0 instead of -inf',
    file: 'csrc/cpu/kernels/router.cc',
    find: 'choice[i] = -__builtin_inff();\n    }\n  }\n  for (int64_t e = 0; e < experts; ++e) taken[e] = 0;',
    replace: 'choice[i] = 0.0f;\n    }\n  }\n  for (int64_t e = 0; e < experts; ++e) taken[e] = 0;',
  },
  {
    name: 'mask off by one, absorbed: the newest key is hidden',
    file: 'csrc/cpu/kernels/attention_decode.cc',
    find: 'return n < 0 ? 0 : n;',
    replace: 'return n <= 1 ? n : n - 1;',
  },
  {
    name: 'mask off by one, expanded: the next key is seen',
    file: 'csrc/cpu/kernels/prefill.cc',
    find: 'tile * kPrefillQueries - p.k_pos.as<int32_t>()[b];',
    replace: 'tile * kPrefillQueries - p.k_pos.as<int32_t>()[b] + 1;',
  },
  // last: every kernel includes this file, and what comes after would compile all of them once more
  {
    name: 'RoPE in half layout',
    file: 'csrc/cpu/kernels/simd.h',
    find: `    const float a = to_f32(x[i]), b = to_f32(x[i + 1]);
    const float c = cos_sin[i], s = cos_sin[i + 1];
    convert(a * c - b * s, out + i);
    convert(a * s + b * c, out + i + 1);`,
    replace: `    const int64_t j = i / 2, h = r / 2;
    const float a = to_f32(x[j]), b = to_f32(x[j + h]);
    const float c = cos_sin[i], s = cos_sin[i + 1];
    convert(a * c - b * s, out + j);
    convert(a * s + b * c, out + j + h);`,
  },
];

/** A copy of everything that makes the product, with a build of its own. */
class Copy {
  readonly dir = mkdtempSync(join(tmpdir(), 'mla-mutations-'));

  constructor() {
    for (const name of ['csrc', 'lib', 'CMakeLists.txt', 'package.json', 'tsconfig.json']) {
      cpSync(join(ROOT, name), join(this.dir, name), { recursive: true });
    }
    mkdirSync(join(this.dir, 'scripts'));
    cpSync(join(ROOT, 'scripts', 'build-native.cjs'), join(this.dir, 'scripts', 'build-native.cjs'));
    symlinkSync(join(ROOT, 'node_modules'), join(this.dir, 'node_modules'));
    this.leaveOneInstructionSet();
  }

  /** The mistakes are the same in all of them, and most of the time goes into compiling. */
  private leaveOneInstructionSet(): void {
    const edit = (file: string, find: RegExp, replace: string, times: number) => {
      const path = join(this.dir, file);
      const source = readFileSync(path, 'utf8');
      expect([file, [...source.matchAll(find)].length]).toEqual([file, times]);
      writeFileSync(path, source.replace(find, replace));
    };
    edit(
      'csrc/cpu/CMakeLists.txt',
      /^ {2}(mla_add_cpu_kernels\(avx|list\(APPEND mla_cpu_libraries mla_cpu_avx).*$/gm,
      '',
      3,
    );
    edit('csrc/cpu/dispatch.cc', /#if defined\(__x86_64__\)/g, '#if 0', 2);
  }

  build(what: 'native' | 'dist'): void {
    const args =
      what === 'native' ? ['scripts/build-native.cjs'] : ['node_modules/typescript/bin/tsc', '-p', '.', '--noCheck'];
    const env = { ...process.env, NODE_MLA_CUDA: 'OFF' };
    execFileSync(process.execPath, args, { cwd: this.dir, env, stdio: ['ignore', 'ignore', 'pipe'] });
  }

  distances(): Record<Dtype, Distances> {
    const script = join(__dirname, 'distances.cjs');
    return JSON.parse(execFileSync(process.execPath, [script, this.dir], { encoding: 'utf8' }));
  }

  /** Runs with one mutation in place. */
  mutated(mutation: Mutation): Record<Dtype, Distances> {
    const file = join(this.dir, mutation.file);
    const source = readFileSync(file, 'utf8');
    expect([mutation.name, source.split(mutation.find).length - 1]).toEqual([mutation.name, 1]);
    const what = mutation.file.startsWith('lib/') ? 'dist' : 'native';
    writeFileSync(
      file,
      source.replace(mutation.find, () => mutation.replace),
    );
    try {
      this.build(what);
      return this.distances();
    } finally {
      writeFileSync(file, source);
      if (what === 'dist') this.build(what);
    }
  }

  remove(): void {
    rmSync(this.dir, { recursive: true });
  }
}

const worstOf = (distances: Distances) => Math.max(...Object.values(distances).map(({ worst }) => worst));

/** By how much the worst distance of a checkpoint grows, at most. */
const beyond = (distances: Distances, right: Distances) =>
  Math.max(...Object.entries(distances).map(([name, { worst }]) => worst - (right[name]?.worst ?? Number.NaN)));

/** The largest of the factors by which a checkpoint is further off than with the right build. */
const factorOf = (what: 'worst' | 'mean', distances: Distances, right: Distances) =>
  Math.max(...Object.entries(distances).map(([name, found]) => found[what] / (right[name]?.[what] ?? Number.NaN)));

function tableOf(dtype: Dtype, rows: readonly (readonly [string, Record<Dtype, Distances>])[]): string {
  const names = Object.keys(rows[0]?.[1][dtype] ?? {});
  return [
    `| ${dtype}: worst (mean) | ${names.join(' | ')} |`,
    `|---|${names.map(() => '---').join('|')}|`,
    ...rows.map(([name, found]) => {
      const cells = names.map((n) => {
        const { worst, mean } = found[dtype][n] as Distances[string];
        return `${worst.toPrecision(2)} (${mean.toPrecision(2)})`;
      });
      return `| ${name} | ${cells.join(' | ')} |`;
    }),
  ].join('\n');
}

test('every known mistake moves the golden log-probabilities', () => {
  const copy = new Copy();
  try {
    copy.build('dist');
    copy.build('native');
    const right = copy.distances();
    const rows: [string, Record<Dtype, Distances>][] = [['none', right]];
    expect(worstOf(right.f32)).toBeLessThan(TOLERANCE.f32);
    for (const mutation of mutations) rows.push([mutation.name, copy.mutated(mutation)]);
    console.log(`${tableOf('f32', rows)}\n\n${tableOf('bf16', rows)}`);
    for (const [name, { f32, bf16 }] of rows.slice(1)) {
      const seen = {
        f32: worstOf(f32) >= FACTOR * TOLERANCE.f32,
        bf16: beyond(bf16, right.bf16) >= FACTOR * TOLERANCE.bf16,
        bf16Test:
          factorOf('mean', bf16, right.bf16) >= MEAN_FACTOR || factorOf('worst', bf16, right.bf16) >= WORST_FACTOR,
      };
      expect({ name, ...seen }).toEqual({ name, f32: true, bf16: true, bf16Test: true });
    }
  } finally {
    copy.remove();
  }
});
