// Pages have one owner, several, or none; what nobody holds can be taken, contents worth keeping last.
import { PagePool } from '../../lib/cache';

const stats = (pool: PagePool) => {
  const { total, free, cached, held } = pool.stats();
  expect(free + cached + held).toBe(total);
  expect(pool.available).toBe(free + cached);
  return [free, cached, held];
};

test('takes, shares and releases', () => {
  const pool = new PagePool(4);
  const [a, b] = pool.take(2) as [number, number];
  expect(stats(pool)).toEqual([2, 0, 2]);
  pool.share(a);
  pool.release(a);
  expect(stats(pool)).toEqual([2, 0, 2]);
  pool.releaseAll([a, b]);
  expect(stats(pool)).toEqual([4, 0, 0]);
});

test('refuses more than there are, and changes nothing', () => {
  const pool = new PagePool(3);
  pool.take(1);
  expect(() => pool.take(3)).toThrow(expect.objectContaining({ code: 'ERR_NO_PAGES' }));
  expect(stats(pool)).toEqual([2, 0, 1]);
  expect(pool.take(0)).toEqual([]);
});

test('refuses what nobody holds', () => {
  const pool = new PagePool(2);
  for (const wrong of [() => pool.share(0), () => pool.release(0), () => pool.keepContent(1, () => {})]) {
    expect(wrong).toThrow(expect.objectContaining({ code: 'ERR_INTERNAL' }));
  }
  expect(stats(pool)).toEqual([2, 0, 0]);
});

test.each([0, -1, 1.5, Number.NaN])('refuses a pool of %p pages', (total) => {
  expect(() => new PagePool(total)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARG' }));
});

test('contents stay until free pages run out, and the longest unused goes first', () => {
  const pool = new PagePool(5);
  const forgotten: string[] = [];
  const pages = pool.take(4) as [number, number, number, number];
  for (const [i, name] of ['a', 'b', 'c'].entries()) pool.keepContent(pages[i] as number, () => forgotten.push(name));
  pool.releaseAll(pages); // from the end: c, b, a
  expect(stats(pool)).toEqual([2, 3, 0]);
  pool.share(pages[2]); // c is used again
  pool.release(pages[2]);
  pool.take(2);
  expect(forgotten).toEqual([]);
  expect(pool.take(1)).toEqual([pages[1]]);
  expect(forgotten).toEqual(['b']);
  pool.take(2);
  expect(forgotten).toEqual(['b', 'a', 'c']);
  expect(stats(pool)).toEqual([0, 0, 5]);
});

test('forgotten contents are free', () => {
  const pool = new PagePool(3);
  const [a, b] = pool.take(2) as [number, number];
  for (const page of [a, b]) pool.keepContent(page, () => expect(page).toBe(-1));
  pool.release(a);
  pool.forgetContents();
  expect(stats(pool)).toEqual([2, 0, 1]);
  pool.release(b);
  expect(stats(pool)).toEqual([3, 0, 0]);
});
