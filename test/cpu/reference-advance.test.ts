// cpu/reference-advance.test.ts - advance: the state of a row before and after, as a table.
import { expectInvalid, Laboratory } from './reference';

const lab = new Laboratory();
afterAll(() => lab.dispose());

interface Row {
  sampled: number;
  position: number;
  finished: number;
  limit: number;
  stops: readonly [number, number];
  pages: readonly [number, number, number];
}

interface After {
  id: number;
  position: number;
  length: number;
  slot: number;
  finished: number;
}

const RUNNING: Row = { sampled: 7, position: 10, finished: 0, limit: 100, stops: [-1, -1], pages: [5, 9, 2] };
const padding = (finished: number): After => ({ id: -1, position: -1, length: 0, slot: -1, finished });

const TABLE: [string, Partial<Row>, After][] = [
  ['runs on', {}, { id: 7, position: 11, length: 12, slot: 5 * 64 + 11, finished: 0 }],
  ['starts', { position: 0 }, { id: 7, position: 1, length: 2, slot: 5 * 64 + 1, finished: 0 }],
  ['fills a page', { position: 62 }, { id: 7, position: 63, length: 64, slot: 5 * 64 + 63, finished: 0 }],
  ['enters a page', { position: 63 }, { id: 7, position: 64, length: 65, slot: 9 * 64, finished: 0 }],
  ['samples id 0', { sampled: 0 }, { id: 0, position: 11, length: 12, slot: 5 * 64 + 11, finished: 0 }],
  ['meets its first stop id', { stops: [7, -1] }, padding(1)],
  ['meets its second stop id', { stops: [3, 7] }, padding(1)],
  ['has other stop ids', { stops: [6, 8] }, { id: 7, position: 11, length: 12, slot: 5 * 64 + 11, finished: 0 }],
  ['reaches its limit', { limit: 11 }, padding(2)],
  ['is beyond its limit', { limit: 3 }, padding(2)],
  ['is one before its limit', { limit: 12 }, { id: 7, position: 11, length: 12, slot: 5 * 64 + 11, finished: 0 }],
  ['meets a stop id at its limit', { limit: 11, stops: [7, -1] }, padding(1)],
  ['has stopped before', { finished: 1 }, padding(1)],
  ['was at its limit before', { finished: 2 }, padding(2)],
  ['was not sampled', { sampled: -1 }, padding(0)],
  ['is padding', { position: -1, sampled: -1 }, padding(0)],
  ['is padding with a wild sample', { position: -1 }, padding(0)],
  ['stops although its next page is unknown', { position: 63, stops: [7, -1], pages: [5, -9, 2147480000] }, padding(1)],
  ['is at its limit although its next page is unknown', { position: 63, limit: 64, pages: [5, -1, -1] }, padding(2)],
];

async function advance(rows: readonly Row[], vocab = 0) {
  const n = rows.length;
  const ints = (values: number[], shape = [n]) => lab.put('i32', shape, values);
  const args = {
    sampled: await ints(rows.map((r) => r.sampled)),
    block_table: await ints(
      rows.flatMap((r) => r.pages),
      [n, 3],
    ),
    stop_ids: await ints(
      rows.flatMap((r) => r.stops),
      [n, 2],
    ),
    limits: await ints(rows.map((r) => r.limit)),
    ids: await ints(rows.map(() => 1)),
    positions: await ints(rows.map((r) => r.position)),
    lengths: await ints(rows.map((r) => r.position + 1)),
    slots: await ints(rows.map(() => 3)),
    finished: await ints(rows.map((r) => r.finished)),
    counts: vocab > 0 ? await ints(new Array(n * vocab).fill(3), [n, vocab]) : undefined,
  };
  const read = async (): Promise<After[]> => {
    const [ids, positions, lengths, slots, finished] = await Promise.all(
      [args.ids, args.positions, args.lengths, args.slots, args.finished].map((t) => lab.get(t)),
    );
    return rows.map((_, i) => ({
      id: ids?.[i] as number,
      position: positions?.[i] as number,
      length: lengths?.[i] as number,
      slot: slots?.[i] as number,
      finished: finished?.[i] as number,
    }));
  };
  const counts = async () => (args.counts === undefined ? [] : Array.from(await lab.get(args.counts)));
  return { run: () => lab.run('advance', args), read, counts };
}

describe('advance', () => {
  it.each(TABLE)('a row that %s', async (_, change, after) => {
    const { run, read } = await advance([{ ...RUNNING, ...change }]);
    await run();
    expect(await read()).toEqual([after]);
  });

  it('moves each row of a batch by its own state, step by step', async () => {
    const { run, read } = await advance(TABLE.map(([, change]) => ({ ...RUNNING, ...change })));
    await run();
    expect(await read()).toEqual(TABLE.map(([, , after]) => after));
    await run();
    const second = await read();
    TABLE.forEach(([, change, after], i) => {
      const limit = change.limit ?? RUNNING.limit;
      if (after.position < 0) expect(second[i]).toEqual(after);
      else if (after.position + 1 >= limit) expect(second[i]).toEqual(padding(2));
      else expect(second[i]?.position).toBe(after.position + 1);
    });
  });

  it('counts the sampled id of every row that ran, whether it goes on or ends', async () => {
    const vocab = 8;
    const { run, read, counts } = await advance(
      TABLE.map(([, change]) => ({ ...RUNNING, ...change })),
      vocab,
    );
    await run();
    expect(await read()).toEqual(TABLE.map(([, , after]) => after));
    const expected = TABLE.flatMap(([, change]) => {
      const { sampled, position, finished } = { ...RUNNING, ...change };
      const ran = finished === 0 && sampled >= 0 && position >= 0;
      return Array.from({ length: vocab }, (_, id) => (ran && id === sampled ? 4 : 3));
    });
    expect(await counts()).toEqual(expected);
  });

  it('refuses a sampled id that has no count, and changes nothing', async () => {
    const { run, read, counts } = await advance([RUNNING, RUNNING], 7);
    const before = await read();
    await expectInvalid(run(), 'advance', 'sampled[0] is 7');
    expect(await read()).toEqual(before);
    expect(await counts()).toEqual(new Array(14).fill(3));
  });

  it('takes no rows', async () => {
    const { run } = await advance([]);
    await run();
  });

  it.each([
    ['has no entry for the new position', { position: 191, limit: 1000 }, 'positions[1] is 191'],
    ['names no page', { position: 63, pages: [5, -1, 2] }, 'block_table[4] is -1'],
    ['names a page whose slots overflow', { position: 63, pages: [5, 2147480000, 2] }, 'block_table[4] is 2147480000'],
  ] as const)('refuses a table that %s, and changes nothing', async (_, change, message) => {
    const { run, read } = await advance([RUNNING, { ...RUNNING, ...change } as Row]);
    const before = await read();
    await expectInvalid(run(), 'advance', message);
    expect(await read()).toEqual(before);
  });
});
