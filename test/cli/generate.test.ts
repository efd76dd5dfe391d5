// mla generate with real models: the bundled one for text, test/golden for ids.
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Interrupted } from '../../lib/cli/failure';
import { printJson } from '../../lib/cli/generate';
import { expectedTokens } from '../engine/fake-model';
import { makeModel } from '../engine/make-model';
import { golden, ROOT, runCli } from './run-cli';

interface Passage {
  text: string;
  prompt: number[];
  expected: number[];
}
const passages: Passage[] = JSON.parse(readFileSync(join(ROOT, 'models', 'kjv-10m', 'passages.json'), 'utf8'));
const passage = passages[0] as Passage;
const reference = JSON.parse(readFileSync(join(golden('v2-lite'), 'golden.json'), 'utf8')).prompts[1];
const CPU = ['--device', 'cpu', '--threads', '2'];
const TINY = ['-m', golden('v2-lite'), ...CPU];

const SUMMARY = /^prefill \d+ tok [\d.]+ t\/s \| decode \d+ tok [\d.]+ t\/s \| ttft \d+ ms\n$/;

test('text goes to stdout, one line of statistics to stderr, no colours in files', async () => {
  const ran = await runCli(['generate', '-p', passage.text, '-n', '8', '--temp', '0', ...CPU]);
  expect(ran).toMatchObject({ code: 0, signal: null, stderr: expect.stringMatching(SUMMARY) });
  expect(ran.stdout.length).toBeGreaterThan(8);
  expect(ran.stdout.endsWith('\n')).toBe(false);
  const json = await runCli(['generate', '-p', passage.text, '-n', '8', '--temp', '0', '--json', ...CPU]);
  expect(JSON.parse(json.stdout).text).toBe(ran.stdout);
});

test('--json prints one object of this shape and nothing else', async () => {
  const { code, stdout, stderr } = await runCli(['generate', '-p', passage.text, '-n', '8', '--json', ...CPU]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.endsWith('}\n')).toBe(true);
  const result = JSON.parse(stdout);
  expect(Object.keys(result)).toEqual(['tokens', 'text', 'finishReason', 'usage', 'timings']);
  expect(result.tokens).toEqual(passage.expected.slice(0, 8));
  expect(result.finishReason).toBe('length');
  expect(result.usage).toEqual({ promptTokens: passage.prompt.length, cachedTokens: 0, completionTokens: 8 });
  const number = expect.any(Number);
  expect(result.timings).toEqual({
    loadMs: number,
    queueMs: number,
    prefillMs: number,
    decodeMs: number,
    ttftMs: number,
    prefillTokensPerSecond: number,
    decodeTokensPerSecond: number,
  });
});

test('--tokens works on ids in every form, with a folder that has no tokenizer', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'mla-cli-'));
  const file = join(folder, 'ids.json');
  const { tokens, greedy } = reference as { tokens: number[]; greedy: number[] };
  writeFileSync(file, JSON.stringify(tokens));
  const flags = [...TINY, '-n', '8'];
  const [list, fromFile, fromStdin, plain] = await Promise.all([
    runCli(['generate', '--tokens', tokens.join(','), ...flags, '--json']),
    runCli(['generate', '--tokens', `@${file}`, ...flags, '--json']),
    runCli(['generate', '--tokens', '-', ...flags, '--json'], { stdin: tokens.join('\n') }),
    runCli(['generate', '--tokens', tokens.join(' '), ...flags]),
  ]);
  for (const { code, stdout } of [list, fromFile, fromStdin]) {
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ tokens: greedy.slice(0, 8), text: '' });
  }
  expect(plain).toMatchObject({ code: 0, stdout: `${greedy.slice(0, 8).join(' ')}\n` });
});

test('stdin and -f give the prompt; one line break at the end is not part of it', async () => {
  const file = join(mkdtempSync(join(tmpdir(), 'mla-cli-')), 'prompt.txt');
  writeFileSync(file, passage.text);
  const flags = ['-n', '4', '--json', ...CPU];
  const [stdin, fromFile] = await Promise.all([
    runCli(['generate', ...flags], { stdin: `${passage.text}\n` }),
    runCli(['generate', '-f', file, ...flags]),
  ]);
  for (const { code, stdout } of [stdin, fromFile]) {
    expect(code).toBe(0);
    expect(JSON.parse(stdout).tokens).toEqual(passage.expected.slice(0, 4));
  }
});

test('--chat uses the template, --system adds to it', async () => {
  const flags = ['--chat', '-n', '3', '--json', ...CPU];
  const [user, both] = await Promise.all([
    runCli(['generate', '-p', 'And God said', ...flags]),
    runCli(['generate', '-p', 'And God said', '--system', 'Speak thus.', ...flags]),
  ]);
  expect([user.code, both.code]).toEqual([0, 0]);
  const [few, more] = [user, both].map(({ stdout }) => JSON.parse(stdout).usage.promptTokens as number);
  expect(more).toBeGreaterThan(few as number);
});

