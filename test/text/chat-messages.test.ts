import { mapStrings, readMessages, readTools } from '../../lib/text/chat-messages';
import { codeOf } from './fixtures';

const user = { role: 'user', content: 'hi' };
const call = { type: 'function', function: { name: 'f', arguments: '{}' } };
const deep = (levels: number): unknown => (levels === 0 ? 1 : [deep(levels - 1)]);
const loop: Record<string, unknown> = {};
loop.self = loop;

test.each<[string, unknown, RegExp]>([
  ['undefined', undefined, /messages: expected an array/],
  ['a string', 'hi', /messages/],
  ['an object', user, /messages/],
  ['none', [], /at least one/],
  ['too many', Array.from({ length: 4097 }, () => user), /at most 4096/],
  ['null in it', [null], /messages\[0\]/],
  ['an array in it', [[user]], /messages\[0\]/],
  ['a hole in it', Object.assign(new Array(3), { 0: user, 2: user }), /messages\[1\]/],
  [
    'an unknown role',
    [{ role: 'developer', content: 'x' }],
    /messages\[0\]\.role: expected one of system, user, assistant, tool/,
  ],
  ['a role that is an object', [{ role: { toString: () => 'user' }, content: 'x' }], /role/],
  ['no content', [{ role: 'user' }], /messages\[0\]\.content: expected a string/],
  ['content that is a number', [user, { role: 'user', content: 1 }], /messages\[1\]\.content/],
  ['content that is a list of parts', [{ role: 'user', content: [{ type: 'text', text: 'x' }] }], /content/],
  ['content that is a String object', [{ role: 'user', content: new String('x') }], /content/],
  ['null content of a user', [{ role: 'user', content: null }], /content/],
  ['null content of an assistant without calls', [{ role: 'assistant', content: null, tool_calls: [] }], /content/],
  ['an unknown field', [{ ...user, prefix: true }], /messages\[0\]\.prefix: expected only role, content, name/],
  ['tool calls of a user', [{ ...user, tool_calls: [call] }], /tool_calls/],
  ['tool calls that are no array', [{ role: 'assistant', content: 'x', tool_calls: {} }], /tool_calls/],
  ['a call without a function', [{ role: 'assistant', content: 'x', tool_calls: [{}] }], /tool_calls\[0\]\.function/],
  [
    'a call with a number for a name',
    [{ role: 'assistant', content: 'x', tool_calls: [{ function: { name: 1, arguments: '' } }] }],
    /name/,
  ],
  [
    'a call without arguments',
    [{ role: 'assistant', content: 'x', tool_calls: [{ function: { name: 'f' } }] }],
    /arguments/,
  ],
  ['a call of another type', [{ role: 'assistant', content: 'x', tool_calls: [{ ...call, type: 'x' }] }], /type/],
  [
    'arguments nested too deep',
    [{ role: 'assistant', content: 'x', tool_calls: [{ function: { name: 'f', arguments: { a: deep(70) } } }] }],
    /nested/,
  ],
  [
    'arguments in a circle',
    [{ role: 'assistant', content: 'x', tool_calls: [{ function: { name: 'f', arguments: loop } }] }],
    /nested/,
  ],
  [
    'arguments with a function',
    [{ role: 'assistant', content: 'x', tool_calls: [{ function: { name: 'f', arguments: { a: () => 1 } } }] }],
    /plain data/,
  ],
  [
    'arguments with Infinity',
    [{ role: 'assistant', content: 'x', tool_calls: [{ function: { name: 'f', arguments: { a: 1 / 0 } } }] }],
    /plain data/,
  ],
  ['over 4 MiB of text', [{ role: 'user', content: 'x'.repeat(4 * 1024 * 1024 + 1) }], /4194304 characters/],
  [
    'over 4 MiB of text in all',
    Array.from({ length: 5 }, () => ({ role: 'user', content: 'x'.repeat(1024 * 1024) })),
    /4194304 characters/,
  ],
  [
    'a getter that throws',
    [
      {
        role: 'user',
        get content() {
          throw new TypeError('boom');
        },
      },
    ],
    /reading it failed/,
  ],
  [
    'a revoked proxy',
    (() => {
      const { proxy, revoke } = Proxy.revocable([], {});
      revoke();
      return proxy;
    })(),
    /reading it failed/,
  ],
])('messages: %s', async (_, messages, message) => {
  expect(await codeOf(() => readMessages(messages))).toBe('ERR_INVALID_ARG');
  expect(() => readMessages(messages)).toThrow(message);
});

test.each<[string, unknown]>([
  ['an object', {}],
  ['a list of strings', ['f']],
  ['too many', Array.from({ length: 1025 }, () => ({}))],
  ['too many values', [{ a: Array.from({ length: 100_001 }, () => 0) }]],
  ['a date', [{ a: new Map([[Symbol.iterator, 1n]]), b: 1n }]],
])('tools: %s', async (_, tools) => {
  expect(await codeOf(() => readTools(tools))).toBe('ERR_INVALID_ARG');
});

test('good messages are copied, lone surrogates replaced, undefined fields dropped', () => {
  const messages = [
    { role: 'system', content: 'a\ud800b', name: undefined },
    {
      role: 'assistant',
      content: null,
      tool_calls: [{ id: '1', function: { name: 'f', arguments: { a: [1, null, { b: true }] } } }],
    },
    { role: 'tool', content: '', tool_call_id: '1' },
  ];
  const copy = readMessages(messages);
  expect(JSON.parse(JSON.stringify(copy))).toEqual([
    { role: 'system', content: 'a\ufffdb' },
    {
      role: 'assistant',
      content: null,
      tool_calls: [{ id: '1', type: 'function', function: { name: 'f', arguments: { a: [1, null, { b: true }] } } }],
    },
    { role: 'tool', content: '', tool_call_id: '1' },
  ]);
});

test('__proto__ is a name like any other', () => {
  const [tool] = readTools([JSON.parse('{"__proto__": {"x": "<y"}, "constructor": "<z"}')]);
  const mapped = mapStrings(tool as never, (text) => text.toUpperCase());
  expect(JSON.stringify(mapped)).toBe('{"__PROTO__":{"X":"<Y"},"CONSTRUCTOR":"<Z"}');
  expect(({} as Record<string, unknown>).x).toBeUndefined();
});
