// cpu/reference-sample.test.ts - sample against its definition: exact choices, exact sets, distribution, errors.
import { expectExact, expectInvalid, expectWithin, Laboratory, Random } from './reference';
import { gumbelOf, keyOf, philox } from './reference-philox';
import { IN_PROMPT, keptTokens, logProbability, pick, type Settings, settingsRow } from './reference-sampling';

const lab = new Laboratory(2);
const single = new Laboratory(1);
afterAll(async () => {
  await lab.dispose();
  await single.dispose();
});

interface Batch {
  logits: ArrayLike<number>;
  width: number;
  vocab?: number;
  settings: readonly Settings[];
  seeds?: readonly number[];
  positions?: readonly number[];
  counts?: ArrayLike<number>;
  bias?: ArrayLike<number>;
  mask?: ArrayLike<number>;
}

async function sample(where: Laboratory, b: Batch) {
  const rows = b.settings.length;
  const args = {
    logits: await where.put('f32', [rows, b.width], b.logits),
    settings: await where.put('f32', [rows, 8], b.settings.flatMap(settingsRow)),
    seeds: await where.put('i64', [rows], b.seeds ?? b.settings.map((_, i) => i)),
    positions: await where.put('i32', [rows], b.positions ?? b.settings.map(() => 0)),
    counts: b.counts && (await where.put('i32', [rows, b.width], b.counts)),
    bias: b.bias && (await where.put('f32', [rows, b.width], b.bias)),
    mask: b.mask && (await where.put('u32', [rows, Math.ceil(b.width / 32)], b.mask)),
    ids: await where.poison('i32', [rows]),
    logprobs: await where.poison('f32', [rows]),
    vocab: b.vocab ?? b.width,
  };
  await where.run('sample', args);
  return { ids: Array.from(await where.get(args.ids)), logprobs: await where.get(args.logprobs), args };
}

/** The same logits in every row. */
const repeat = (logits: ArrayLike<number>, rows: number) =>
  Float64Array.from({ length: rows * logits.length }, (_, i) => logits[i % logits.length] as number);

describe('philox', () => {
  it('is Philox4x32-10: the published vectors of the algorithm', () => {
    const hex = (words: number[]) => words.map((w) => w.toString(16).padStart(8, '0')).join(' ');
    const ones = 0xffffffff;
    expect(hex(philox(keyOf(0n), [0, 0, 0, 0]))).toBe('6627e8d5 e169c58d bc57ac4c 9b00dbd8');
    expect(hex(philox(keyOf(2n ** 64n - 1n), [ones, ones, ones, ones]))).toBe('408f276d 41c83b0e a20bc7c6 6d5451fd');
    expect(hex(philox(keyOf(0x299f31d0a4093822n), [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]))).toBe(
      'd16cfe09 94fdcceb 5001e420 24126ea1',
    );
  });
});

