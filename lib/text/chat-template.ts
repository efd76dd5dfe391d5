// chat-template.ts - a conversation to token ids, by the template of the checkpoint or by a built-in format.
import { invalidArg, MlaError } from '../errors';
import { type ChatMessage, type Json, mapStrings, readMessages, readTools, type ToolCall } from './chat-messages';
import { ContentGuard } from './content-guard';
import { BUILT_IN_TEMPLATES, type BuiltInTemplate, renderBuiltIn, tokensOfBuiltIn } from './deepseek-templates';
import { MAX_RENDERED_LENGTH, MAX_TEMPLATE_BYTES, MAX_TOKENIZER_CONFIG_BYTES } from './limits';
import { sharedRenderer } from './template-renderer';
import type { Tokenizer } from './tokenizer';
import { parseJson, readFolderFile } from './tokenizer-files';

export interface RenderChatOptions {
  /** End with what makes the model answer. Default true. */
  addGenerationPrompt?: boolean;
  /** Definitions of tools, for templates that have a place for them. */
  tools?: Json[];
  /** For models that answer with or without reasoning: given to the template as `thinking` and `enable_thinking`. */
  thinking?: boolean;
  /** Use this built-in format instead of the checkpoint's template. */
  template?: BuiltInTemplate;
}

/** The templates a checkpoint has: one, several by name, or none and why. */
type Source = { templates: ReadonlyMap<string, string>; origin: string } | { missing: string };

/** The chat template of one checkpoint. Stateless; the process that renders is shared by all. */
export class ChatTemplate {
  private constructor(
    private readonly tokenizer: Tokenizer,
    private readonly source: Source,
  ) {}

  /**
   * Finds the template of a checkpoint folder: chat_template.jinja, else chat_template of tokenizer_config.json. A folder
   * without one is no error here, but `renderChat` then needs the name of a built-in format.
   * @throws ERR_TEMPLATE when a file is there and cannot be read as a template
   */
  static async load(dir: string, tokenizer: Tokenizer): Promise<ChatTemplate> {
    if (typeof dir !== 'string' || dir === '') throw invalidArg('dir', 'a folder', dir);
    const file = await readFolderFile(dir, 'chat_template.jinja', MAX_TEMPLATE_BYTES, 'ERR_TEMPLATE');
    if (file !== null) return ChatTemplate.fromSource(file.toString('utf8'), tokenizer, 'chat_template.jinja');
    const config = await readFolderFile(dir, 'tokenizer_config.json', MAX_TOKENIZER_CONFIG_BYTES, 'ERR_TEMPLATE');
    const missing = `${dir} has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json`;
    if (config === null) return new ChatTemplate(tokenizer, { missing });
    const parsed = parseJson(config.toString('utf8'), 'tokenizer_config.json', 'ERR_TEMPLATE');
    const value = (parsed as { chat_template?: unknown } | null)?.chat_template;
    if (value === undefined || value === null) return new ChatTemplate(tokenizer, { missing });
    return new ChatTemplate(tokenizer, {
      templates: readTemplates(value),
      origin: 'chat_template in tokenizer_config.json',
    });
  }

  /**
   * A template from its Jinja text.
   * @param origin where it comes from, for messages
   */
  static fromSource(source: string, tokenizer: Tokenizer, origin = 'the given template'): ChatTemplate {
    return new ChatTemplate(tokenizer, { templates: readTemplates(source), origin });
  }

  /** Where the template comes from, or null when the checkpoint has none. */
  get origin(): string | null {
    return 'origin' in this.source ? this.source.origin : null;
  }

  /**
   * Starts the process that renders, so that the first chat need not wait for it (about 0.1 s; longer once this process holds
   * many GB). Does nothing without a template.
   */
  async warm(): Promise<void> {
    if ('templates' in this.source) await sharedRenderer.warm();
  }

  /**
   * The token ids of a conversation, as the template writes it; it writes BOS itself and none is added. Ids of added tokens
   * come from the template alone: texts of messages and tools never yield one, whatever they spell.
   * @throws ERR_INVALID_ARG for messages or options of the wrong shape; ERR_TEMPLATE for a missing, broken, slow or huge
   *   template, or one that refuses the messages; ERR_TOKENIZER as `Tokenizer.encode`
   */
  async renderChat(messages: readonly ChatMessage[], options: RenderChatOptions = {}): Promise<number[]> {
    const { output, guard } = await this.run(messages, options);
    const segments = this.tokenizer.splitAtAddedTokens(output);
    return this.tokenizer.encodeParts(
      segments.map((segment) => (typeof segment === 'string' ? guard.restore(segment) : segment.id)),
    );
  }

  /** The text that `renderChat` encodes, for people to read: in it, content and scaffold can no longer be told apart. */
  async renderText(messages: readonly ChatMessage[], options: RenderChatOptions = {}): Promise<string> {
    const { output, guard } = await this.run(messages, options);
    return guard.restore(output);
  }

