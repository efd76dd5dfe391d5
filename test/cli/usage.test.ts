// The command line without a model: help, version, wrong usage, and what exit codes mean.
import { CommanderError } from 'commander';
import { ClosedPipe, exitCodeOf, Interrupted, lineOf, NoGpuSupport, UsageError } from '../../lib/cli/failure';
import { parseTokens } from '../../lib/cli/input';
import { type ErrorCode, MlaError } from '../../lib/errors';
import { runCli } from './run-cli';

test('--version prints the version of the package', async () => {
  const { version } = require('../../package.json');
  expect(await runCli(['--version'])).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: '' });
});

test('--help names the commands and exit codes; help of a command names every flag with its default', async () => {
  const [main, generate, score] = await Promise.all([
    runCli(['--help']),
    runCli(['generate', '--help']),
    runCli(['score', '--help']),
  ]);
  for (const { code, stderr } of [main, generate, score]) expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(main.stdout).toMatch(/generate[\s\S]*score[\s\S]*Exit codes: 0 done, 1 failed, 2 wrong usage/);
  for (const flag of ['-m, --model', '-p, --prompt', '-f, --file', '--tokens', '-c, --context', '--json']) {
    expect(generate.stdout).toContain(flag);
    expect(score.stdout).toContain(flag);
  }
  const own = ['-n, --max-tokens', '--temp', '--top-p', '--top-k', '--min-p', '-s, --seed', '--chat', '--system'];
  for (const flag of own) expect(generate.stdout).toContain(flag);
  for (const flag of ['--top <k>', '--logits']) expect(score.stdout).toContain(flag);
  expect(generate.stdout).toMatch(/--max-tokens <n>\s+new tokens at most \(default:\s+256/);
  expect(generate.stdout).toMatch(/--device <name>[^(]*\(default:\s+"auto"\)/);
  for (const { stdout } of [main, generate, score]) {
    for (const line of stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(100);
  }
});

describe('wrong usage exits with 2 and says what is wrong', () => {
  const cases: [string[], RegExp][] = [
    [[], /Usage: mla/],
    [['generat'], /unknown command 'generat'[\s\S]*Did you mean generate/],
    [['generate', '--top-q', '1'], /unknown option '--top-q'/],
    [['generate', '-p'], /argument missing/],
    [['generate', '-p', 'x', 'y'], /too many arguments/],
    [['generate', '-p', 'x', '-n', '0'], /-n, --max-tokens.*integer from 1/],
    [['generate', '-p', 'x', '-n', '1.5'], /integer from 1/],
    [['generate', '-p', 'x', '-n', ''], /integer from 1/],
    [['generate', '-p', 'x', '--temp', 'nan'], /number from 0 to 100/],
    [['generate', '-p', 'x', '--temp', '-1'], /number from 0 to 100/],
    [['generate', '-p', 'x', '--temp', 'Infinity'], /number from 0 to 100/],
    [['generate', '-p', 'x', '--top-p', '0'], /above 0, up to 1/],
    [['generate', '-p', 'x', '--min-p', '1.01'], /number from 0 to 1/],
    [['generate', '-p', 'x', '--top-k', '-1'], /integer from 0/],
    [['generate', '-p', 'x', '-s', '9007199254740992'], /integer from 0 to 9007199254740991/],
    [['generate', '-p', 'x', '--device', 'gpu'], /auto, cpu, cuda:N or cuda:N:portable/],
    [['generate', '-p', 'x', '--dtype', 'int4'], /Allowed choices are auto, f32, bf16, fp8/],
    [['generate', '-p', 'x', '--activation-dtype', 'int8'], /Allowed choices are auto, f32, bf16, fp8/],
    [['generate', '-p', 'x', '--cache-dtype', 'int8'], /Allowed choices are auto, f32, bf16, fp8/],
    [['generate', '-p', 'x', '--threads', '-2'], /integer from 0/],
    [['generate', '-p', 'x', '-c', '0'], /integer from 1/],
    [['generate', '-p', 'x', '--tokens', '1'], /only one of --prompt and --tokens/],
    [['generate', '--tokens', '1,x'], /expected token ids such as 1,2,3; found "x"/],
    [['generate', '--tokens', ''], /found none/],
    [['generate', '--tokens', '1', '--chat'], /does not go with --tokens/],
    [['generate', '-p', 'x', '--system', 'y'], /--system needs --chat/],
    [['generate', '-p', 'x', '--template', 'deepseek-v3'], /--template needs --chat/],
    [['generate', '-p', ''], /prompt is empty/],
    [['generate'], /prompt is empty/], // stdin has ended
    [['score', '-p', 'x', '--logits'], /--logits needs --json/],
    [['score', '-p', 'x', '--top', '21'], /integer from 0 to 20/],
    [['score'], /text is empty/],
  ];
  test.each(cases)('mla %j', async (args, message) => {
    const { code, stdout, stderr } = await runCli(args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(message);
    expect(stderr).not.toMatch(/\n\s+at /); // no stack
  });

  test('bytes that are not UTF-8 are refused', async () => {
    const { code, stderr } = await runCli(['generate'], { stdin: Buffer.from([0x61, 0xff, 0x62]) });
    expect({ code, stderr }).toEqual({ code: 2, stderr: expect.stringContaining('expected UTF-8') });
  });
});

test('files that cannot be read are failures of one line', async () => {
  for (const args of [
    ['generate', '-f', '/nonexistent/prompt.txt'],
    ['generate', '-f', '/'],
    ['score', '--tokens', '@/nonexistent/ids'],
  ]) {
    const { code, stdout, stderr } = await runCli(args);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^mla: .*\(ERR_FILE\)\n$/);
  }
});

test('a reader that has gone before anything was written is no failure', async () => {
  const { code, stderr } = await runCli(['--help'], { onStart: (child) => child.stdout.destroy() });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
});

test('Ctrl+C while it waits for stdin exits with 130', async () => {
  const ran = await runCli(['generate'], {
    keepStdin: true,
    // More than a socket holds: once all of it is written, the other end is reading.
    onStart: (child) => child.stdin.write('a'.repeat(2 ** 21), () => child.kill('SIGINT')),
  });
  expect(ran).toMatchObject({ code: 130, stdout: '', stderr: 'mla: interrupted\n' });
});

describe('parts', () => {
  test.each([
    ['1,2,3', [1, 2, 3]],
    [' 1 2\n3\t', [1, 2, 3]],
    ['[1, 2,3]\n', [1, 2, 3]],
    ['7', [7]],
    ['0, 4294967295', [0, 4294967295]],
  ])('token list %j', (text, ids) => expect(parseTokens(text, 'x')).toEqual(ids));

  test.each(['', '[]', '1,,2', ',1', '1,', '-1', '1.5', '1e3', '[1],[2]', '[1', '0x10', '12345678901', 'null'])(
    'no token list: %j',
    (text) => expect(() => parseTokens(text, 'x')).toThrow(UsageError),
  );

  test.each<[ErrorCode, number]>([
    ['ERR_INVALID_ARG', 2],
    ['ERR_NO_DEVICE', 3],
    ['ERR_DEVICE_UNUSABLE', 3],
    ['ERR_DRIVER_TOO_OLD', 3],
    ['ERR_OUT_OF_MEMORY', 4],
    ['ERR_OUT_OF_DEVICE_MEMORY', 4],
    ['ERR_CHECKPOINT', 1],
    ['ERR_DEVICE_LOST', 1],
    ['ERR_NO_PAGES', 1],
  ])('%s exits with %i', (code, exit) => expect(exitCodeOf(new MlaError(code, 'x'))).toBe(exit));

  test.each<[string, unknown, number]>([
    ['an interrupt', new Interrupted(), 130],
    ['a closed pipe', new ClosedPipe(), 0],
    ['a GPU for a build without', new NoGpuSupport(new MlaError('ERR_UNSUPPORTED', 'x')), 3],
    ['wrong flags', new UsageError('x'), 2],
    ['an unknown flag', new CommanderError(1, 'commander.unknownOption', 'x'), 2],
    ['--version', new CommanderError(0, 'commander.version', 'x'), 0],
    ['a defect', new TypeError('x'), 1],
    ['what is no error', 'x', 1],
  ])('%s exits as it should', (_, error, code) => expect(exitCodeOf(error)).toBe(code));

  test('a message is one line without control characters, whatever is in it', () => {
    const line = lineOf(new MlaError('ERR_FILE', 'a\nb\u001b[31mc\u0085d'));
    expect(line).toBe('mla: a b [31mc d (ERR_FILE)');
    expect(lineOf(new ClosedPipe())).toBeNull();
    expect(lineOf(new TypeError('bad'))).toBe('mla: bad (ERR_INTERNAL)');
  });
});
