// Templates to text and ids: the template that DeepSeek ships, and the built-in formats. Run on dist: rendering starts a process.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ChatMessage, ChatTemplate, RenderChatOptions, Tokenizer } from '../../lib/text';
import { codeOf, loadDist, SMALL_CONFIG, smallJson, V3_DIR, v31Json } from './fixtures';

const text = loadDist();
const B = '<｜begin▁of▁sentence｜>';
const E = '<｜end▁of▁sentence｜>';
const U = '<｜User｜>';
const A = '<｜Assistant｜>';

const TURNS: ChatMessage[] = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: 'Hi' },
  { role: 'assistant', content: 'Hello.' },
  { role: 'user', content: 'Why is the sky blue?' },
];
const call = (name: string, json: string) => ({ type: 'function' as const, function: { name, arguments: json } });
const TOOLS: ChatMessage[] = [
  { role: 'user', content: 'Weather?' },
  { role: 'assistant', content: null, tool_calls: [call('weather', '{"city":"Rome"}'), call('time', '{}')] },
  { role: 'tool', content: 'sunny' },
  { role: 'tool', content: '12:00' },
];

describe('the template of DeepSeek-V3', () => {
  let tokenizer: Tokenizer;
  let template: ChatTemplate;
  beforeAll(async () => {
    tokenizer = await text.Tokenizer.load(V3_DIR);
    template = await text.ChatTemplate.load(V3_DIR, tokenizer);
  });

  test.each<[string, ChatMessage[], RenderChatOptions, string]>([
    ['one question', [{ role: 'user', content: 'Hi' }], {}, `${B}${U}Hi${A}`],
    ['several turns', TURNS, {}, `${B}Be brief.${U}Hi${A}Hello.${E}${U}Why is the sky blue?${A}`],
    ['no generation prompt', TURNS.slice(0, 3), { addGenerationPrompt: false }, `${B}Be brief.${U}Hi${A}Hello.${E}`],
    [
      'system messages joined and put first',
      [
        { role: 'user', content: 'Hi' },
        { role: 'system', content: 'One.' },
        { role: 'system', content: 'Two.' },
      ],
      {},
      `${B}One.\n\nTwo.${U}Hi${A}`,
    ],
    [
      'tool calls and results',
      TOOLS,
      {},
      `${B}${U}Weather?${A}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n\`\`\`json\n{"city":"Rome"}\n\`\`\`<｜tool▁call▁end｜>` +
        `\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n\`\`\`json\n{}\n\`\`\`<｜tool▁call▁end｜><｜tool▁calls▁end｜>${E}` +
        '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>12:00<｜tool▁output▁end｜><｜tool▁outputs▁end｜>',
    ],
    ['white space and Unicode kept', [{ role: 'user', content: ' \n 你好 😀\t' }], {}, `${B}${U} \n 你好 😀\t${A}`],
  ])('%s', async (_, messages, options, expected) => {
    expect(await template.renderText(messages, options)).toBe(expected);
    const ids = await template.renderChat(messages, options);
    // No content here spells a token, so the ids are those of the whole text: one BOS, and pieces cut where tokens stand.
    expect(ids).toEqual(tokenizer.encode(expected));
    expect(ids.filter((id) => id === 0)).toHaveLength(1);
  });

  test('ids of a question, as DeepSeek-V3 has them', async () => {
    expect(await template.renderChat([{ role: 'user', content: 'Hello' }])).toEqual([0, 128_803, 19_923, 128_804]);
  });

  test('a long conversation goes through the worker thread and gives the same ids', async () => {
    const messages: ChatMessage[] = Array.from({ length: 400 }, (_, i) => ({
      role: i % 2 === 0 ? 'user' : 'assistant',
      content: `Turn ${i}: ${'some words about nothing '.repeat(10)}`,
    }));
    const rendered = await template.renderText(messages);
    expect(rendered.length).toBeGreaterThan(64 * 1024);
    expect(await template.renderChat(messages)).toEqual(tokenizer.encode(rendered));
  });

  test('wrong messages and options are refused before anything runs', async () => {
    expect(await codeOf(() => template.renderChat([]))).toBe('ERR_INVALID_ARG');
    expect(await codeOf(() => template.renderChat([{ role: 'robot', content: 'x' } as never]))).toBe('ERR_INVALID_ARG');
    for (const options of [
      null,
      { addGenerationPrompt: 1 },
      { thinking: 'yes' },
      { template: 'deepseek' },
      { tools: [1] },
    ]) {
      expect(await codeOf(() => template.renderChat(TURNS, options as never))).toBe('ERR_INVALID_ARG');
    }
  });

  afterAll(() => tokenizer.dispose());
});

