// chat-messages.ts - the messages of a conversation, and their strict reading: what a template gets is plain data of bounded
// size that this file has copied, never the caller's own objects.
import { describe, invalidArg, MlaError } from '../errors';
import { MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_MESSAGES, MAX_RENDERED_LENGTH, MAX_TOOLS } from './limits';
import { wellFormed } from './well-formed';

/** Who says a message. */
export type Role = 'system' | 'user' | 'assistant' | 'tool';
const ROLES: readonly Role[] = ['system', 'user', 'assistant', 'tool'];

/** Plain data, as JSON has it. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** One call of a function that an assistant message asked for. */
export interface ToolCall {
  id?: string;
  type?: 'function';
  function: {
    name: string;
    /** JSON text (what DeepSeek's templates expect) or, for templates that want it, an object. */
    arguments: string | { [key: string]: Json };
  };
}

/** One message, in the field names that chat templates use. */
export interface ChatMessage {
  role: Role;
  /** The text. Only an assistant message with tool calls may have null here. */
  content: string | null;
  name?: string;
  /** Assistant only. */
  tool_calls?: ToolCall[];
  /** Tool only: the call this is the result of. */
  tool_call_id?: string;
  /** Assistant only: reasoning kept apart from the answer. Few templates use it. */
  reasoning_content?: string;
}

const FIELDS: Record<Role, readonly string[]> = {
  system: ['role', 'content', 'name'],
  user: ['role', 'content', 'name'],
  assistant: ['role', 'content', 'name', 'tool_calls', 'reasoning_content'],
  tool: ['role', 'content', 'name', 'tool_call_id'],
};

/**
 * Checks and copies messages.
 * @throws ERR_INVALID_ARG naming the message and the field
 */
export function readMessages(messages: unknown): ChatMessage[] {
  return readSafely('messages', () => {
    if (!Array.isArray(messages) || messages.length === 0)
      throw invalidArg('messages', 'an array of at least one message', messages);
    if (messages.length > MAX_MESSAGES) throw invalidArg('messages', `at most ${MAX_MESSAGES} messages`, messages);
    const budget = newBudget();
    return Array.from(messages, (message: unknown, index) => readMessage(message, `messages[${index}]`, budget));
  });
}

/**
 * Checks and copies tool definitions: an array of JSON objects, which only the template understands.
 * @throws ERR_INVALID_ARG
 */
export function readTools(tools: unknown): Json[] {
  return readSafely('tools', () => {
    if (!Array.isArray(tools)) throw invalidArg('tools', 'an array of objects', tools);
    if (tools.length > MAX_TOOLS) throw invalidArg('tools', `at most ${MAX_TOOLS} tools`, tools);
    const budget = newBudget();
    return Array.from(tools, (tool: unknown, index) => {
      if (!isPlainObject(tool)) throw invalidArg(`tools[${index}]`, 'an object', tool);
      return readJson(tool, `tools[${index}]`, 0, budget);
    });
  });
}

/** Applies `change` to every string of plain data, keys included; returns a copy. */
export function mapStrings<T extends Json>(value: T, change: (text: string) => string): T {
  if (typeof value === 'string') return change(value) as T;
  if (Array.isArray(value)) return value.map((item) => mapStrings(item, change)) as T;
  if (typeof value !== 'object' || value === null) return value;
  const copy: Record<string, Json> = Object.create(null);
  for (const key of Object.keys(value))
    copy[change(key)] = mapStrings((value as Record<string, Json>)[key] as Json, change);
  return copy as T;
}

interface Budget {
  values: number;
  characters: number;
}

function newBudget(): Budget {
  return { values: MAX_JSON_VALUES, characters: MAX_RENDERED_LENGTH };
}