describe('greedy sampling', () => {
  const greedy: Settings = { temperature: 0, top_k: 1, top_p: 0.1, min_p: 0.9 };

  it('takes the largest logit, ties to the lowest id, and ids below vocab only', async () => {
    const width = 100;
    const random = new Random(1);
    const rows = 20;
    const logits = random.values('f32', rows * width);
    for (let b = 0; b < rows; b++) {
      logits[b * width + 90] = 100;
      for (const id of [70, 33, 57]) logits[b * width + ((id + b) % 80)] = 50;
    }
    const { ids } = await sample(lab, { logits, width, vocab: 80, settings: new Array(rows).fill(greedy) });
    const expected = Array.from({ length: rows }, (_, b) => Math.min(...[70, 33, 57].map((id) => (id + b) % 80)));
    expect(ids).toEqual(expected);
  });

  it('gives padding rows id -1 and reads nothing of them', async () => {
    const width = 40;
    const logits = new Random(2).values('f32', 3 * width);
    logits.fill(Number.NaN, width, 2 * width);
    const bad = { temperature: Number.NaN };
    const { ids, logprobs } = await sample(lab, {
      logits,
      width,
      settings: [greedy, bad, greedy],
      positions: [3, -1, 0],
    });
    expect(ids[1]).toBe(-1);
    expect(logprobs[1]).toBe(0);
    expect(ids[0]).toBe(logits.indexOf(Math.max(...logits.subarray(0, width))));
    expect(ids[2]).toBe(logits.indexOf(Math.max(...logits.subarray(2 * width))) - 2 * width);
  });

  it('applies penalties and the mask first', async () => {
    const logits = [4, 3.9, -1, 3.5, 3.4];
    const choose = async (s: Partial<Settings>, counts: number[], mask = 0b11111) => {
      const { ids } = await sample(lab, {
        logits,
        width: 5,
        settings: [{ temperature: 0, ...s }],
        counts,
        mask: [mask],
      });
      return ids[0];
    };
    const none = [0, 0, 0, 0, 0];
    expect(await choose({ repetition: 2, presence: 3, frequency: 1 }, none)).toBe(0);
    expect(await choose({ repetition: 1.1 }, [1, 0, 0, 0, 0])).toBe(1);
    expect(await choose({ presence: 0.45 }, [9, 9, 0, 0, 0])).toBe(0);
    expect(await choose({ presence: 0.45 }, [9, 0, 0, 9, 0])).toBe(1);
    expect(await choose({ frequency: 0.1 }, [1, 1, 0, 0, 0])).toBe(0);
    expect(await choose({ frequency: 0.1 }, [7, 6, 0, 0, 9])).toBe(3);
    expect(await choose({}, none, 0b11010)).toBe(1);
    expect(await choose({}, none, 0b00100)).toBe(2);
    // A negative logit becomes smaller, not larger, by the repetition penalty.
    expect(await choose({ repetition: 4 }, [0, 0, 1, 0, 0], 0b00100)).toBe(2);
    // What stands only in the prompt counts for the repetition penalty alone.
    expect(await choose({ repetition: 1.1 }, [IN_PROMPT, 0, 0, 0, 0])).toBe(1);
    expect(await choose({ presence: 3, frequency: 3 }, [IN_PROMPT, 0, 0, 0, 0])).toBe(0);
    expect(await choose({ frequency: 0.1 }, [IN_PROMPT + 2, 0, 0, 0, 0])).toBe(1);
    const two = await sample(lab, {
      logits: [-1, -2],
      width: 2,
      settings: [{ temperature: 0, repetition: 3 }],
      counts: [1, 0],
      mask: [0b11],
    });
    expect(two.ids).toEqual([1]);
    // The penalties are on the model's logits, the bias comes on top: 4 / 2 + 1.8 is less than 3.9.
    const biased = await sample(lab, {
      logits: [...logits, ...logits],
      width: 5,
      settings: [{ temperature: 0, repetition: 2 }, { temperature: 0 }],
      counts: [1, 0, 0, 0, 0, ...none],
      bias: [1.8, 0, 0, 0, 0, 0, 0, 10, 0, -1],
    });
    expect(biased.ids).toEqual([1, 2]);
  });
});

