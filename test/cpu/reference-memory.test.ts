// cpu/reference-memory.test.ts - copyPages, copy and checksum.
import { expectInvalid, Laboratory, Random } from './reference';

const lab = new Laboratory();
afterAll(() => lab.dispose());

describe('copyPages', () => {
  it.each(['f32', 'bf16'] as const)('copies pages of all layers, in order (%s)', async (dtype) => {
    const [layers, pages, width] = [3, 6, 5];
    const page = 64 * width;
    const values = new Random(1).values(dtype, layers * pages * page);
    const cache = await lab.put(dtype, [layers, pages, 64, width], values);
    // A chain, a negative entry on either side, a page onto itself.
    const pairs = [
      [0, 2],
      [2, 4],
      [-1, 3],
      [1, -7],
      [5, 5],
    ];
    await lab.run('copyPages', { cache, pairs: await lab.put('i32', [pairs.length, 2], pairs.flat()) });
    const source = [0, 1, 0, 3, 0, 5];
    const expected = values.map((_, i) => {
      const at = Math.floor(i / page);
      const from = Math.floor(at / pages) * pages + (source[at % pages] as number);
      return values[from * page + (i % page)] as number;
    });
    expect(await lab.get(cache)).toEqual(expected);
  });

  it('names a page outside the cache and copies nothing', async () => {
    const values = new Random(2).values('f32', 2 * 64);
    const cache = await lab.put('f32', [1, 2, 64, 1], values);
    await lab.run('copyPages', { cache, pairs: await lab.put('i32', [0, 2], []) });
    const args = { cache, pairs: await lab.put('i32', [2, 2], [0, 1, 1, 2]) };
    await expectInvalid(lab.run('copyPages', args), 'copyPages', 'pairs[3] is 2');
    expect(await lab.get(cache)).toEqual(values);
  });
});

describe('copy', () => {
  it('moves strided blocks', async () => {
    const src = Array.from({ length: 100 }, (_, i) => i);
    const dst = await lab.put('u8', [60], new Array(60).fill(255));
    const args = { src: await lab.put('u8', [10, 10], src), dst, blocks: 5, block_bytes: 7 };
    await lab.run('copy', { ...args, src_offset: 3, src_stride: 20, dst_offset: 1, dst_stride: 11 });
    const expected = new Array(60).fill(255);
    for (let b = 0; b < 5; b++) for (let i = 0; i < 7; i++) expected[1 + 11 * b + i] = 3 + 20 * b + i;
    expect(Array.from(await lab.get(dst))).toEqual(expected);
  });

  it('moves one block of many pieces, and repeats a block with stride 0', async () => {
    const bytes = 3 * 2 ** 18 + 5;
    const random = new Random(3);
    const values = Float64Array.from({ length: bytes }, () => random.below(256));
    const src = await lab.put('u8', [bytes], values);
    const whole = await lab.poison('u8', [bytes]);
    await lab.run('copy', { src, dst: whole, blocks: 1, block_bytes: bytes });
    expect(await lab.get(whole)).toEqual(values);
    const repeated = await lab.poison('u8', [12]);
    await lab.run('copy', { src, dst: repeated, blocks: 3, block_bytes: 4, src_stride: 0, dst_stride: 4 });
    expect(Array.from(await lab.get(repeated))).toEqual([0, 1, 2].flatMap(() => Array.from(values.subarray(0, 4))));
    await lab.run('copy', { src, dst: repeated, blocks: 0, block_bytes: 4 });
  });

  it('refuses blocks that leave either tensor', async () => {
    const src = await lab.put('u8', [16], new Array(16).fill(1));
    const dst = await lab.put('u8', [16], new Array(16).fill(2));
    const args = { src, dst, blocks: 2, block_bytes: 8, src_stride: 8, dst_stride: 8 };
    await expectInvalid(lab.run('copy', { ...args, src_offset: 1 }), 'copy', 'src');
    await expectInvalid(lab.run('copy', { ...args, dst_offset: 1 }), 'copy', 'dst');
  });
});

describe('checksum', () => {
  it('sums the words of each part, past 2^32', async () => {
    const random = new Random(4);
    const bytes = Float64Array.from({ length: 4 * 1003 }, () => 128 + random.below(128));
    const x = await lab.put('u8', [bytes.length], bytes);
    const words = new Uint32Array(Uint8Array.from(bytes).buffer);
    for (const parts of [1, 3, 1500]) {
      const sums = await lab.poison('i64', [parts]);
      await lab.run('checksum', { x, sums });
      const begin = (i: number) => Math.floor((i * words.length) / parts);
      const expected = Array.from({ length: parts }, (_, i) =>
        words.subarray(begin(i), begin(i + 1)).reduce((sum, word) => sum + word, 0),
      );
      expect(Array.from(await lab.get(sums))).toEqual(expected);
    }
  });

  it('refuses bytes that are no whole words', async () => {
    const args = { x: await lab.put('u8', [6], new Array(6).fill(1)), sums: await lab.poison('i64', [1]) };
    await expectInvalid(lab.run('checksum', args), 'checksum', 'multiple of 4 bytes');
  });
});
