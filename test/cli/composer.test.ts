import { Composer } from '../../lib/cli/composer';

/** What becomes of lines; the numbers of those that were pasted with more to follow. */
function compose(lines: string[], pasted: number[] = []): (string | null)[] {
  const composer = new Composer();
  const composed = lines.map((line, i) => composer.add(line, pasted.includes(i))?.text ?? null);
  return [...composed, composer.finish()?.text ?? null];
}

test.each([
  [['hello'], [], ['hello', null]],
  [[''], [], [null, null]],
  [['   '], [], [null, null]],
  [['one \\', 'two'], [], [null, 'one \ntwo', null]],
  [['one\\', '', 'x'], [], [null, 'one\n', 'x', null]],
  [['"""', 'a', '', ' b', '"""'], [], [null, null, null, null, 'a\n\n b', null]],
  [['"""a', 'b"""'], [], [null, 'a\nb', null]],
  [['"""a"""'], [], ['a', null]],
  [['"""', '/help', '"""'], [], [null, null, '/help', null]],
  [['"""', 'never ended'], [], [null, null, 'never ended']],
  [['"""', '"""'], [], [null, null, null]],
  [
    ['a', 'b', 'c'],
    [0, 1],
    [null, null, 'a\nb\nc', null],
  ],
  [['a\\', 'b'], [0], [null, 'a\\\nb', null]],
])('%j, pasted %j', (lines, pasted, expected) => {
  expect(compose(lines, pasted)).toEqual(expected);
});

test('only one typed line can be a command', () => {
  const composer = new Composer();
  expect(composer.add('/help')).toEqual({ text: '/help', plain: true });
  composer.add('"""');
  composer.add('/help');
  expect(composer.add('"""')).toEqual({ text: '/help', plain: false });
  composer.add('/he\\');
  expect(composer.add('lp')).toMatchObject({ plain: false });
  composer.add('"""begun');
  composer.clear();
  expect(composer.open).toBe(false);
  expect(composer.add('/help')).toEqual({ text: '/help', plain: true });
});
