// cli/message-reader.ts - messages from a person at a terminal, or from a pipe.
import { createInterface } from 'node:readline';
import { type Composed, Composer } from './composer';

const PROMPT = '> ';
const PROMPT_WITHIN = '. ';
const MAX_HISTORY = 1000;
/** The terminal tells pasted text from typed text. */
const PASTE_ON = '\x1b[?2004h';
const PASTE_OFF = '\x1b[?2004l';

/** Where a conversation's messages come from. */
export interface MessageReader {
  /** Whether somebody sits there. */
  readonly interactive: boolean;
  /** The next message; null when there are no more. Rejects with the signal's reason. */
  next(signal: AbortSignal): Promise<Composed | null>;
}

/** @param commands words that Tab completes at the beginning of a line */
export function messageReader(commands: readonly string[]): MessageReader {
  return process.stdin.isTTY && process.stderr.isTTY ? new TerminalReader(commands) : new PipeReader();
}

/**
 * A line editor with history (arrow keys, Ctrl+R is not there). It listens only while a message is wanted: between
 * messages the terminal is as usual, so that Ctrl+C is a signal.
 */
class TerminalReader implements MessageReader {
  readonly interactive = true;
  private history: string[] = [];

  constructor(private readonly commands: readonly string[]) {}

  next(signal: AbortSignal): Promise<Composed | null> {
    const { stdin, stderr } = process;
    const composer = new Composer();
    const editor = createInterface({
      input: stdin,
      output: stderr, // stdout has the replies alone
      prompt: PROMPT,
      history: this.history,
      historySize: MAX_HISTORY,
      removeHistoryDuplicates: true,
      completer: (line: string): [string[], string] => [this.commands.filter((name) => name.startsWith(line)), line],
    }) as ReturnType<typeof createInterface> & { history: string[] };
    let pasting = false;
    const onKey = (_: unknown, key: { name?: string } | undefined) => {
      if (key?.name === 'paste-start') pasting = true;
      if (key?.name === 'paste-end') pasting = false;
    };
    stderr.write(PASTE_ON);
    stdin.on('keypress', onKey);
    return new Promise((resolve, reject) => {
      let finished = false;
      const finish = (settle: () => void) => {
        if (finished) return;
        finished = true;
        stdin.off('keypress', onKey);
        signal.removeEventListener('abort', onAbort);
        this.history = editor.history;
        editor.close();
        stderr.write(PASTE_OFF);
        settle();
      };
      const ask = () => {
        editor.setPrompt(composer.open ? PROMPT_WITHIN : PROMPT);
        editor.prompt();
      };
      const onAbort = () => finish(() => reject(signal.reason));
      signal.addEventListener('abort', onAbort);
      editor.on('line', (line) => {
        const composed = composer.add(line, pasting);
        if (composed !== null) finish(() => resolve(composed));
        else if (!pasting) ask();
      });
      editor.on('SIGINT', () => {
        const empty = editor.line === '' && !composer.open;
        stderr.write(empty ? '\n(Ctrl+D or /exit leaves)\n' : '^C\n');
        composer.clear();
        pasting = false;
        (editor as { line: string; cursor: number }).line = '';
        (editor as { line: string; cursor: number }).cursor = 0;
        ask();
      });
      editor.on('close', () => {
        if (!finished) stderr.write('\n');
        finish(() => resolve(composer.finish()));
      });
      if (signal.aborted) onAbort();
      else ask();
    });
  }
}

/** Lines of a file or of another program's output. */
class PipeReader implements MessageReader {
  readonly interactive = false;
  private readonly composer = new Composer();
  private lines: AsyncIterator<string> | null = null;

  async next(signal: AbortSignal): Promise<Composed | null> {
    this.lines ??= createInterface({ input: process.stdin, signal })[Symbol.asyncIterator]();
    for (;;) {
      const line = await this.lines.next();
      signal.throwIfAborted();
      if (line.done) return this.composer.finish();
      const composed = this.composer.add(line.value);
      if (composed !== null) return composed;
    }
  }
}
