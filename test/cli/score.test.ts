// mla score against the reference values of test/golden.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { golden, ROOT, runCli } from './run-cli';

interface Reference {
  tokens: number[];
  logprobs: (number | null)[];
  top: ([number, number][] | null)[];
  lastLogits: number[];
}
const reference: Reference = JSON.parse(readFileSync(join(golden('v2-lite'), 'golden.json'), 'utf8')).prompts[1];
const CPU = ['--device', 'cpu', '--threads', '2'];
const TINY = ['-m', golden('v2-lite'), ...CPU];
/** Float32 sums in another order; the distance between float32 and a wrong model is a thousand times that. */
const TOLERANCE = 1e-3;

function expectClose(actual: number[], expected: number[]): void {
  expect(actual).toHaveLength(expected.length);
  const worst = Math.max(...actual.map((value, i) => Math.abs(value - (expected[i] as number))));
  expect(worst).toBeLessThan(TOLERANCE);
}

test('--json prints tokens, logprobs, top and, asked for, the last logits', async () => {
  const ids = reference.tokens.join(',');
  const { code, stdout, stderr } = await runCli([
    'score',
    '--tokens',
    ids,
    '--top',
    '3',
    '--logits',
    '--json',
    ...TINY,
  ]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const scored = JSON.parse(stdout);
  expect(Object.keys(scored)).toEqual(['tokens', 'logprobs', 'top', 'logits']);
  expect(scored.tokens).toEqual(reference.tokens);
  expect(scored.logprobs[0]).toBeNull();
  expectClose(scored.logprobs.slice(1), reference.logprobs.slice(1) as number[]);
  expect(scored.top[0]).toBeNull();
  expect(scored.top).toHaveLength(reference.tokens.length);
  for (const [i, row] of scored.top.entries()) {
    if (i === 0) continue;
    expect(row.map(({ id }: { id: number }) => id)).toEqual(reference.top[i]?.slice(0, 3).map(([id]) => id));
    expectClose(
      row.map(({ logprob }: { logprob: number }) => logprob),
      (reference.top[i] as [number, number][]).slice(0, 3).map(([, logprob]) => logprob),
    );
  }
  expectClose(scored.logits, reference.lastLogits);
});

test.each(['glm-4.7-flash', 'moonlight', 'v2', 'v2-lite', 'v3', 'v3-fp8'])('%s: every prompt', async (name) => {
  const { prompts } = JSON.parse(readFileSync(join(golden(name), 'golden.json'), 'utf8')) as { prompts: Reference[] };
  let [worst, sum, compared] = [0, 0, 0];
  for (const { tokens, logprobs } of prompts) {
    const stdin = tokens.join(',');
    const ran = await runCli(['score', '--tokens', '-', '--json', '-m', golden(name), ...CPU], { stdin });
    expect(ran).toMatchObject({ code: 0, stderr: '' });
    const scored = JSON.parse(ran.stdout);
    expect(scored.tokens).toEqual(tokens);
    expect(scored.logprobs).toHaveLength(logprobs.length);
    for (const [i, expected] of logprobs.entries()) {
      if (expected === null) continue;
      const difference = Math.abs(scored.logprobs[i] - expected);
      worst = Math.max(worst, difference);
      sum += difference;
      compared += 1;
    }
  }
  console.log(
    `mla score on ${name}: ${compared} log-probabilities, worst ${worst.toExponential(2)}, mean ${(sum / compared).toExponential(2)}`,
  );
  expect(compared).toBe(prompts.reduce((all, { tokens }) => all + tokens.length - 1, 0));
  expect(worst).toBeLessThan(TOLERANCE);
});

test('without --top and --logits the object is small, and its shape the same', async () => {
  const { code, stdout } = await runCli(['score', '--tokens', '5,6,7', '--json', ...TINY]);
  expect(code).toBe(0);
  const number = expect.any(Number);
  expect(JSON.parse(stdout)).toEqual({ tokens: [5, 6, 7], logprobs: [null, number, number], top: [null, [], []] });
});

test('a text from -p, -f and stdin is scored as it is, one line per token', async () => {
  const text = 'In the beginning\n';
  const [flag, stdin, file] = await Promise.all([
    runCli(['score', '-p', text, '--top', '1', ...CPU]),
    runCli(['score', '--json', ...CPU], { stdin: text }),
    runCli(['score', '-f', join(ROOT, 'LICENSE'), '--json', ...CPU]),
  ]);
  expect([flag.code, stdin.code, file.code]).toEqual([0, 0, 0]);
  const lines = flag.stdout.trimEnd().split('\n');
  const scored = JSON.parse(stdin.stdout);
  expect(lines).toHaveLength(scored.tokens.length);
  expect(lines.map((line) => Number(line.split('\t')[1]))).toEqual(scored.tokens);
  expect(lines[0]).toMatch(/^0\t\d+\t-\t".*"$/);
  expect(lines[1]).toMatch(/^1\t\d+\t-?\d+\.\d{4}\t".*"\t\d+:-?\d+\.\d{4}$/);
  expect(lines.map((line) => JSON.parse(line.split('\t')[3] as string)).join('')).toBe(text);
  expect(flag.stderr).toMatch(/^score \d+ tok \| mean logprob -[\d.]+ \| perplexity [\d.]+\n$/);
  expect(JSON.parse(file.stdout).tokens.length).toBeGreaterThan(100);
});

test('a text longer than the context exits with 1', async () => {
  const { code, stdout, stderr } = await runCli(['score', '--tokens', '1,2,3', '-c', '2', ...TINY]);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr).toMatch(/^mla: .*3 tokens.*\(ERR_CONTEXT_LENGTH\)\n$/);
});
