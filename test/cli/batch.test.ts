// mla batch with the bundled model: results, failures, going on after an interruption.
import { appendFileSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ROOT, runCli } from './run-cli';

jest.setTimeout(60_000);
const CPU = ['--device', 'cpu', '--threads', '2', '-c', '512'];
const folder = mkdtempSync(join(tmpdir(), 'mla-batch-'));
const passages: { text: string; expected: number[] }[] = JSON.parse(
  readFileSync(join(ROOT, 'models', 'kjv-10m', 'passages.json'), 'utf8'),
);

type Written = { line: number; id?: string; tokens?: number[]; text?: string; error?: { code: string } };
const resultsIn = (text: string): Written[] =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
    .sort((a, b) => a.line - b.line);

function write(name: string, lines: unknown[]): string {
  const path = join(folder, name);
  writeFileSync(path, lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'));
  return path;
}

test('every line is answered, whatever the others are', async () => {
  const input = write('mixed.jsonl', [
    { id: 'a', prompt: passages[0]?.text, maxTokens: 24 },
    '',
    { id: 'b', messages: [{ role: 'user', content: 'Define love.' }] },
    { tokens: [0, 5, 6], maxTokens: 2 },
    'not json',
    { prompt: 'x', tokens: [1] },
    { prompt: 'x', temperature: -1 },
    { prompt: 'x', what: 1 },
    { prompt: 'x', signal: {} },
    { prompt: 'x', maxTokens: 100_000 },
    [],
  ]);
  const { code, stdout, stderr } = await runCli(['batch', input, '--temp', '0', ...CPU]);
  expect(code).toBe(1);
  expect(stderr).toMatch(/^batch 3 done, 7 failed \| \d+ tok \d+ t\/s \| [\d.]+ s\nmla: line \d+: .*\n$/);
  const results = resultsIn(stdout);
  expect(results.map(({ line, id, error }) => [line, id, error?.code])).toEqual([
    [1, 'a', undefined],
    [3, 'b', undefined],
    [4, undefined, undefined],
    ...[5, 6, 7, 8, 9].map((line) => [line, undefined, 'ERR_INVALID_ARG']),
    [10, undefined, 'ERR_CONTEXT_LENGTH'],
    [11, undefined, 'ERR_INVALID_ARG'],
  ]);
  expect(results[0]?.tokens).toEqual(passages[0]?.expected);
  expect(results[1]?.text).toContain('curable by marriage');
  expect(stdout + stderr).not.toContain('\x1b');
});

test('stdin is an input, and the flags hold where a line says nothing', async () => {
  const { code, stdout } = await runCli(['batch', '-', '-n', '3', ...CPU], {
    stdin: '{"prompt":"In the"}\n{"prompt":"In the","maxTokens":1}\n',
  });
  expect(code).toBe(0);
  expect(resultsIn(stdout).map(({ tokens }) => tokens?.length)).toEqual([3, 1]);
});

test('an interrupted run is gone on with: nothing twice, nothing missing, the same texts', async () => {
  const lines = Array.from({ length: 1 }, (_, round) =>
    passages.map(({ text }, i) => ({ id: `${round}-${i}`, prompt: text, maxTokens: 24, ignoreEos: true })),
  ).flat();
  const input = write('long.jsonl', lines);
  const output = join(folder, 'long.out.jsonl');
  const flags = ['batch', input, '-o', output, '--parallel', '2', ...CPU];
  let sent = false;
  const stopped = await runCli(flags, {
    onStart: (child) => {
      const timer = setInterval(() => {
        const size = sizeOf(output);
        if (size === 0 || sent) return;
        sent = true;
        child.kill('SIGINT');
      }, 5);
      child.on('close', () => clearInterval(timer));
    },
  });
  expect(stopped).toMatchObject({ code: 130, stdout: '', stderr: expect.stringMatching(/go on with --resume/) });
  const before = resultsIn(readFileSync(output, 'utf8'));
  expect(before.length).toBeGreaterThan(0);
  expect(before.length).toBeLessThan(lines.length);
  expect(await runCli(flags)).toMatchObject({ code: 2, stderr: expect.stringMatching(/add --resume/) });

  appendFileSync(output, '{"line":3,"inp'); // as a machine that lost its power leaves it
  appendFileSync(output, '\n{"line":1,"input":"x","error":{"code":"ERR_NO_PAGES"}}\n');
  const resumed = await runCli([...flags, '--resume']);
  expect(resumed).toMatchObject({ code: 0, stderr: expect.stringContaining(`${before.length} were there`) });
  const results = resultsIn(readFileSync(output, 'utf8'));
  expect(results.map(({ line, id }) => [line, id])).toEqual(lines.map(({ id }, i) => [i + 1, id]));
  for (const [i, { tokens }] of results.entries())
    expect(tokens?.slice(0, 24)).toEqual(passages[i % passages.length]?.expected);

  const again = await runCli([...flags, '--resume']);
  expect(again).toMatchObject({ code: 0, stderr: expect.stringMatching(/^batch 0 done, 0 failed, 20 were there/) });
  const other = write('other.jsonl', lines.slice(1));
  const wrong = await runCli(['batch', other, '-o', output, '--resume', ...CPU]);
  expect(wrong).toMatchObject({ code: 1, stderr: expect.stringMatching(/belongs to another input.*ERR_FILE/) });
});

test('wrong files and flags', async () => {
  const invalid = join(folder, 'latin1.jsonl');
  writeFileSync(invalid, Buffer.from([0x7b, 0xff, 0x0a]));
  const cases: [string[], number, RegExp][] = [
    [['/nonexistent'], 1, /ERR_FILE/],
    [[folder], 1, /EISDIR.*ERR_FILE/],
    [[invalid], 2, /UTF-8/],
    [[write('one.jsonl', [{ prompt: 'x' }]), '--resume'], 2, /needs --output/],
    [[write('one.jsonl', [{ prompt: 'x' }]), '-o', '/nonexistent/x'], 1, /ERR_FILE/],
    [[], 2, /missing required argument/],
  ];
  for (const [args, code, stderr] of cases)
    expect(await runCli(['batch', ...args, ...CPU])).toMatchObject({ code, stderr: expect.stringMatching(stderr) });
});

function sizeOf(path: string): number {
  try {
    return readFileSync(path).length;
  } catch {
    return 0;
  }
}
