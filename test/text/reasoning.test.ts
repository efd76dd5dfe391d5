import { endsInThought, ReasoningSplitter } from '../../lib/text/reasoning';

/** Both parts of a text that comes in the given pieces. */
function split(pieces: readonly string[], inThought = false): { thought: string; answer: string } {
  const splitter = new ReasoningSplitter(inThought);
  const out = { thought: '', answer: '' };
  for (const piece of pieces) for (const { kind, text } of splitter.push(piece)) out[kind] += text;
  for (const { kind, text } of splitter.end()) out[kind] += text;
  return out;
}

const CASES: [string, boolean, { thought: string; answer: string }][] = [
  ['an answer', false, { thought: '', answer: 'an answer' }],
  ['  \n an answer\n', false, { thought: '', answer: '  \n an answer\n' }],
  ['', false, { thought: '', answer: '' }],
  ['\n\n', false, { thought: '', answer: '\n\n' }],
  ['<think>\nso it is\n</think>\n\nYes.\n', false, { thought: 'so it is', answer: 'Yes.\n' }],
  ['\n<think>a  b\n\nc</think>d', false, { thought: 'a  b\n\nc', answer: 'd' }],
  ['<think>\n\n</think>\n\nYes.', false, { thought: '', answer: 'Yes.' }],
  ['<think>never ended \n', false, { thought: 'never ended \n', answer: '' }],
  ['<think>cut </thi', false, { thought: 'cut </thi', answer: '' }],
  ['<thin ice', false, { thought: '', answer: '<thin ice' }],
  ['<thin', false, { thought: '', answer: '<thin' }],
  ['Say <think>no</think>', false, { thought: '', answer: 'Say <think>no</think>' }],
  ['<think>a</think>b</think>c', false, { thought: 'a', answer: 'b</think>c' }],
  ['so it is\n</think>\n\nYes.', true, { thought: 'so it is', answer: 'Yes.' }],
  ['</think>Yes.', true, { thought: '', answer: 'Yes.' }],
  ['a < b </ c </think>ok', true, { thought: 'a < b </ c', answer: 'ok' }],
];

test.each(CASES)('%j (inside a thought: %s)', (text, inThought, expected) => {
  expect(split([text], inThought)).toEqual(expected);
  expect(split([...text], inThought)).toEqual(expected); // tags across chunk borders
  for (let at = 0; at <= text.length; at++)
    expect(split([text.slice(0, at), text.slice(at)], inThought)).toEqual(expected);
});

test('nothing but a possible tag is held back', () => {
  const splitter = new ReasoningSplitter();
  expect(splitter.push('<think>first')).toEqual([{ kind: 'thought', text: 'first' }]);
  expect(splitter.push(' second </')).toEqual([{ kind: 'thought', text: ' second' }]);
  expect(splitter.push('b')).toEqual([{ kind: 'thought', text: ' </b' }]);
  expect(splitter.push('</think>')).toEqual([]);
  expect(splitter.push('\nanswer')).toEqual([{ kind: 'answer', text: 'answer' }]);
});

test.each([
  ['<｜Assistant｜><think>\n', true],
  ['<｜Assistant｜><think>', true],
  ['<｜Assistant｜>', false],
  ['<｜Assistant｜></think>', false],
  ['<think>a</think>', false],
])('a prompt that ends in %j', (prompt, expected) => {
  expect(endsInThought(prompt)).toBe(expected);
});
