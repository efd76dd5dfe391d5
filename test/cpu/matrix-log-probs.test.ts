// logProbs against its formula, ties included.

import { Laboratories, makeWeights, rowsOf } from './matrix-support';
import { ACTS, dot, expectInvalid, Random } from './reference';

let labs: Laboratories;
beforeAll(() => {
  labs = new Laboratories();
});
afterAll(() => labs.dispose());

const PAIRS = ACTS.flatMap((act) => (['f32', 'bf16'] as const).map((weight) => [act, weight] as const));

test.each(PAIRS)('%s activations, %s head', async (act, headType) => {
  const [rows, d, vocab, top] = [51, 40, 301, 6];
  const random = new Random(5);
  const x = random.values(act, rows * d);
  const head = makeWeights(random, headType, act, [vocab, d]);
  const targets = Array.from({ length: rows }, (_, t) => (t % 5 === 3 ? -1 : (t * 31) % vocab));
  const logits = new Float64Array(rows * vocab).map((_, i) =>
    dot(x, Math.floor(i / vocab) * d, head.operand, (i % vocab) * d, d),
  );
  const near = (expected: number) => 1e-5 * (1 + Math.abs(expected));

  await labs.everyWay(rows, async (lab, begin, end) => {
    const count = end - begin;
    const logprobs = await lab.poison('f32', [count]);
    const ids = await lab.poison('i32', [count, top]);
    const values = await lab.poison('f32', [count, top]);
    await lab.run('logProbs', {
      x: await lab.put(act, [count, d], rowsOf(x, d, begin, end)),
      head: (await labs.weights(lab, head))[0],
      targets: await lab.put('i32', [count], targets.slice(begin, end)),
      logprobs,
      top_ids: ids,
      top_logprobs: values,
    });
    if (count === rows) {
      const [actual, topIds, topValues] = [await lab.get(logprobs), await lab.get(ids), await lab.get(values)];
      for (let t = 0; t < rows; t++) {
        const row = rowsOf(logits, vocab, t, t + 1);
        const high = Math.max(...row);
        const total = high + Math.log(row.reduce((sum, z) => sum + Math.exp(z - high), 0));
        const target = targets[t] as number;
        const wanted = target < 0 ? 0 : (row[target] as number) - total;
        expect(Math.abs((actual[t] as number) - wanted)).toBeLessThanOrEqual(target < 0 ? 0 : near(wanted));
        const sorted = [...row].sort((a, b) => b - a);
        for (let j = 0; j < top; j++) {
          const value = topValues[t * top + j] as number;
          const rank = (sorted[j] as number) - total;
          expect(Math.abs(value - rank)).toBeLessThan(near(rank));
          // The id has that logit: neighbours closer than float32 can tell may change places.
          const own = (row[topIds[t * top + j] as number] as number) - total;
          expect(Math.abs(own - rank)).toBeLessThan(near(rank));
        }
        expect(new Set(topIds.subarray(t * top, (t + 1) * top)).size).toBe(top);
      }
    }
    const parts: Buffer[] = [];
    for (let t = 0; t < count; t++) {
      parts.push(Buffer.from(await lab.bytes(logprobs)).subarray(t * 4, t * 4 + 4));
      parts.push(Buffer.from(await lab.bytes(ids)).subarray(t * top * 4, (t + 1) * top * 4));
      parts.push(Buffer.from(await lab.bytes(values)).subarray(t * top * 4, (t + 1) * top * 4));
    }
    const all = Buffer.concat(parts);
    return all.buffer.slice(all.byteOffset, all.byteOffset + all.length) as ArrayBuffer;
  });
});

test('equal logits stand in the order of their ids', async () => {
  const lab = labs.one;
  const ids = await lab.poison('i32', [1, 4]);
  await lab.run('logProbs', {
    x: await lab.put('f32', [1, 1], [1]),
    head: await lab.put('f32', [7, 1], [1, 3, 2, 3, 1, 3, 0]),
    targets: await lab.put('i32', [1], [-1]),
    logprobs: await lab.poison('f32', [1]),
    top_ids: ids,
    top_logprobs: await lab.poison('f32', [1, 4]),
  });
  expect([...(await lab.get(ids))]).toEqual([1, 3, 5, 2]);
});

test('large logits neither overflow nor lose the target', async () => {
  const lab = labs.one;
  const logprobs = await lab.poison('f32', [2]);
  await lab.run('logProbs', {
    x: await lab.put('f32', [2, 1], [1, -1]),
    head: await lab.put('f32', [3, 1], [1000, 0, -1000]),
    targets: await lab.put('i32', [2], [0, 0]),
    logprobs,
  });
  expect([...(await lab.get(logprobs))]).toEqual([0, -2000]);
});

test('a target behind the vocabulary is refused', async () => {
  const lab = labs.one;
  const args = {
    x: await lab.put('f32', [1, 1], [1]),
    head: await lab.put('f32', [3, 1], [1, 2, 3]),
    targets: await lab.put('i32', [1], [3]),
    logprobs: await lab.poison('f32', [1]),
  };
  await expectInvalid(lab.run('logProbs', args), 'logProbs', 'targets[0] is 3');
});
