// mla chat with the bundled model: through pipes, and at a terminal that `script` pretends to be.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ROOT, runCli } from './run-cli';

const CPU = ['--device', 'cpu', '--threads', '2'];
const LOVE = 'A temporary insanity curable by marriage or by removal of the patient from the influences';
jest.setTimeout(60_000);
const folder = mkdtempSync(join(tmpdir(), 'mla-chat-'));

describe('through pipes', () => {
  test('each line is a message; replies alone go to stdout, without colours', async () => {
    const { code, stdout, stderr } = await runCli(['chat', ...CPU], {
      stdin: 'Define love.\n\n"""\nDefine\nhistory.\n"""\n/stats\n',
    });
    expect(code).toBe(0);
    const lines = stdout.trimEnd().split('\n');
    expect(lines[0]).toContain(LOVE);
    expect(lines.length).toBeGreaterThan(1);
    expect(stdout + stderr).not.toContain('\x1b');
    expect(stderr).toMatch(/^prefill \d+ tok .* \| context \d+\/2048\nprefill /);
    expect(stderr).toMatch(/conversation {2}4 messages, \d+ of 2048 tokens\nreplies {7}2, /);
  });

  test('--json prints one object per reply', async () => {
    const { code, stdout } = await runCli(['chat', '--json', '-n', '5', ...CPU], { stdin: 'Define love.\nAnd more\n' });
    expect(code).toBe(0);
    const replies = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(replies).toHaveLength(2);
    expect(Object.keys(replies[0])).toEqual(['text', 'thought', 'finishReason', 'usage', 'timings']);
    expect(replies[0]).toMatchObject({ finishReason: 'length', thought: '', usage: { completionTokens: 5 } });
    expect(replies[1].usage.promptTokens).toBeGreaterThan(replies[0].usage.promptTokens + 5);
  });

  test('a conversation is saved and taken up again', async () => {
    const file = join(folder, 'talk.json');
    const saved = await runCli(['chat', '--system', 'Speak.', '-n', '4', ...CPU], {
      stdin: `Define love.\n/save ${file}\n`,
    });
    expect(saved.code).toBe(0);
    const { messages } = JSON.parse(readFileSync(file, 'utf8'));
    expect(messages.map(({ role }: { role: string }) => role)).toEqual(['system', 'user', 'assistant']);
    const went = await runCli(['chat', '--json', '-n', '1', ...CPU], { stdin: `/load ${file}\nGo on\n/system\n` });
    const { usage } = JSON.parse(went.stdout);
    expect(usage.promptTokens).toBeGreaterThan(12);
    expect(went.stderr).toContain('system message: Speak.');
  });

  test('what is wrong ends a script with its code', async () => {
    const broken = join(folder, 'broken.json');
    writeFileSync(broken, '{"messages":[{"role":"nobody"}]}');
    const cases: [string, number, RegExp][] = [
      ['/nothing\n', 2, /no command \/nothing/],
      ['/save\n', 2, /needs FILE/],
      [`/load ${broken}\n`, 1, /messages\[0\].*ERR_FILE/],
      ['/load /nonexistent\n', 1, /ERR_FILE/],
    ];
    for (const [stdin, code, stderr] of cases) {
      expect(await runCli(['chat', ...CPU], { stdin })).toMatchObject({
        code,
        stdout: '',
        stderr: expect.stringMatching(stderr),
      });
    }
    const full = await runCli(['chat', '-c', '8', ...CPU], { stdin: `${'many words '.repeat(20)}\n` });
    expect(full).toMatchObject({ code: 1, stderr: expect.stringMatching(/\/reset.*ERR_CONTEXT_LENGTH/) });
  });
});