test('the same seed gives the same text, another seed another', async () => {
  const sample = (seed: number) =>
    runCli(['generate', '-p', 'And', '-n', '24', '--temp', '2', '-s', String(seed), '--json', ...CPU]);
  const [first, again, other] = (await Promise.all([sample(1), sample(1), sample(2)])).map(
    ({ stdout }) => JSON.parse(stdout).tokens,
  );
  expect(again).toEqual(first);
  expect(other).not.toEqual(first);
});

describe('failures are one line with a code', () => {
  const line = (code: string) => expect.stringMatching(new RegExp(`^mla: [^\\n]+ \\(${code}\\)\\n$`));
  test.each([
    [['-p', 'x', '-m', '/nonexistent'], 1, 'ERR_FILE'],
    [['-p', 'x', '-m', golden('v2-lite')], 1, 'ERR_TOKENIZER'],
    [['--tokens', '1,256', '-m', golden('v2-lite')], 2, 'ERR_INVALID_ARG'],
    [['--tokens', '1,2,3,4', '-c', '4', '-m', golden('v2-lite')], 1, 'ERR_CONTEXT_LENGTH'],
    [['--tokens', '1,2', '-n', '7', '-c', '8', '-m', golden('v2-lite')], 1, 'ERR_CONTEXT_LENGTH'],
    [['-p', 'x', '-c', '999999999'], 2, 'ERR_INVALID_ARG'],
  ])('mla generate %j', async (args, code, name) => {
    expect(await runCli(['generate', ...args, ...CPU])).toEqual({ code, signal: null, stdout: '', stderr: line(name) });
  });

  test('a GPU that is not there exits with 3', async () => {
    const ran = await runCli(['generate', '-p', 'x', '--device', 'cuda:99']);
    expect(ran).toMatchObject({ code: 3, stdout: '', stderr: expect.stringMatching(/^mla: .+\(ERR_[A-Z_]+\)\n$/) });
  });
});

/** Takes seconds on any machine. */
const LONG = ['generate', '--tokens', '1,2,3', '-c', '10240', '-n', '10000', '--ignore-eos', ...TINY];

test('a reader that goes away ends the command quietly with 0', async () => {
  const ran = await runCli(LONG, { onStdout: (child) => child.stdout.destroy() });
  expect(ran).toMatchObject({ code: 0, signal: null, stderr: '' });
});

describe('Ctrl+C', () => {
  test('ends the text where it is and exits with 130', async () => {
    let sent = false;
    const ran = await runCli(LONG, {
      onStdout: (child, soFar) => {
        if (sent || soFar.length < 20) return;
        sent = true;
        child.kill('SIGINT');
      },
    });
    expect(ran).toMatchObject({ code: 130, signal: null, stderr: 'mla: interrupted\n' });
    expect(ran.stdout).toMatch(/^\d+( \d+)+\n$/);
    expect(ran.stdout.split(' ').length).toBeLessThan(10_000);
  });

  test.each([40, 300, 700])('after %i ms, whatever it is doing then, exits with 130', async (delay) => {
    const ran = await runCli(LONG, { onStart: (child) => setTimeout(() => child.kill('SIGINT'), delay) });
    // Before the command has set up anything, the signal itself ends the process; a shell shows that as 130 too.
    expect(ran.code ?? ran.signal).toBe(ran.signal === null ? 130 : 'SIGINT');
  });

  test('with --json prints what came', async () => {
    const { model } = makeModel();
    const controller = new AbortController();
    const printed: string[] = [];
    const write = jest.spyOn(process.stdout, 'write').mockImplementation((text, done) => {
      printed.push(String(text));
      (done as unknown as () => void)();
      return true;
    });
    try {
      const generation = model.generate([1], { maxTokens: 4000, seed: 0, ignoreEos: true, signal: controller.signal });
      setTimeout(() => controller.abort(new Interrupted()), 30);
      await expect(printJson(generation)).rejects.toBeInstanceOf(Interrupted);
    } finally {
      write.mockRestore();
    }
    expect(printed).toHaveLength(1);
    const { tokens, finishReason, usage, timings } = JSON.parse(printed[0] as string);
    expect(tokens).toEqual(expectedTokens([1], { maxTokens: tokens.length }));
    expect(tokens.length).toBeGreaterThan(0);
    expect({ finishReason, usage, timings }).toEqual({
      finishReason: 'aborted',
      usage: { promptTokens: null, completionTokens: tokens.length },
      timings: null,
    });
  });
});
