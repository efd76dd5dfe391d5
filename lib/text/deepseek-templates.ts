// deepseek-templates.ts - the prompt formats of DeepSeek's models, written out, for checkpoints whose own template is missing
// or broken. They are used only when asked for by name. Where the templates that were shipped are broken (a single tool call
// is never closed; tool results before a user message neither), these follow what was meant.
import { MlaError } from '../errors';
import type { ChatMessage } from './chat-messages';

/** Names of the built-in formats. V2.5 has that of deepseek-v3. */
export const BUILT_IN_TEMPLATES = ['deepseek-v2', 'deepseek-v3', 'deepseek-r1', 'deepseek-v3.1'] as const;
/** A built-in format, by its name. V2.5 has that of deepseek-v3. */
export type BuiltInTemplate = (typeof BUILT_IN_TEMPLATES)[number];

export interface BuiltInOptions {
  addGenerationPrompt: boolean;
  /** V3.1 only: start the answer with reasoning. */
  thinking: boolean;
}

const BOS = '<｜begin▁of▁sentence｜>';
const EOS = '<｜end▁of▁sentence｜>';
const USER = '<｜User｜>';
const ASSISTANT = '<｜Assistant｜>';
const THINK = '<think>';
const END_THINK = '</think>';
const CALLS = ['<｜tool▁calls▁begin｜>', '<｜tool▁calls▁end｜>'] as const;
const CALL = ['<｜tool▁call▁begin｜>', '<｜tool▁call▁end｜>'] as const;
const OUTPUTS = ['<｜tool▁outputs▁begin｜>', '<｜tool▁outputs▁end｜>'] as const;
const OUTPUT = ['<｜tool▁output▁begin｜>', '<｜tool▁output▁end｜>'] as const;
const SEPARATOR = '<｜tool▁sep｜>';

/**
 * Renders messages in a built-in format.
 * @throws ERR_TEMPLATE when the format has no place for a message
 */
export function renderBuiltIn(
  name: BuiltInTemplate,
  messages: readonly ChatMessage[],
  options: BuiltInOptions,
): string {
  if (options.thinking && name !== 'deepseek-v3.1') {
    throw new MlaError(
      'ERR_TEMPLATE',
      `Template ${name}: thinking cannot be chosen; only deepseek-v3.1 has both ways.`,
    );
  }
  return name === 'deepseek-v2' ? renderV2(messages, options) : renderV3(name, messages, options);
}

/** The tokens that a format needs besides those of tool calls; a tokenizer without one of them cannot write it. */
export function tokensOfBuiltIn(name: BuiltInTemplate): string[] {
  if (name === 'deepseek-v2') return [BOS, EOS];
  if (name === 'deepseek-v3') return [BOS, EOS, USER, ASSISTANT];
  return [BOS, EOS, USER, ASSISTANT, THINK, END_THINK];
}

function renderV2(messages: readonly ChatMessage[], { addGenerationPrompt }: BuiltInOptions): string {
  let text = BOS;
  for (const { role, content, tool_calls } of messages) {
    if (role === 'tool' || tool_calls !== undefined)
      throw new MlaError('ERR_TEMPLATE', 'Template deepseek-v2 has no tool calls.');
    if (role === 'system') text += `${content}\n\n`;
    else if (role === 'user') text += `User: ${content}\n\n`;
    else text += `Assistant: ${content}${EOS}`;
  }
  return addGenerationPrompt ? `${text}Assistant:` : text;
}

function renderV3(
  name: BuiltInTemplate,
  messages: readonly ChatMessage[],
  { addGenerationPrompt, thinking }: BuiltInOptions,
): string {
  const v31 = name === 'deepseek-v3.1';
  const system = messages.filter(({ role }) => role === 'system').map(({ content }) => content);
  let text = BOS + system.join('\n\n');
  let before: ChatMessage['role'] | null = null; // who spoke last; system messages do not count
  for (const message of messages) {
    const { role } = message;
    if (role === 'system') continue;
    if (role === 'tool') text += toolOutput(message, v31, before === 'tool');
    else if (before === 'tool' && !v31) text += OUTPUTS[1];
    if (role === 'user') text += USER + message.content;
    if (role === 'assistant') {
      // After a tool's result the model continues the same turn.
      if (before !== 'tool') text += v31 ? ASSISTANT + END_THINK : ASSISTANT;
      text += answer(name, message) + toolCalls(message, v31) + EOS;
    }
    before = role;
  }
  if (before === 'tool') return v31 ? text : text + OUTPUTS[1];
  if (!addGenerationPrompt) return text;
  if (v31) return text + ASSISTANT + (thinking ? THINK : END_THINK);
  return name === 'deepseek-r1' ? `${text}${ASSISTANT}${THINK}\n` : text + ASSISTANT;
}

/** An earlier answer; the models that reason are shown it without its reasoning. */
function answer(name: BuiltInTemplate, { content }: ChatMessage): string {
  const text = content ?? '';
  if (name === 'deepseek-v3' || !text.includes(END_THINK)) return text;
  const cut = name === 'deepseek-r1' ? text.lastIndexOf(END_THINK) : text.indexOf(END_THINK);
  return text.slice(cut + END_THINK.length);
}

function toolCalls({ tool_calls: calls }: ChatMessage, v31: boolean): string {
  if (calls === undefined || calls.length === 0) return '';
  const texts = calls.map(({ function: { name, arguments: values } }) => {
    const json = typeof values === 'string' ? values : JSON.stringify(values);
    const body = v31 ? `${name}${SEPARATOR}${json}` : `function${SEPARATOR}${name}\n\`\`\`json\n${json}\n\`\`\``;
    return CALL[0] + body + CALL[1];
  });
  return CALLS[0] + texts.join(v31 ? '' : '\n') + CALLS[1];
}

function toolOutput({ content }: ChatMessage, v31: boolean, another: boolean): string {
  const output = OUTPUT[0] + content + OUTPUT[1];
  if (v31) return output;
  return another ? `\n${output}` : OUTPUTS[0] + output;
}
