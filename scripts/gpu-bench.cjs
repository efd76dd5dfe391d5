// gpu-bench.cjs - measures on this machine's GPU and compares with the committed figures of the same kind of GPU.
//
//   npm run bench:gpu [-- --record] [--runs N] [--quick] [--cli FILE] [--results DIR]
//
//   --record       make what is measured the committed figures (bench/results/GPU.jsonl) instead of comparing
//   --runs N       processes that measure everything, default 3: the more, the smaller a difference that counts
//   --quick        one kernel of each family and a short decode: tries the steps, judges little
//   --cli FILE     the mla command, default dist/cli/main.js
//   --results DIR  where the committed figures lie, default bench/results
//
// Figures go to .build/bench/GPU.jsonl, the table to stdout and to the summary of a GitHub job. Exit code 1: something
// is slower beyond noise, a case fails its check, or there are no figures of this GPU to compare with.
'use strict';
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const ROOT = path.resolve(__dirname, '..');
const DEVICE = 'cuda:0';
const FULL = [
  ['kernels', '--device', DEVICE],
  ['decode', '--device', DEVICE, '--shape', 'v2-lite', '--batch', '1,8,32,128', '--depth', '128,4096'],
  ['prefill', '--device', DEVICE, '--shape', 'v2-lite', '--length', '512,4096,32768'],
];
const QUICK = [
  [
    'kernels',
    '--device',
    DEVICE,
    '--samples',
    '10',
    '--cold',
    '384',
    '--filter',
    'mlaDecode.h=16.b=8.l=8192+mlaPrefill.h=16.l=4096+moeGateUp.lite.tokens=64+moeDown.lite.tokens=8+gemm.n=576.k=2048.m=8',
  ],
  ['decode', '--device', DEVICE, '--shape', 'v2-lite:4', '--batch', '8', '--depth', '128', '--steps', '64'],
];

/** What the options say. Throws for what is none. */
function readArguments(args) {
  const options = { record: false, quick: false, runs: 3, cli: 'dist/cli/main.js', results: 'bench/results' };
  for (let i = 0; i < args.length; i++) {
    const name = args[i].slice(2);
    if (args[i] === '--record' || args[i] === '--quick') options[name] = true;
    else if (['--runs', '--cli', '--results'].includes(args[i]) && i + 1 < args.length) options[name] = args[++i];
    else throw new Error(`"${args[i]}" is not understood; the head of scripts/gpu-bench.cjs lists the options`);
  }
  options.runs = Number(options.runs);
  if (!(Number.isInteger(options.runs) && options.runs >= 1)) throw new Error('--runs is a number from 1 on');
  return { ...options, cli: path.resolve(ROOT, options.cli), results: path.resolve(ROOT, options.results) };
}

/** One line of figures. A bench that fails a check still prints it; one that prints nothing is an error. */
function measure(cli, args) {
  const run = spawnSync(process.execPath, [cli, 'bench', ...args, '--json'], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    maxBuffer: 1 << 28,
  });
  if (run.stdout.trim() === '') throw new Error(`mla bench ${args[0]} ended with ${run.status} and gave no figures`);
  return run.stdout.trim();
}

/** "NVIDIA H200" -> "nvidia-h200". */
function fileNameOf(line) {
  const record = JSON.parse(line);
  const name = (record.device ?? record.results[0].device).name;
  return `${name.toLowerCase().replace(/[^a-z0-9]+/g, '-')}.jsonl`;
}

function main(args) {
  const { record, quick, runs, cli, results } = readArguments(args);
  const lines = [];
  for (let i = 0; i < runs; i++)
    for (const bench of quick ? QUICK : FULL) {
      console.error(`gpu-bench: run ${i + 1} of ${runs}, ${bench[0]}`);
      lines.push(measure(cli, bench));
    }
  const name = fileNameOf(lines[0]);
  const measured = path.join(ROOT, '.build', 'bench', name);
  fs.mkdirSync(path.dirname(measured), { recursive: true });
  fs.writeFileSync(measured, `${lines.join('\n')}\n`);
  console.error(`gpu-bench: figures are in ${path.relative(ROOT, measured)}`);
  const committed = path.join(results, name);
  if (record) {
    fs.mkdirSync(results, { recursive: true });
    fs.copyFileSync(measured, committed);
    console.error(`gpu-bench: recorded as ${path.relative(ROOT, committed)}`);
    return 0;
  }
  if (!fs.existsSync(committed)) {
    console.error(
      `gpu-bench: there are no figures in ${path.relative(ROOT, committed)}; --record makes these the first.`,
    );
    return 1;
  }
  const compare = spawnSync(process.execPath, [cli, 'bench', 'compare', committed, measured], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  process.stdout.write(compare.stdout);
  if (process.env.GITHUB_STEP_SUMMARY) fs.appendFileSync(process.env.GITHUB_STEP_SUMMARY, compare.stdout);
  return compare.status ?? 1;
}

try {
  process.exitCode = main(process.argv.slice(2));
} catch (error) {
  console.error(`gpu-bench: ${error.message}`);
  process.exitCode = 1;
}