/** A chat at a terminal: `when` is a list of what to wait for on the screen and what to type then. */
function atTerminal(
  args: string[],
  when: [seen: RegExp, keys: string][],
  env: Record<string, string> = {},
): Promise<{ code: number | null; screen: string }> {
  const command = [process.execPath, join(ROOT, 'dist', 'cli', 'main.js'), 'chat', ...args, ...CPU]
    .map((word) => `'${word}'`)
    .join(' ');
  const child = spawn('script', ['-qefc', `stty cols 80 rows 24; exec ${command}`, '/dev/null'], {
    // Whoever runs the tests may have said NO_COLOR for their own output.
    env: { ...process.env, NO_COLOR: undefined, TERM: 'xterm-256color', ...env },
  });
  const timer = setTimeout(() => child.kill('SIGKILL'), 45_000);
  let screen = '';
  let from = 0;
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    screen += text;
    for (let next = when[0]; next !== undefined; next = when[0]) {
      const found = next[0].exec(screen.slice(from));
      if (found === null) return;
      from += found.index + found[0].length;
      when.shift();
      child.stdin.write(next[1]);
    }
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => {
      clearTimeout(timer);
      expect({ screen, awaited: when.map(([seen]) => String(seen)) }).toMatchObject({ awaited: [] });
      resolve({ code, screen });
    });
  });
}

const PROMPT = /> /;

describe('at a terminal', () => {
  test('answers, lists commands, completes them, and leaves at Ctrl+D with 0', async () => {
    const { code, screen } = await atTerminal(
      ['--temp', '0'],
      [
        [PROMPT, 'Define love.\r'],
        [/curable by marriage[\s\S]*context 44\/2048[\s\S]*> /, '/he\t\r'],
        [/\/save FILE[\s\S]*> /, '/nothing\r'],
        [/There is no command \/nothing[\s\S]*> /, '\x04'],
      ],
    );
    expect(code).toBe(0);
    expect(screen).toContain('\x1b[2m'); // what is not the reply is dimmed
    const help = screen.slice(screen.indexOf('/help  '), screen.indexOf('begins a message with a slash')).split('\r\n');
    expect(help.length).toBeGreaterThan(7);
    for (const line of help) expect(line.length).toBeLessThan(80);
  });

  test('Ctrl+C stops the reply and not the program; at the prompt it says how to leave', async () => {
    const { code, screen } = await atTerminal(
      ['--temp', '100'],
      [
        [PROMPT, 'Speak\r'],
        [/Speak\s+[\s\S]{40}/, '\x03'],
        [/stopped[\s\S]*> /, '\x03'],
        [/Ctrl\+D or \/exit leaves[\s\S]*> /, '/stats\r'],
        [/conversation {2}2 messages[\s\S]*> /, '/exit\r'],
      ],
    );
    expect(code).toBe(0);
    expect(screen).not.toContain('ERR_');
  });

  test('pasted lines are one message, and a backslash goes on', async () => {
    const file = join(folder, 'pasted.json');
    const { code } = await atTerminal(
      ['-n', '1'],
      [
        [PROMPT, '\x1b[200~first\rsecond\x1b[201~\r'],
        [/context \d+[\s\S]*> /, 'one \\\r'],
        [/\. /, 'two\r'],
        [/context \d+[\s\S]*> /, `/save ${file}\r`],
        [/4 messages written[\s\S]*> /, '\x04'],
      ],
    );
    expect(code).toBe(0);
    const { messages } = JSON.parse(readFileSync(file, 'utf8'));
    expect([messages[0].content, messages[2].content]).toEqual(['first\nsecond', 'one \ntwo']);
  });

  test('NO_COLOR leaves the colours out', async () => {
    const { code, screen } = await atTerminal(
      ['-n', '2'],
      [
        [PROMPT, 'Speak\r'],
        [/context \d+[\s\S]*> /, '\x04'],
      ],
      {
        NO_COLOR: '1',
      },
    );
    expect(code).toBe(0);
    for (const colour of ['2', '22', '31', '39']) expect(screen).not.toContain(`\x1b[${colour}m`);
  });
});
