// Cost of the longest and nastiest prompts, in the worker thread: at most 3 s for 1 MiB, and no worse than linear with a margin.
import type { Tokenizer } from '../../lib/text';
import { least } from '../least';
import { codeOf, loadDist, smallJson, V3_DIR } from './fixtures';

const text = loadDist();
const MIB = 1024 * 1024;

const CLASSES: Record<string, string> = {
  'one letter': 'a',
  'random letters': Array.from({ length: 997 }, (_, i) => String.fromCharCode(97 + ((i * i * 31 + i * 7) % 26))).join(
    '',
  ),
  spaces: ' ',
  digits: '7',
  punctuation: '!',
  newlines: '\n',
  CJK: '中',
  'CJK text': '的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要',
  emoji: '😀',
  'emoji families': '👩‍👩‍👧‍👦',
  accents: 'e\u0301',
  'stacked accents': 'e\u0301\u0300\u0302\u0308',
  'cut tokens': '<｜place▁holder▁no▁',
};

/** The class repeated to about `bytes` bytes of UTF-8. */
function run(unit: string, bytes: number): string {
  return unit.repeat(Math.floor(bytes / Buffer.byteLength(unit)));
}

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await text.Tokenizer.load(V3_DIR);
  await tokenizer.encodeAsync('warm up '.repeat(8192));
});
const costs: string[] = [];
afterAll(() => {
  console.log(`1 MiB of each class, and by how much a doubling multiplies the cost: ${costs.join(', ')}`);
  return tokenizer.dispose();
});

/** Processor time of all threads for one text, in ms: unlike the clock, it does not count what else the machine does. */
async function cost(input: string): Promise<number> {
  const before = process.cpuUsage();
  await tokenizer.encodeAsync(input);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

test.each(Object.keys(CLASSES))('1 MiB of %s', async (name) => {
  const unit = CLASSES[name] as string;
  const input = run(unit, MIB);
  expect(tokenizer.decode(await tokenizer.encodeAsync(input), { skipSpecial: false })).toBe(input);
  let [whole, quarter] = [Infinity, Infinity];
  // The least of each, since collection of garbage falls on one of the two by chance. Over two doublings chance counts
  // less than over one.
  const ratio = await least(2.5, async () => {
    whole = Math.min(whole, await cost(input));
    quarter = Math.min(quarter, await cost(run(unit, MIB / 4)));
    return Math.sqrt(whole / quarter);
  });
  costs.push(`${name} ${whole.toFixed(0)} ms x${ratio.toFixed(1)}`);
  expect(whole).toBeLessThan(3000);
  if (whole > 100) expect(ratio).toBeLessThanOrEqual(2.5);
});

test('100,000 special tokens', async () => {
  const unit = '<｜User｜>';
  const took = await least(3000, () => cost(unit.repeat(100_000)));
  costs.push(`100,000 special tokens ${took.toFixed(0)} ms`);
  expect(took).toBeLessThan(3000);
  const ids = await tokenizer.encodeAsync(unit.repeat(100_000));
  expect(ids).toHaveLength(100_000);
  expect(new Set(ids)).toEqual(new Set([128_803]));
});

test('8 MiB, the most there is: an answer or a typed error, never a hang', async () => {
  expect(await codeOf(() => tokenizer.encodeAsync(run('word ', 8 * MIB)))).toBe('none');
  // One run of 5.6 million letters and accents overflows the stack of V8's regular expressions.
  const started = performance.now();
  expect(['none', 'ERR_TOKENIZER']).toContain(await codeOf(() => tokenizer.encodeAsync(run('e\u0301', 8 * MIB))));
  expect(performance.now() - started).toBeLessThan(60_000);
}, 90_000);

test('the calling thread stays free while the other works', async () => {
  let last = performance.now();
  let longest = 0;
  const timer = setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 5);
  try {
    expect((await tokenizer.encodeAsync(run('a', MIB))).length).toBeGreaterThan(1000);
  } finally {
    clearInterval(timer);
  }
  expect(longest).toBeLessThan(200);
});

test('thread and caller give the same ids, for texts on both sides of the limit', async () => {
  for (const length of [32 * 1024, 32 * 1024 + 1]) {
    const input = 'naïve 中 <｜User｜> 12345 '.repeat(3000).slice(0, length);
    for (const special of [true, false]) {
      expect(await tokenizer.encodeAsync(input, { special })).toEqual(tokenizer.encode(input, { special }));
    }
  }
});

test('a pattern that never ends is stopped in the thread, which then goes on', async () => {
  const pre_tokenizer = {
    type: 'Sequence',
    pretokenizers: [
      { type: 'Split', pattern: { Regex: '(x+)+y' }, behavior: 'Isolated', invert: false },
      { type: 'ByteLevel', use_regex: false },
    ],
  };
  const trap = text.Tokenizer.fromJson(smallJson({ root: { pre_tokenizer } }));
  const harmless = 'a'.repeat(40_000);
  expect(await codeOf(() => trap.encodeAsync(harmless + 'x'.repeat(60)))).toBe('ERR_TOKENIZER');
  expect(await trap.encodeAsync(harmless)).toHaveLength(40_000);
  await trap.dispose();
  await trap.dispose();
  expect(await trap.encodeAsync(harmless)).toHaveLength(40_000);
  await trap.dispose();
});
