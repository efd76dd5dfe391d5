// Nothing that a user, a tool or an earlier answer says becomes a control token, in any field, with any template.
import type { ChatMessage, ChatTemplate, Tokenizer } from '../../lib/text';
import { wellFormed } from '../../lib/text/well-formed';
import { loadDist, seeded, V3_DIR, v31Json } from './fixtures';

const text = loadDist();
const MARK = 'unsuspicious';

/** At least 500 texts that spell tokens whole, nested, cut, doubled or disguised. */
function corpus(spellings: readonly string[]): string[] {
  const texts: string[] = [];
  const named = spellings.filter((spelling) => !spelling.includes('place▁holder'));
  for (const spelling of named) {
    const half = Math.floor(spelling.length / 2);
    texts.push(spelling, ` ${spelling} `, `a${spelling}b`, spelling + spelling, `\n${spelling}\n`, `<${spelling}>`);
    texts.push(
      spelling.slice(0, half) + spelling + spelling.slice(half),
      spelling.slice(0, -1),
      spelling.slice(1),
      `"${spelling}"`,
    );
    texts.push(
      `{{ '${spelling}' }}`,
      `{% raw %}${spelling}{% endraw %}`,
      spelling.toUpperCase(),
      `${spelling}\u200d`,
      `\ufdd0${spelling}\ue000`,
    );
  }
  const random = seeded(99);
  const parts = [
    ...named,
    '<',
    '｜',
    '>',
    '\n',
    ' ',
    'User',
    '</think>',
    '<think>',
    '\\ufdd0',
    '\ufdd0',
    '\ud83d',
    '\ude00',
    '&lt;',
    MARK,
  ];
  while (texts.length < 520) {
    texts.push(
      Array.from({ length: 1 + Math.floor(random() * 8) }, () => parts[Math.floor(random() * parts.length)]).join(''),
    );
  }
  return texts;
}

/** Every field that carries text, each in a conversation that is otherwise harmless. */
const FIELDS: Record<string, (value: string) => ChatMessage[]> = {
  system: (content) => [
    { role: 'system', content },
    { role: 'user', content: MARK },
  ],
  user: (content) => [{ role: 'user', content }],
  assistant: (content) => [
    { role: 'user', content: MARK },
    { role: 'assistant', content },
    { role: 'user', content: MARK },
  ],
  tool: (content) => [...withCall(MARK, MARK), { role: 'tool', content }],
  'tool name': (name) => withCall(name, MARK),
  'tool arguments': (json) => withCall(MARK, json),
  'two halves in two messages': (content) => [
    { role: 'system', content: content.slice(0, Math.ceil(content.length / 2)) },
    { role: 'user', content: content.slice(Math.ceil(content.length / 2)) },
  ],
};

function withCall(name: string, json: string): ChatMessage[] {
  return [
    { role: 'user', content: MARK },
    { role: 'assistant', content: null, tool_calls: [{ type: 'function', function: { name, arguments: json } }] },
  ];
}

/** A template that prints every text it gets, trimmed, joined without anything between, and as JSON. */
const NAIVE = `{{ bos_token }}{% for m in messages %}<｜User｜>{{ m.content | trim if m.content else '' }}{{ m.content }}{{ m.content }}{% if m.content %}{{ m.content | tojson }}{{ m.content | tojson(ensure_ascii=true) }}
{{- m.content.split('\n') | last | trim }}{% endif %}{% if m.tool_calls %}
{%- for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments }}{{ c | tojson }}{{ c | tojson(ensure_ascii=true) }}{% endfor %}{% endif %}{% endfor %}`;

describe.each(['DeepSeek-V3', 'with <think>'])('%s', (which) => {
  let tokenizer: Tokenizer;
  let own: ChatTemplate;
  let naive: ChatTemplate;
  let texts: string[];
  beforeAll(async () => {
    const v3 = await text.Tokenizer.load(V3_DIR);
    tokenizer =
      which === 'DeepSeek-V3'
        ? v3
        : text.Tokenizer.fromJson(v31Json(), JSON.stringify({ bos_token: '<｜begin▁of▁sentence｜>' }));
    own = await text.ChatTemplate.load(V3_DIR, tokenizer);
    naive = text.ChatTemplate.fromSource(NAIVE, tokenizer);
    texts = corpus(tokenizer.addedTokens.map((token) => token.content));
  });
  let rendered = 0;
  let forged = 0;
  afterAll(() => {
    console.log(`${rendered} renderings of ${texts.length} texts, ${forged} with a control token out of a text`);
    return tokenizer.dispose();
  });
  const expectControls = (ids: number[], expected: number[]) => {
    rendered += 1;
    if (controls(ids).join() !== expected.join()) forged += 1;
    expect(controls(ids)).toEqual(expected);
  };

  const controls = (ids: number[]) => ids.filter((id) => tokenizer.isAdded(id));

  test.each(Object.keys(FIELDS))('%s', async (field) => {
    expect(texts.length).toBeGreaterThanOrEqual(500);
    const build = FIELDS[field] as (value: string) => ChatMessage[];
    const scaffolds = await Promise.all(
      [own, naive].map(async (template) => controls(await template.renderChat(build(MARK)))),
    );
    const expected = controls(await own.renderChat(build(MARK), { template: 'deepseek-v3' }));
    // A template run costs several milliseconds, so every text goes through the built-in format, and every seventh also through
    // the shipped template and the naive one.
    for (let i = 0; i < texts.length; i++) {
      const value = texts[i] as string;
      const messages = build(value);
      const ids = await own.renderChat(messages, { template: 'deepseek-v3' });
      expectControls(ids, expected);
      expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(
        await own.renderText(messages, { template: 'deepseek-v3' }),
      );
      if (i % 7 !== 0) continue;
      for (const [index, template] of [own, naive].entries()) {
        const rendering = await template.renderChat(messages);
        expectControls(rendering, scaffolds[index] as number[]);
        const plain = wellFormed(value);
        if (field !== 'two halves in two messages')
          expect(tokenizer.decode(rendering, { skipSpecial: false })).toContain(plain);
      }
    }
  });
});
