// cli/conversation.ts - the messages of a chat, and their file.
import { readFile } from 'node:fs/promises';
import { replaceFile } from '../cache';
import { MlaError } from '../errors';
import type { ChatMessage } from '../text';

/** More than any context. */
const MAX_FILE_BYTES = 64 * 1024 * 1024;

/** What was said so far. */
export class Conversation {
  private said: ChatMessage[] = [];

  constructor(private systemText: string | null) {}

  /** The system message, or null. */
  get system(): string | null {
    return this.systemText;
  }

  set system(text: string | null) {
    this.systemText = text;
  }

  /** All messages, the system message first. */
  get messages(): ChatMessage[] {
    const { systemText, said } = this;
    return systemText === null ? [...said] : [{ role: 'system', content: systemText }, ...said];
  }

  add(message: ChatMessage): void {
    this.said.push(message);
  }

  /** Takes the last message back. */
  takeBack(): void {
    this.said.pop();
  }

  /** Forgets everything but the system message. */
  reset(): void {
    this.said = [];
  }

  /** Writes all messages as JSON; the file appears whole or not at all. Rejects with ERR_FILE. */
  async save(path: string): Promise<void> {
    const text = `${JSON.stringify({ messages: this.messages }, null, 2)}\n`;
    await replaceFile(path, (write) => write(Buffer.from(text)));
  }

  /** Reads what {@link save} wrote, in place of what was said. Rejects with ERR_FILE, and changes nothing then. */
  async load(path: string): Promise<void> {
    let text: string;
    try {
      const bytes = await readFile(path);
      if (bytes.length > MAX_FILE_BYTES) throw new Error(`more than ${MAX_FILE_BYTES} bytes`);
      text = bytes.toString('utf8');
    } catch (cause) {
      throw unreadable(path, cause);
    }
    const messages = messagesIn(text, path);
    this.systemText = messages[0]?.role === 'system' ? messages[0].content : null;
    this.said = this.systemText === null ? messages : messages.slice(1);
  }
}

function messagesIn(text: string, path: string): ChatMessage[] {
  let messages: unknown;
  try {
    messages = (JSON.parse(text) as { messages?: unknown } | null)?.messages;
  } catch (cause) {
    throw new MlaError('ERR_FILE', `${path}: expected JSON as /save writes it (${(cause as Error).message}).`, {
      cause,
    });
  }
  if (!Array.isArray(messages)) throw new MlaError('ERR_FILE', `${path}: expected an object with "messages".`);
  for (const [i, message] of messages.entries()) {
    const { role, content } = (message ?? {}) as Partial<ChatMessage>;
    const roles: unknown[] = ['system', 'user', 'assistant', 'tool'];
    if (!roles.includes(role) || (typeof content !== 'string' && role !== 'assistant'))
      throw new MlaError('ERR_FILE', `${path}: messages[${i}]: expected an object with role and content.`);
  }
  return messages as ChatMessage[];
}

function unreadable(path: string, cause: unknown): MlaError {
  const { code, message } = cause as NodeJS.ErrnoException;
  return new MlaError('ERR_FILE', `${path}: cannot be read (${code ?? message}).`, { cause });
}
