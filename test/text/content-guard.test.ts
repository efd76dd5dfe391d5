import { ContentGuard } from '../../lib/text/content-guard';
import { least } from '../least';
import { codeOf } from './fixtures';

const TOKENS = ['<｜User｜>', '<think>', '</think>', '[INST]', 'endword', '  '];

/** What a template that prints the content makes of it. */
function through(
  guard: ContentGuard,
  text: string,
  template: (content: string) => string = (content) => content,
): string {
  return guard.restore(guard.settleTags(template(text)));
}

test('no spelling is left in guarded text, and all of it comes back', () => {
  const texts = [
    'a <｜User｜> b',
    '<<｜User｜>>',
    '<think>x</think>',
    '[INST][/INST]',
    'endword endwords',
    'a  b   c',
    '<',
    'no tokens',
    '',
  ];
  const guard = new ContentGuard(TOKENS, texts);
  for (const text of texts) {
    const guarded = guard.guard(text);
    for (const token of TOKENS) expect(guarded).not.toContain(token);
    expect(guarded).toHaveLength(text.length);
    expect(through(guard, guarded)).toBe(text);
    expect(through(guard, guard.guardAnswer(text))).toBe(text);
  }
});

test('words and spaces that are no whole spelling stay as they are', () => {
  const guard = new ContentGuard(TOKENS, []);
  expect(guard.guard('end of words, one space')).toBe('end of words, one space');
});

test('half a spelling at the edge of content cannot be completed by its neighbour', () => {
  const guard = new ContentGuard(TOKENS, []);
  for (const joined of [
    guard.guard('<｜Us') + guard.guard('er｜>'),
    `${guard.guard('<')}｜User｜>`,
    guard.guard('<\n｜User｜>').replace('\n', ''),
  ]) {
    expect(guard.settleTags(joined)).not.toContain('<｜User｜>');
  }
});

test('reasoning tags in an answer can be seen and cut by a template, and are content where they stay', () => {
  const guard = new ContentGuard(TOKENS, []);
  const answer = guard.guardAnswer('<think>\nhidden <｜User｜>\n</think>\n\nshown </think> more');
  expect(answer).toContain('</think>');
  expect(answer).not.toContain('<｜User｜>');
  const settled = guard.settleTags(answer);
  expect(settled).not.toContain('<think>');
  expect(settled).not.toContain('</think>');
  const last = answer.split('</think>').at(-1) as string;
  expect(through(guard, last.trim())).toBe('more');
  const between = (answer.split('</think>')[0] as string).split('<think>').at(-1) as string;
  expect(through(guard, between.trim())).toBe('hidden <｜User｜>\n'); // the mark keeps the end from being trimmed
  const second = answer.split('</think>')[1] as string;
  expect(through(guard, second.trimStart())).toBe('shown ');
});

test('a tag that is content stays content through JSON, lines and trimming', () => {
  const guard = new ContentGuard(TOKENS, []);
  const answer = guard.guardAnswer(' \n<think>a\n\n</think>');
  const asciiJson = JSON.stringify(answer).replace(
    /[\u0080-\uffff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
  for (const output of [
    answer.trim(),
    JSON.stringify(answer),
    asciiJson,
    answer.split('\n').at(-1) as string,
    answer.replaceAll('\n', ''),
  ]) {
    expect(guard.settleTags(output)).not.toMatch(/<\/?think>/);
    expect(guard.restore(guard.settleTags(output))).toContain('</think>');
  }
});

test('escaped stand-ins, as tojson(ensure_ascii=true) writes them, come back too', () => {
  const guard = new ContentGuard(TOKENS, []);
  const escaped = (text: string) =>
    JSON.stringify(text).replace(/[\u0080-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
  expect(guard.restore(escaped(guard.guard('<a [b')))).toBe('"<a [b"');
});

test('stand-ins are characters that the texts do not hold, in any form', () => {
  const nasty = ['\ufdd0\ufdd1 \\ufdd2 \\UFDD3 \\\\ufdd4 <x', 'tricky \ufdd5'];
  const guard = new ContentGuard(TOKENS, nasty);
  for (const text of nasty) expect(through(guard, guard.guard(text))).toBe(text);
  const guarded = guard.guard('<');
  expect(guarded.charCodeAt(0)).toBeGreaterThan(0xfdd5);
});

test('texts that use up all private characters are refused', async () => {
  let all = '';
  for (let code = 0xe000; code <= 0xf8ff; code++) all += String.fromCharCode(code);
  for (let code = 0xfdd0; code <= 0xfdef; code++) all += String.fromCharCode(code);
  expect(await codeOf(() => new ContentGuard(TOKENS, [all]))).toBe('ERR_TEMPLATE');
  expect(await codeOf(() => new ContentGuard(TOKENS, [all.slice(100)]))).toBe('none');
});

test('a tokenizer without added tokens needs no stand-ins', () => {
  const guard = new ContentGuard([], ['<think>']);
  expect(guard.guard('<a')).toBe('<a');
  expect(through(guard, guard.guardAnswer('<think>x</think> y'))).toBe('<think>x</think> y');
});

test('white space, tags or starters cost as much as they are long: four times as many, less than eight times as much', async () => {
  // The growth, because a shared machine's processor time for the same work varies twofold; 4 MiB take about 0.7 s.
  const guard = new ContentGuard(TOKENS, []);
  for (const piece of [' ', '\n ', '<', '</think> ']) {
    const cost = (size: number) => () => {
      const text = piece.repeat(size / piece.length);
      const before = process.cpuUsage();
      expect(through(guard, guard.guardAnswer(text)) === text).toBe(true);
      const { user, system } = process.cpuUsage(before);
      return (user + system) / 1000;
    };
    const one = await least(0, cost(2 ** 20), 2);
    const four = await least(8 * one, cost(2 ** 22));
    expect(four).toBeLessThan(8 * one);
    expect(four).toBeLessThan(4000);
  }
});
