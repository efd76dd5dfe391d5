// cli/chat-commands.ts - what a line that begins with a slash does in mla chat.
import type { Model, Result } from '../engine';
import type { Conversation } from './conversation';
import { UsageError } from './failure';
import { summaryOf } from './generate';
import { note } from './output';

const HELP: Readonly<Record<string, readonly [argument: string, help: string]>> = {
  '/help': ['', 'lists these commands'],
  '/system': ['[TEXT]', 'sets the system message, or shows it; "/system -" removes it'],
  '/reset': ['', 'begins a new conversation; the system message stays'],
  '/save': ['FILE', 'writes the conversation to a file'],
  '/load': ['FILE', 'goes on with a conversation from a file'],
  '/stats': ['', 'figures of the conversation and of the engine'],
  '/exit': ['', 'leaves (also Ctrl+D)'],
};

const MORE_HELP = `
A line that ends with \\ goes on in the next one; """ begins and ends a message
of many lines; // begins a message with a slash.`;

/** The commands of one conversation, and the figures that they show. */
export class ChatCommands {
  static readonly names: readonly string[] = Object.keys(HELP);

  private replies = 0;
  private promptTokens = 0;
  private completionTokens = 0;
  private last: Result | null = null;

  constructor(
    private readonly model: Model,
    private readonly conversation: Conversation,
  ) {}

  /** Takes a reply into the figures. */
  count(result: Result): void {
    this.replies++;
    this.promptTokens += result.usage.promptTokens;
    this.completionTokens += result.usage.completionTokens;
    this.last = result;
  }

  /**
   * Runs a command line. Rejects with a UsageError for a command that there is not, or without its argument; with ERR_FILE.
   * @returns 'leave' when the conversation is to end
   */
  async run(line: string): Promise<'leave' | undefined> {
    const [, name = '', argument = ''] = /^(\/\S*)\s*([\s\S]*?)\s*$/.exec(line) ?? [];
    const known = HELP[name];
    if (known === undefined) throw new UsageError(`There is no command ${name}; /help lists them.`);
    if (known[0] !== '' && !known[0].startsWith('[') && argument === '')
      throw new UsageError(`${name} needs ${known[0]}: ${known[1]}.`);
    switch (name) {
      case '/help':
        note(helpText());
        return;
      case '/system':
        this.system(argument);
        return;
      case '/reset':
        this.conversation.reset();
        note('a new conversation');
        return;
      case '/save':
        await this.conversation.save(argument);
        note(`${this.conversation.messages.length} messages written to ${argument}`);
        return;
      case '/load':
        await this.conversation.load(argument);
        note(`${this.conversation.messages.length} messages read from ${argument}`);
        return;
      case '/stats':
        note(await this.statistics());
        return;
      default:
        return 'leave';
    }
  }

  private system(text: string): void {
    if (text !== '') this.conversation.system = text === '-' ? null : text;
    const { system } = this.conversation;
    note(system === null ? 'no system message' : `system message: ${system}`);
  }

  private async statistics(): Promise<string> {
    const { last, model } = this;
    const { pages, preemptions } = await model.stats();
    const used = last === null ? 0 : last.usage.promptTokens + last.usage.completionTokens;
    return [
      `conversation  ${this.conversation.messages.length} messages, ${used} of ${model.info.context} tokens`,
      `replies       ${this.replies}, ${this.completionTokens} tokens for prompts of ${this.promptTokens}`,
      ...(last === null ? [] : [`last          ${summaryOf(last.usage, last.timings)}`]),
      `cache         ${pages.held} pages held, ${pages.cached} kept for reuse, ${pages.free} free; ${preemptions} preemptions`,
    ].join('\n');
  }
}

function helpText(): string {
  const lines = Object.entries(HELP).map(([name, [argument, help]]) => `${`${name} ${argument}`.padEnd(16)}${help}`);
  return lines.join('\n') + MORE_HELP;
}