describe('built-in formats', () => {
  let tokenizer: Tokenizer;
  let template: ChatTemplate;
  beforeAll(() => {
    tokenizer = text.Tokenizer.fromJson(v31Json(), JSON.stringify({ bos_token: B, eos_token: E, add_bos_token: true }));
    template = text.ChatTemplate.fromSource('{{ raise_exception("not this one") }}', tokenizer);
  });

  const thought: ChatMessage[] = [
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: '<think>\nHm.</think>\n\nHello.' },
    { role: 'user', content: 'Bye' },
  ];
  const calls = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>';
  const fenced = (name: string, json: string) =>
    `function<｜tool▁sep｜>${name}\n\`\`\`json\n${json}\n\`\`\`<｜tool▁call▁end｜>`;

  test.each<[NonNullable<RenderChatOptions['template']>, string, ChatMessage[], RenderChatOptions, string]>([
    [
      'deepseek-v2',
      'turns',
      TURNS,
      {},
      `${B}Be brief.\n\nUser: Hi\n\nAssistant: Hello.${E}User: Why is the sky blue?\n\nAssistant:`,
    ],
    ['deepseek-v2', 'no system', TURNS.slice(1, 2), {}, `${B}User: Hi\n\nAssistant:`],
    [
      'deepseek-v2',
      'no prompt',
      TURNS.slice(1, 3),
      { addGenerationPrompt: false },
      `${B}User: Hi\n\nAssistant: Hello.${E}`,
    ],
    ['deepseek-v3', 'turns', TURNS, {}, `${B}Be brief.${U}Hi${A}Hello.${E}${U}Why is the sky blue?${A}`],
    ['deepseek-v3', 'reasoning stays', thought, {}, `${B}${U}Hi${A}<think>\nHm.</think>\n\nHello.${E}${U}Bye${A}`],
    [
      'deepseek-v3',
      'one call, closed',
      [
        TOOLS[0] as ChatMessage,
        { role: 'assistant', content: null, tool_calls: [call('f', '{}')] },
        TOOLS[2] as ChatMessage,
        TURNS[1] as ChatMessage,
      ],
      {},
      `${B}${U}Weather?${A}${calls}${fenced('f', '{}')}<｜tool▁calls▁end｜>${E}` +
        `<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜><｜tool▁outputs▁end｜>${U}Hi${A}`,
    ],
    [
      'deepseek-v3',
      'answer after results',
      [...TOOLS, { role: 'assistant', content: 'Sunny.' }],
      { addGenerationPrompt: false },
      `${B}${U}Weather?${A}${calls}${fenced('weather', '{"city":"Rome"}')}\n<｜tool▁call▁begin｜>${fenced('time', '{}')}<｜tool▁calls▁end｜>${E}` +
        '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>12:00<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' +
        `Sunny.${E}`,
    ],
    ['deepseek-r1', 'reasoning cut, new one begun', thought, {}, `${B}${U}Hi${A}\n\nHello.${E}${U}Bye${A}<think>\n`],
    ['deepseek-v3.1', 'without thinking', thought, {}, `${B}${U}Hi${A}</think>\n\nHello.${E}${U}Bye${A}</think>`],
    ['deepseek-v3.1', 'with thinking', thought.slice(0, 1), { thinking: true }, `${B}${U}Hi${A}<think>`],
    [
      'deepseek-v3.1',
      'tools',
      TOOLS,
      {},
      `${B}${U}Weather?${A}</think>${calls}weather<｜tool▁sep｜>{"city":"Rome"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>${E}` +
        '<｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜><｜tool▁output▁begin｜>12:00<｜tool▁output▁end｜>',
    ],
  ])('%s: %s', async (name, _, messages, options, expected) => {
    expect(await template.renderText(messages, { ...options, template: name })).toBe(expected);
    const ids = await template.renderChat(messages, { ...options, template: name });
    expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(expected);
    if (name !== 'deepseek-v3' || messages !== thought) expect(ids).toEqual(tokenizer.encode(expected));
  });

  test('what a format has no place for is refused', async () => {
    expect(await codeOf(() => template.renderChat(TOOLS, { template: 'deepseek-v2' }))).toBe('ERR_TEMPLATE');
    expect(await codeOf(() => template.renderChat(TURNS, { template: 'deepseek-v3', tools: [{}] }))).toBe(
      'ERR_TEMPLATE',
    );
    expect(await codeOf(() => template.renderChat(TURNS, { template: 'deepseek-r1', thinking: true }))).toBe(
      'ERR_TEMPLATE',
    );
    const small = text.ChatTemplate.fromSource('', text.Tokenizer.fromJson(smallJson(), SMALL_CONFIG));
    await expect(small.renderChat(TURNS, { template: 'deepseek-v3' })).rejects.toThrow(/does not have: <｜begin/);
  });
});