function readMessage(message: unknown, where: string, budget: Budget): ChatMessage {
  if (!isPlainObject(message)) throw invalidArg(where, 'an object with role and content', message);
  const role = message.role as Role;
  if (!ROLES.includes(role)) throw invalidArg(`${where}.role`, `one of ${ROLES.join(', ')}`, role);
  for (const key of Object.keys(message)) {
    if (!FIELDS[role].includes(key) && message[key] !== undefined) {
      throw invalidArg(`${where}.${key}`, `only ${FIELDS[role].join(', ')} in a message of role ${role}`, message[key]);
    }
  }
  const text = (field: string) => readText(message[field], `${where}.${field}`, budget);
  const calls = message.tool_calls;
  const copy: ChatMessage = { role, content: null };
  const wordless = (message.content ?? null) === null && Array.isArray(calls) && calls.length > 0;
  if (!wordless) copy.content = text('content');
  for (const field of ['name', 'tool_call_id', 'reasoning_content'] as const) {
    if (message[field] !== undefined) copy[field] = text(field);
  }
  if (calls !== undefined) {
    if (!Array.isArray(calls) || calls.length > MAX_TOOLS)
      throw invalidArg(`${where}.tool_calls`, `an array of at most ${MAX_TOOLS} calls`, calls);
    copy.tool_calls = Array.from(calls, (call: unknown, index) =>
      readToolCall(call, `${where}.tool_calls[${index}]`, budget),
    );
  }
  return copy;
}

function readToolCall(call: unknown, where: string, budget: Budget): ToolCall {
  if (!isPlainObject(call)) throw invalidArg(where, 'an object with function', call);
  const target = call.function;
  if (!isPlainObject(target)) throw invalidArg(`${where}.function`, 'an object with name and arguments', target);
  if (call.type !== undefined && call.type !== 'function') throw invalidArg(`${where}.type`, '"function"', call.type);
  const parameters = target.arguments;
  const copy: ToolCall = {
    type: 'function',
    function: {
      name: readText(target.name, `${where}.function.name`, budget),
      arguments: isPlainObject(parameters)
        ? (readJson(parameters, `${where}.function.arguments`, 0, budget) as { [key: string]: Json })
        : readText(parameters, `${where}.function.arguments`, budget),
    },
  };
  if (call.id !== undefined) copy.id = readText(call.id, `${where}.id`, budget);
  return copy;
}

function readText(value: unknown, where: string, budget: Budget): string {
  if (typeof value !== 'string') throw invalidArg(where, 'a string', value);
  spend(budget, where, value.length);
  return wellFormed(value);
}

function readJson(value: unknown, where: string, depth: number, budget: Budget): Json {
  if (depth > MAX_JSON_DEPTH) throw invalidArg(where, `plain data nested at most ${MAX_JSON_DEPTH} deep`, value);
  if (typeof value === 'string') return readText(value, where, budget);
  spend(budget, where, 0);
  if (value === null || typeof value === 'boolean' || (typeof value === 'number' && Number.isFinite(value)))
    return value;
  if (Array.isArray(value))
    return Array.from(value, (item: unknown, i) => readJson(item, `${where}[${i}]`, depth + 1, budget));
  if (!isPlainObject(value)) throw invalidArg(where, 'plain data (JSON)', value);
  const copy: { [key: string]: Json } = Object.create(null);
  for (const key of Object.keys(value)) {
    if (value[key] === undefined) continue;
    copy[readText(key, where, budget)] = readJson(value[key], `${where}.${key.slice(0, 40)}`, depth + 1, budget);
  }
  return copy;
}

function spend(budget: Budget, where: string, characters: number): void {
  budget.values -= 1;
  budget.characters -= characters;
  if (budget.values < 0) throw new MlaError('ERR_INVALID_ARG', `${where}: more than ${MAX_JSON_VALUES} values in all.`);
  if (budget.characters < 0)
    throw new MlaError('ERR_INVALID_ARG', `${where}: more than ${MAX_RENDERED_LENGTH} characters in all.`);
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A getter or a proxy of the caller may throw anything; only MlaError leaves this package. */
function readSafely<T>(name: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    if (cause instanceof MlaError) throw cause;
    throw new MlaError('ERR_INVALID_ARG', `${name}: reading it failed (${describe(cause)}).`, { cause });
  }
}
