// Replies with thoughts, as they come to the reader.
import { receive, type ThoughtDisplay, thoughtDisplay } from '../../lib/cli/reply';
import { makeModel, saying } from '../engine/make-model';

const TEXT = 'let me\nsee\n</think>\n\nIt is so.';

async function shown(show: ThoughtDisplay | null, text = TEXT, inThought = true): Promise<[string, object]> {
  const { model } = makeModel({ next: saying(text, 1) });
  let printed = '';
  const write = jest.spyOn(process.stdout, 'write').mockImplementation((piece, done) => {
    printed += piece;
    (done as unknown as () => void)();
    return true;
  });
  try {
    const { result, ...reply } = await receive(model.generate([1]), { inThought, show, stopped: null });
    expect(result?.finishReason).toBe('stop');
    return [printed, reply];
  } finally {
    write.mockRestore();
    await model.dispose();
  }
}

test.each([
  ['dimmed', 'let me\nsee\n\nIt is so.\n'], // jest is no terminal: the colour itself is tested there
  ['tagged', '<think>\nlet me\nsee\n</think>\n\nIt is so.\n'],
  ['hidden', 'It is so.\n'],
  [null, ''],
] as const)('thoughts %s', async (show, expected) => {
  expect(await shown(show)).toEqual([expected, { thought: 'let me\nsee', answer: 'It is so.' }]);
});

test('an answer without thoughts is what it is', async () => {
  expect(await shown('tagged', ' a <b> c\n', false)).toEqual([' a <b> c\n', { thought: '', answer: ' a <b> c\n' }]);
});

test('a thought that never ends', async () => {
  expect(await shown('tagged', '<think>so', false)).toEqual(['<think>\nso\n</think>\n', { thought: 'so', answer: '' }]);
});

test('a stopped reply is what has come', async () => {
  const { model } = makeModel({ next: () => 97 });
  const stopped = new Error('stopped');
  const controller = new AbortController();
  setTimeout(() => controller.abort(stopped), 50);
  const options = { maxTokens: 4000, signal: controller.signal };
  const reply = await receive(model.generate([1], options), { inThought: false, show: null, stopped });
  expect(reply).toMatchObject({ thought: '', answer: expect.stringMatching(/^a+$/), result: null });
  const other = model.generate([1], { signal: AbortSignal.abort('another') });
  await expect(receive(other, { inThought: false, show: null, stopped })).rejects.toBe('another');
  await model.dispose();
});

test('where thoughts cannot be told from the answer they are left out, unless they are asked for', () => {
  expect([undefined, true, false].map(thoughtDisplay)).toEqual(['hidden', 'tagged', 'hidden']);
});