describe('sampling', () => {
  const kinds: Settings[] = [
    { temperature: 1 },
    { temperature: 0.6 },
    { temperature: 2.5 },
    { temperature: 1, top_k: 1 },
    { temperature: 1.5, top_k: 7 },
    { temperature: 1, top_p: 0.8 },
    { temperature: 0.7, top_p: 0.05 },
    { temperature: 3, top_p: 0.99 },
    { temperature: 1, min_p: 0.2 },
    { temperature: 1, min_p: 1 },
    { temperature: 1.2, top_k: 20, top_p: 0.9, min_p: 0.05 },
    { temperature: 1, top_k: 3, top_p: 0.7 },
    { temperature: 1, top_p: 0 },
    { temperature: 1, top_k: 5000, top_p: 1.5, min_p: -1 },
    { temperature: 1.3, repetition: 1.3, presence: 0.4, frequency: 0.2, top_k: 15 },
  ];

  it.each([5, 37, 300])('chooses exactly as defined, over %d ids', async (width) => {
    const random = new Random(width);
    const vocab = width - 2;
    const repeats = 12;
    const settings = kinds.flatMap((kind) => new Array<Settings>(repeats).fill(kind));
    const logits = random.values('f32', settings.length * width, 2);
    const counts = Array.from(
      { length: logits.length },
      () => Math.max(0, random.below(6) - 3) + (random.below(3) === 0 ? IN_PROMPT : 0),
    );
    const bias = Array.from({ length: logits.length }, () => (random.below(4) === 0 ? Math.fround(random.next()) : 0));
    const words = Math.ceil(width / 32);
    const mask = Array.from({ length: settings.length * words }, () => Math.floor(random.next() * 2 ** 32));
    const allowed = (b: number) => (id: number) =>
      id === 1 || (((mask[b * words + Math.floor(id / 32)] as number) >>> (id % 32)) & 1) === 1;
    for (let b = 0; b < settings.length; b++) mask[b * words] = ((mask[b * words] as number) | 2) >>> 0;
    const seeds = settings.map((_, b) => (b % 3 === 0 ? 2 ** 50 + b : b - 50));
    const positions = settings.map((_, b) => (b * 7919) % 1000);
    const batch = { logits, width, vocab, settings, seeds, positions, counts, bias, mask };
    const { ids, logprobs } = await sample(lab, batch);
    const expected = settings.map((s, b) => {
      const row = logits.subarray(b * width, (b + 1) * width);
      const part = (values: number[]) => values.slice(b * width, (b + 1) * width);
      const kept = keptTokens(row, s, vocab, part(counts), allowed(b), part(bias));
      return pick(kept, seeds[b] as number, positions[b] as number);
    });
    expect(ids).toEqual(expected);
    const exact = ids.map((id, b) => logProbability(logits.subarray(b * width, (b + 1) * width), id));
    expectWithin(logprobs, exact, (_, e) => 2e-6 * (1 + Math.abs(e)));

    const oneThread = await sample(single, batch);
    expect(oneThread.ids).toEqual(ids);
    expectExact(oneThread.logprobs, logprobs);
  });

  it.each(kinds)('reaches every token that stays and no other: %j', async (kind) => {
    const width = 24;
    const rows = 3000;
    const row = new Random(77).values('f32', width, 1.2);
    const kept = keptTokens(row, kind, width);
    const { ids } = await sample(lab, { logits: repeat(row, rows), width, settings: new Array(rows).fill(kind) });
    const common = kept.filter(({ p }) => p * rows > 20).map(({ id }) => id);
    const seen = new Set(ids);
    expect(common.filter((id) => !seen.has(id))).toEqual([]);
    const all = new Set(kept.map(({ id }) => id));
    expect([...seen].filter((id) => !all.has(id))).toEqual([]);

    // Pearson's statistic against the probabilities; tokens that are expected less than five times count together.
    let statistic = 0;
    let cells = 0;
    let rare = 0;
    let rareSeen = 0;
    for (const { id, p } of kept) {
      const count = ids.reduce((n, x) => n + (x === id ? 1 : 0), 0);
      if (p * rows < 5) {
        rare += p * rows;
        rareSeen += count;
        continue;
      }
      statistic += (count - p * rows) ** 2 / (p * rows);
      cells++;
    }
    if (rare > 5) {
      statistic += (rareSeen - rare) ** 2 / rare;
      cells++;
    }
    // Mean plus four standard deviations of the chi-square distribution.
    expect(statistic).toBeLessThan(cells + 4 * Math.sqrt(2 * cells));
  });

  it('draws anew for each seed and each position, and the same for the same', async () => {
    const width = 50;
    const rows = 400;
    const s: Settings = { temperature: 1 };
    const logits = new Float64Array(rows * width);
    const settings = new Array<Settings>(rows).fill(s);
    const byPosition = await sample(lab, {
      logits,
      width,
      settings,
      seeds: new Array(rows).fill(9),
      positions: Array.from({ length: rows }, (_, i) => i),
    });
    const bySeed = await sample(lab, { logits, width, settings, positions: new Array(rows).fill(5) });
    const same = await sample(lab, {
      logits,
      width,
      settings,
      seeds: new Array(rows).fill(9),
      positions: new Array(rows).fill(5),
    });
    expect(new Set(byPosition.ids).size).toBeGreaterThan(45);
    expect(new Set(bySeed.ids).size).toBeGreaterThan(45);
    expect(new Set(same.ids)).toEqual(new Set([byPosition.ids[5]]));
    // Equal logits: the choice is the largest noise.
    const noise = Array.from({ length: width }, (_, id) => gumbelOf(keyOf(9n), 5, id));
    expect(same.ids[0]).toBe(noise.indexOf(Math.max(...noise)));
  });

  it('keeps the lowest ids among equal logits at the border of top_k and top_p', async () => {
    const width = 200;
    const rows = 2000;
    const row = Float64Array.from({ length: width }, (_, id) => (id === 150 ? 2 : id % 3 === 0 ? 1 : 0));
    for (const kind of [{ top_k: 5 }, { top_p: 0.0626 }] as const) {
      const s = { temperature: 1, ...kind };
      const kept = keptTokens(row, s, width).map(({ id }) => id);
      expect(kept).toEqual([150, 0, 3, 6, 9, 12, 15, 18].slice(0, kept.length));
      expect(kept.length).toBeGreaterThan(3);
      const { ids } = await sample(lab, { logits: repeat(row, rows), width, settings: new Array(rows).fill(s) });
      expect([...new Set(ids)].sort((a, b) => a - b)).toEqual(kept.sort((a, b) => a - b));
    }
  });

  it('cuts by min_p at that share of the largest probability, alone and behind other filters', async () => {
    const shares = [0.19, 1, 0.21, 0.199, 0.5, 0.201, 0.02];
    const row = shares.map((share) => Math.log(share));
    const rows = 1000;
    for (const before of [{}, { top_k: 6 }, { top_p: 0.99 }]) {
      const s = { temperature: 1, min_p: 0.2, ...before };
      const settings = new Array<Settings>(rows).fill(s);
      const { ids } = await sample(lab, { logits: repeat(row, rows), width: row.length, settings });
      expect([...new Set(ids)].sort()).toEqual([1, 2, 4, 5]);
    }
  });

  it.each([
    ['peaked', 4],
    ['flat', 0.01],
  ] as const)('chooses exactly as defined over a vocabulary of 129280 (%s)', async (_, scale) => {
    const width = 129280;
    const random = new Random(8);
    const row = random.values('f32', width, scale);
    const settings: Settings[] = [
      { temperature: 0.8 },
      { temperature: 1, top_k: 40 },
      { temperature: 1, top_k: 20000, top_p: 0.5 },
      { temperature: 1, top_p: 0.9985 },
      { temperature: 1, top_k: 50, top_p: 0.9, min_p: 0.01 },
      { temperature: 0 },
    ];
    const vocab = 128815;
    const seeds = settings.map((__, i) => 1000 + i);
    const { ids, logprobs } = await sample(lab, {
      logits: repeat(row, settings.length),
      width,
      vocab,
      settings,
      seeds,
    });
    expect(ids).toEqual(settings.map((s, b) => pick(keptTokens(row, s, vocab), seeds[b] as number, 0)));
    const exact = ids.map((id) => logProbability(row, id));
    expectWithin(logprobs, exact, (__, e) => 2e-6 * (1 + Math.abs(e)));
  });

  it('takes -infinity as impossible and a tiny temperature as greedy', async () => {
    const width = 10;
    const row = new Float64Array(width).fill(-Infinity);
    row[7] = -3;
    row[4] = -3;
    const settings: Settings[] = [
      { temperature: 1 },
      { temperature: 1, top_p: 0.9 },
      { temperature: 1, top_k: 5 },
      { temperature: 1e-40 },
      { temperature: 1, min_p: 0.1 },
    ];
    const { ids } = await sample(lab, { logits: repeat(row, 5), width, settings });
    for (const id of ids) expect([4, 7]).toContain(id);
    expect(ids[3]).toBe(4);
  });
});

