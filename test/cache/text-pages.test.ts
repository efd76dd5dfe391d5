// Texts that share pages: taken over where token ids agree, copied before they are written, never mixed up.
import { type KeptPages, PAGE_TOKENS, PagePool, PrefixIndex, TextPages } from '../../lib/cache';

const P = PAGE_TOKENS;
/** Tokens of a text: all texts of a seed begin alike. */
const tokens = (seed: number, length: number) => Array.from({ length }, (_, i) => seed * 100_000 + i);

function setup(pages = 16) {
  const pool = new PagePool(pages);
  const index = new PrefixIndex(pool);
  /** A text that takes over what is known and computes the rest, all steps succeeded. */
  const write = (ids: readonly number[], { kept = null as KeptPages | null, salt = '' } = {}) => {
    const text = new TextPages(pool, index);
    const reused = text.begin(ids, kept, salt);
    const copy = text.grow(ids.length);
    text.append(ids.slice(reused));
    text.confirm(ids.length, null);
    text.publish();
    return { text, reused, copy };
  };
  return { pool, index, write };
}

test('a prompt takes over whole pages of an earlier one, up to the first difference', () => {
  const { write } = setup();
  const first = write(tokens(1, 3 * P + 10));
  expect(first.reused).toBe(0);
  const same = write([...tokens(1, 2 * P + 5), 7, 7, 7]);
  expect(same.reused).toBe(2 * P);
  expect(same.text.pages.slice(0, 2)).toEqual(first.text.pages.slice(0, 2));
  expect(same.text.pages[2]).not.toBe(first.text.pages[2]);
  expect(write([...tokens(1, P - 1), 9, ...tokens(1, P)]).reused).toBe(0);
  expect(write(tokens(2, P)).reused).toBe(0);
});

test('the last token is always computed', () => {
  const { write } = setup();
  write(tokens(1, 2 * P));
  expect(write(tokens(1, 2 * P)).reused).toBe(P);
  expect(write(tokens(1, 2 * P + 1)).reused).toBe(2 * P);
});

test('token ids decide, not their hash', () => {
  const { pool, index } = setup();
  // All pages look alike to a hash that is always the same.
  const spy = jest.spyOn(Math, 'imul').mockReturnValue(1);
  try {
    const [a, b] = pool.take(2) as [number, number];
    index.publish('', null, tokens(1, P), a);
    index.publish('', null, tokens(2, P), b);
    expect(index.find('', tokens(1, P), P)?.page).toBe(a);
    expect(index.find('', tokens(2, P), P)?.page).toBe(b);
    expect(index.find('', tokens(3, P), P)).toBeNull();
  } finally {
    spy.mockRestore();
  }
});

test('texts of different salts never meet', () => {
  const { write } = setup();
  write(tokens(1, 2 * P + 1), { salt: 'a' });
  expect(write(tokens(1, 2 * P + 1), { salt: 'b' }).reused).toBe(0);
  expect(write(tokens(1, 2 * P + 1), { salt: 'a' }).reused).toBe(2 * P);
  expect(write(tokens(1, 2 * P + 1)).reused).toBe(0);
});

test('released pages are found again until others need them, the end of a text going first', () => {
  const { pool, index, write } = setup(6);
  write(tokens(1, 4 * P)).text.release();
  expect(pool.stats()).toMatchObject({ cached: 4, held: 0 });
  const other = write(tokens(2, 3 * P)); // two free ones and one of the four
  expect(index.size).toBe(3 + 3);
  const again = write(tokens(1, 3 * P + 1).slice(0, 3 * P));
  expect(again.reused).toBe(2 * P);
  again.text.release();
  other.text.release();
  expect(pool.stats()).toMatchObject({ held: 0 });
});

test('two texts that computed the same share one copy from then on', () => {
  const { pool, index } = setup();
  const make = () => {
    const text = new TextPages(pool, index);
    text.begin(tokens(1, 2 * P + 3), null, '');
    text.grow(2 * P + 3);
    text.append(tokens(1, 2 * P + 3));
    return text;
  };
  const [a, b] = [make(), make()];
  expect(pool.stats().held).toBe(6);
  expect(a.publish()).toBeNull();
  expect(b.publish()).toBe(0); // its table must be written again from there on
  expect(b.pages.slice(0, 2)).toEqual(a.pages.slice(0, 2));
  expect(b.pages[2]).not.toBe(a.pages[2]);
  expect(pool.stats().held).toBe(4);
  a.release();
  b.release();
  expect(pool.stats()).toMatchObject({ cached: 2, held: 0 });
});