  private async run(
    messages: readonly ChatMessage[],
    options: RenderChatOptions,
  ): Promise<{ output: string; guard: ContentGuard }> {
    const plain = readMessages(messages);
    const { addGenerationPrompt, thinking, template, tools } = readOptions(options);
    const source = template === undefined ? this.pick(tools !== undefined) : '';
    const texts = [source];
    const collect = (text: string) => {
      texts.push(text);
      return text;
    };
    for (const message of plain) mapStrings(message as unknown as Json, collect);
    if (tools !== undefined) mapStrings(tools, collect);
    const guard = new ContentGuard(
      this.tokenizer.addedTokens.map((token) => token.content),
      texts,
    );
    const guarded = plain.map((message) => guardMessage(message, guard));

    let output: string;
    if (template !== undefined) {
      this.checkBuiltIn(template, tools);
      output = renderBuiltIn(template, guarded, { addGenerationPrompt, thinking: thinking ?? false });
      if (output.length > MAX_RENDERED_LENGTH)
        throw new MlaError('ERR_TEMPLATE', `Template ${template}: output of ${output.length} characters.`);
    } else {
      const variables: Record<string, unknown> = {
        ...this.tokenizer.named,
        messages: guarded,
        add_generation_prompt: addGenerationPrompt,
      };
      if (tools !== undefined) variables.tools = tools.map((tool) => mapStrings(tool, (text) => guard.guard(text)));
      if (thinking !== undefined) Object.assign(variables, { thinking, enable_thinking: thinking });
      output = await sharedRenderer.render({ template: source, variables });
    }
    return { output: guard.settleTags(output), guard };
  }

  private pick(withTools: boolean): string {
    const { source } = this;
    if ('missing' in source) {
      throw new MlaError(
        'ERR_TEMPLATE',
        `${source.missing}. Name a built-in format with the template option: ${BUILT_IN_TEMPLATES.join(', ')}.`,
      );
    }
    const { templates } = source;
    const found = (withTools ? templates.get('tool_use') : undefined) ?? templates.get('default');
    if (found !== undefined) return found;
    throw new MlaError(
      'ERR_TEMPLATE',
      `${source.origin}: none of its templates (${[...templates.keys()].join(', ').slice(0, 200)}) is named default.`,
    );
  }

  private checkBuiltIn(template: BuiltInTemplate, tools: Json[] | undefined): void {
    if (tools !== undefined) {
      throw new MlaError(
        'ERR_TEMPLATE',
        `Template ${template} has no place for tool definitions; describe them in a system message.`,
      );
    }
    const lacking = tokensOfBuiltIn(template).filter(
      (text) => !this.tokenizer.addedTokens.some((token) => token.content === text),
    );
    if (lacking.length > 0) {
      throw new MlaError(
        'ERR_TEMPLATE',
        `Template ${template} needs tokens that this tokenizer does not have: ${lacking.join(' ')}.`,
      );
    }
  }
}

/** Guards every text of a message that is not one of this package's own words. */
function guardMessage(message: ChatMessage, guard: ContentGuard): ChatMessage {
  const copy: ChatMessage = { ...message };
  for (const field of ['content', 'name', 'tool_call_id', 'reasoning_content'] as const) {
    const text = message[field];
    if (typeof text === 'string')
      copy[field] = field === 'content' && message.role === 'assistant' ? guard.guardAnswer(text) : guard.guard(text);
  }
  const change = (text: string) => guard.guard(text);
  if (message.tool_calls !== undefined) {
    copy.tool_calls = message.tool_calls.map((call) => {
      const { name, arguments: values } = call.function;
      const guarded: ToolCall = { ...call, function: { name: change(name), arguments: mapStrings(values, change) } };
      if (call.id !== undefined) guarded.id = change(call.id);
      return guarded;
    });
  }
  return copy;
}

function readTemplates(value: unknown): Map<string, string> {
  const templates = new Map<string, string>();
  const add = (name: unknown, template: unknown) => {
    if (typeof name !== 'string' || typeof template !== 'string') {
      throw new MlaError(
        'ERR_TEMPLATE',
        'chat_template: expected a string, or a list of objects with name and template.',
      );
    }
    if (Buffer.byteLength(template) > MAX_TEMPLATE_BYTES) {
      throw new MlaError(
        'ERR_TEMPLATE',
        `chat_template: ${Buffer.byteLength(template)} bytes; at most ${MAX_TEMPLATE_BYTES} are accepted.`,
      );
    }
    templates.set(name, template);
  };
  if (Array.isArray(value)) {
    for (const entry of value as ({ name?: unknown; template?: unknown } | null)[]) add(entry?.name, entry?.template);
  } else {
    add('default', value);
  }
  return templates;
}

function readOptions(
  options: RenderChatOptions,
): Omit<RenderChatOptions, 'addGenerationPrompt'> & { addGenerationPrompt: boolean } {
  if (typeof options !== 'object' || options === null) throw invalidArg('options', 'an object', options);
  const { addGenerationPrompt = true, thinking, template, tools } = options;
  if (typeof addGenerationPrompt !== 'boolean')
    throw invalidArg('addGenerationPrompt', 'true or false', addGenerationPrompt);
  if (thinking !== undefined && typeof thinking !== 'boolean') throw invalidArg('thinking', 'true or false', thinking);
  if (template !== undefined && !BUILT_IN_TEMPLATES.includes(template)) {
    throw invalidArg('template', `one of ${BUILT_IN_TEMPLATES.join(', ')}`, template);
  }
  const read: ReturnType<typeof readOptions> = { addGenerationPrompt };
  if (thinking !== undefined) read.thinking = thinking;
  if (template !== undefined) read.template = template;
  if (tools !== undefined) read.tools = readTools(tools);
  return read;
}