describe('where a template comes from', () => {
  let dir: string;
  let tokenizer: Tokenizer;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'text-'));
    tokenizer = text.Tokenizer.fromJson(smallJson(), SMALL_CONFIG);
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  const render = async (options: RenderChatOptions = {}) =>
    (await text.ChatTemplate.load(dir, tokenizer)).renderText([{ role: 'user', content: 'x' }], options);
  const config = (value: unknown) =>
    writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify({ chat_template: value }));

  test('no template is an error only when one is needed, and says what to do', async () => {
    const template = await text.ChatTemplate.load(dir, tokenizer);
    expect(template.origin).toBeNull();
    await template.warm();
    await expect(render()).rejects.toThrow(/no chat template.*deepseek-v2, deepseek-v3, deepseek-r1, deepseek-v3\.1/);
    expect(await codeOf(render)).toBe('ERR_TEMPLATE');
    config(null);
    expect(await codeOf(render)).toBe('ERR_TEMPLATE');
  });

  test('one, a list by name, and the file that comes before both', async () => {
    config('one {{ messages[0].content }}{{ bos_token }}{{ eos_token }}');
    expect(await render()).toBe('one x<bos><eos>');
    config([
      { name: 'default', template: 'plain' },
      { name: 'tool_use', template: '{{ tools[0].name }}' },
    ]);
    expect(await render()).toBe('plain');
    expect(await render({ tools: [{ name: 'f<user>' }] })).toBe('f<user>');
    writeFileSync(
      join(dir, 'chat_template.jinja'),
      'file {{ thinking }} {{ enable_thinking }} {{ add_generation_prompt }}',
    );
    expect(await render({ thinking: true, addGenerationPrompt: false })).toBe('file true true false');
    expect((await text.ChatTemplate.load(dir, tokenizer)).origin).toBe('chat_template.jinja');
  });

  test.each<[string, unknown]>([
    ['a number', 1],
    ['a list of strings', ['x']],
    ['a list of null', [null]],
    ['a name that is no text', [{ name: 1, template: 'x' }]],
    ['257 KiB', 'x'.repeat(257 * 1024)],
    ['a list without default', [{ name: 'rag', template: 'x' }]],
  ])('broken: %s', async (_, value) => {
    config(value);
    expect(await codeOf(render)).toBe('ERR_TEMPLATE');
  });

  test('a config that is not JSON, and a template file that is a folder of its own size', async () => {
    writeFileSync(join(dir, 'tokenizer_config.json'), '{');
    expect(await codeOf(render)).toBe('ERR_TEMPLATE');
    writeFileSync(join(dir, 'chat_template.jinja'), 'x'.repeat(257 * 1024));
    expect(await codeOf(render)).toBe('ERR_TEMPLATE');
  });
});