describe('kept rows', () => {
  test('a text goes on from them, and copies a page before it writes to it', () => {
    const { pool, write } = setup();
    const { text } = write(tokens(1, P + 10));
    const kept = text.keep();
    text.release();
    const [left, right] = [write([...tokens(1, P + 10), 5], { kept }), write([...tokens(1, P + 10), 6], { kept })];
    for (const { reused, copy } of [left, right]) {
      expect(reused).toBe(P + 10);
      expect(copy?.[0]).toBe(kept.pages[1]);
    }
    expect(left.text.pages[0]).toBe(right.text.pages[0]);
    expect(new Set([kept.pages[1], left.text.pages[1], right.text.pages[1]]).size).toBe(3);
    kept.dispose();
    kept.dispose();
    left.text.release();
    // the only holder left writes in place
    const more = right.text;
    more.advance();
    expect(more.grow(P + 12)).toBeNull();
    more.release();
    expect(pool.stats().held).toBe(0);
    expect(() => kept.share()).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  });

  test('the full last page of a text is copied before its last row is computed again', () => {
    const { write } = setup();
    const { text } = write(tokens(1, 2 * P));
    const kept = text.keep();
    const again = write(tokens(1, 2 * P), { kept });
    expect(again.reused).toBe(2 * P - 1);
    expect(again.copy?.[0]).toBe(kept.pages[1]);
    // and then found to be the same
    expect(again.text.pages).toEqual(text.pages);
  });

  test('only rows whose step has succeeded, and whose token is known, are kept', () => {
    const { pool, index } = setup();
    const text = new TextPages(pool, index);
    text.begin(tokens(1, 10), null, '');
    text.grow(11);
    text.append(tokens(1, 10));
    expect(text.keep().tokens).toEqual([]);
    text.advance(); // the next step is enqueued before this one has been read
    text.confirm(10, 77);
    expect(text.keep().tokens).toEqual(tokens(1, 10));
    text.confirm(11, 78);
    expect(text.keep().tokens).toEqual([...tokens(1, 10), 77]);
  });
});

test('a page is not published before the row of its last token is sure to be written', () => {
  const { pool, index } = setup();
  const text = new TextPages(pool, index);
  text.begin(tokens(1, P - 1), null, '');
  text.grow(P);
  text.append(tokens(1, P - 1));
  text.confirm(P - 1, 500);
  text.advance(); // enqueued; but if token 500 ended the text, its row is never written
  text.publish();
  expect(index.size).toBe(0);
  text.confirm(P, 501);
  text.publish();
  expect(index.size).toBe(1);
});

test('after a failure nothing is found, and texts from before publish nothing', () => {
  const { pool, index, write } = setup();
  const { text } = write(tokens(1, 2 * P + 1));
  index.clear();
  expect(write(tokens(1, P + 1).slice(0, P)).reused).toBe(0);
  const size = index.size;
  text.grow(4 * P);
  text.append(tokens(5, P));
  text.confirm(3 * P + 1, null);
  text.publish();
  expect(index.size).toBe(size);
  text.release();
  expect(pool.stats().held).toBe(1);
});

test('without an index nothing is taken over and nothing is left', () => {
  const pool = new PagePool(4);
  for (let i = 0; i < 2; i++) {
    const text = new TextPages(pool, null);
    expect(text.begin(tokens(1, 2 * P), null, '')).toBe(0);
    text.grow(2 * P);
    text.append(tokens(1, 2 * P));
    text.publish();
    text.release();
  }
  expect(pool.stats()).toEqual({ total: 4, free: 4, cached: 0, held: 0 });
});

test('a refused growth changes nothing', () => {
  const { pool, write } = setup(3);
  const { text } = write(tokens(1, P + 5));
  const kept = text.keep();
  expect(() => text.grow(4 * P)).toThrow(expect.objectContaining({ code: 'ERR_NO_PAGES' }));
  expect(pool.stats()).toMatchObject({ free: 1, held: 2 });
  expect(text.pages).toEqual(kept.pages);
});