describe('sample refuses', () => {
  const width = 20;
  const good = () => new Random(3).values('f32', 2 * width);
  const settings: Settings[] = [{ temperature: 1 }, { temperature: 1 }];

  it.each([Number.NaN, Infinity])('a row with %p among its logits, and works again afterwards', async (bad) => {
    for (const at of [0, 7, 19]) {
      const logits = good();
      logits[width + at] = bad;
      for (const s of [{ temperature: 0 }, { temperature: 1 }, { temperature: 1, top_k: 3, top_p: 0.5 }]) {
        await expectInvalid(sample(lab, { logits, width, settings: [s, s] }), 'sample', 'row 1 of logits');
      }
    }
    const logits = good().fill(Number.NaN, 0, width);
    await expectInvalid(sample(lab, { logits, width, settings }), 'row 0 of logits');
    expect((await sample(lab, { logits: good(), width, settings })).ids.every((id) => id >= 0)).toBe(true);
  });

  it('a row without any allowed token', async () => {
    const logits = good();
    await expectInvalid(sample(lab, { logits, width, settings, mask: [0xfffff, 0] }), 'row 1 of logits', 'mask');
    await expectInvalid(sample(lab, { logits: logits.fill(-Infinity, width), width, settings }), 'row 1 of logits');
  });

  it('settings out of range', async () => {
    const counts = new Array(2 * width).fill(1);
    const bad: Settings[] = [
      { temperature: -1 },
      { temperature: Number.NaN },
      { temperature: Infinity },
      { temperature: 1, top_p: Number.NaN },
      { temperature: 1, repetition: 0 },
      { temperature: 1, presence: Infinity },
    ];
    for (const s of bad) {
      const batch = { logits: good(), width, settings: [{ temperature: 1 }, s], counts };
      await expectInvalid(sample(lab, batch), 'sample', 'row 1 of settings');
    }
  });
});
