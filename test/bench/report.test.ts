// mla bench report: records as tables and charts, whose points lie where the figures say.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chartsOf, readRecords } from '../../lib/bench';
import { lineChart } from '../../lib/bench/chart';
import { runCli } from '../cli/run-cli';

const BATCHES = [1, 8, 32];
const DEPTHS = [128, 4096];
const rate = (batch: number, tokens: number) => 400 * batch ** 0.7 * (tokens > 1000 ? 0.8 : 1);

function record(model = 'imaginary', device = 'GPU 9', depths = DEPTHS, extra: object[] = []): string {
  const results = depths.flatMap((tokens) =>
    BATCHES.map((batch) => ({
      id: `${model} decode b=${batch} depth=${tokens}`,
      sweep: { bench: 'decode', model, batch, tokens },
      repetitions: [0.99, 1, 1.01].map((part) => part * rate(batch, tokens)),
      device: { name: device },
    })),
  );
  const about = { date: '2026-11-26T01:02:03.000Z', commit: 'c0ffee'.repeat(6), gpu: { driver: '580.1' } };
  return JSON.stringify({ ...about, device: { name: device }, results: [...results, ...extra] });
}

const charts = (text: string) => chartsOf(readRecords(text, 'file'));

/** Each element is closed, in order; attributes have quotes; nothing stands there unescaped. */
function mustBeWellFormed(svg: string): void {
  const open: string[] = [];
  const rest = svg.replace(
    /<(\/?)([a-z]+)((?: [a-zA-Z0-9:-]+="[^"<>&]*")*)(\/?)>/g,
    (_, end, name, _attributes, self) => {
      if (end !== '') expect(open.pop()).toBe(name);
      else if (self === '') open.push(name);
      return '';
    },
  );
  expect(open).toEqual([]);
  expect(rest).not.toMatch(/[<>]|&(?!(amp|lt|gt|quot);)/);
}

const circles = (svg: string) =>
  [...svg.matchAll(/<circle cx="([\d.]+)" cy="([\d.]+)" r="3.5"/g)].map(([, x, y]) => ({ x: Number(x), y: Number(y) }));

test('a sweep of two quantities gives a chart over each of them, with every figure in it', () => {
  const drawn = charts(record());
  expect(drawn.map(({ file }) => file)).toEqual([
    'imaginary-decode-over-batch.svg',
    'imaginary-decode-over-tokens.svg',
  ]);
  for (const { svg } of drawn) {
    mustBeWellFormed(svg);
    expect(circles(svg)).toHaveLength(BATCHES.length * DEPTHS.length);
    expect(svg).toContain('GPU 9, driver 580.1, 2026-11-26, c0ffeec0f<');
  }
  const [overBatch] = drawn;
  expect(overBatch?.svg).toMatch(/>128 in the cache<[\s\S]*>4,096 in the cache</);
});

test('what was measured with two caches gives two lines over the batch', () => {
  const results = ['latent', 'per-head'].flatMap((cache) =>
    [1, 8].map((batch) => ({
      id: `m ${cache} cache b=${batch} depth=4096`,
      sweep: { bench: 'cache', model: 'm', batch, tokens: 4096, cache },
      repetitions: [100 * batch, 101 * batch],
      device: { name: 'GPU 9' },
    })),
  );
  const drawn = charts(JSON.stringify({ results }));
  expect(drawn.map(({ file }) => file)).toEqual(['m-cache-over-batch.svg']);
  expect(drawn[0]?.svg).toMatch(/>latent cache, 4,096 in the cache<[\s\S]*>per-head cache, 4,096 in the cache</);
});

test('a point lies where its figures say: powers of two evenly across, more tokens higher', () => {
  const svg = charts(record('m', 'GPU 9', [128]))[0]?.svg as string;
  const points = circles(svg);
  const [first, second, third] = points as [
    { x: number; y: number },
    { x: number; y: number },
    { x: number; y: number },
  ];
  expect((second.x - first.x) / (third.x - first.x)).toBeCloseTo(3 / 5, 2); // of 1, 8 and 32
  // 400, 1715 and 4525: further apart than 8 times, so the axis is logarithmic
  const share = Math.log(rate(8, 1) / rate(1, 1)) / Math.log(rate(32, 1) / rate(1, 1));
  expect((first.y - second.y) / (first.y - third.y)).toBeCloseTo(share, 2);
});

test('figures of an axis do not run into each other', () => {
  const points = [1, 8, 62, 64, 814, 1024].map((x) => ({ x, y: x, low: x, high: x }));
  const svg = lineChart({ title: '', xLabel: '', yLabel: '', footer: '', lines: [{ name: '', group: 0, points }] });
  const bottom = /y="([\d.]+)"[^>]*>8</.exec(svg)?.[1];
  const shown = [...svg.matchAll(/y="([\d.]+)"[^>]*>([\d,]+)</g)].filter(([, y]) => y === bottom).map(([, , x]) => x);
  expect(shown.sort()).toEqual(['1', '1,024', '64', '8']);
});

test('figures near each other stand on an axis that begins at 0', () => {
  const point = (x: number, y: number) => ({ x, y, low: y, high: y });
  const lines = [{ name: 'a', group: 0, points: [point(1, 100), point(2, 200), point(4, 400)] }];
  const svg = lineChart({ title: 't', xLabel: 'x', yLabel: 'y', footer: '', lines });
  const ys = circles(svg).map(({ y }) => y) as [number, number, number];
  expect((ys[0] - ys[1]) / (ys[1] - ys[2])).toBeCloseTo(1 / 2, 2);
  expect(svg).toMatch(/text-anchor="end" font-size="12">0</);
});

test('operations are bars in percent of their floor', () => {
  const operation = { id: 'op <n=1> & more', samples: [20, 20, 20], floorUs: 15, failure: null };
  const [chart] = charts(JSON.stringify({ device: { name: 'GPU 9' }, results: [operation] }));
  expect(chart?.file).toBe('operations.svg');
  mustBeWellFormed(chart?.svg as string);
  expect(chart?.svg).toMatch(/op &lt;n=1&gt; &amp; more[\s\S]*>75</);
});

test('public figures are drawn for the GPU that they come from, beside two lines of ours at most', () => {
  const overBatch = (device: string, depths: number[]) => charts(record('v2-lite', device, depths))[0]?.svg;
  expect(overBatch('NVIDIA H200', [128, 4096])).toMatch(/llama\.cpp/);
  expect(overBatch('NVIDIA H100', [128, 4096])).not.toMatch(/llama\.cpp/);
  expect(overBatch('NVIDIA H200', [128, 4096, 32768])).not.toMatch(/llama\.cpp/);
});

test('one value of everything is no chart; several runs are one point', () => {
  const one = (repetitions: number[], batch: number) =>
    JSON.stringify({
      results: [
        {
          id: `m decode b=${batch} depth=1`,
          sweep: { bench: 'decode', model: 'm', batch, tokens: 1 },
          repetitions,
          device: { name: 'G' },
        },
      ],
    });
  expect(charts(one([1, 2, 3], 1))).toEqual([]);
  const [chart] = charts([one([1, 2, 3], 1), one([2, 3, 4], 1), one([5, 5, 5], 2)].join('\n'));
  expect(circles(chart?.svg as string)).toHaveLength(2);
});

test('the same records give the same bytes', () => expect(charts(record())).toEqual(charts(record())));

describe('on the command line', () => {
  let dir = '';
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'node-mla-report-'));
    writeFileSync(join(dir, 'sweep.jsonl'), `${record('/some/where/model')}\n`);
    writeFileSync(
      join(dir, 'one.jsonl'),
      JSON.stringify({ results: [{ id: 'a', repetitions: [1], device: { name: 'G' } }] }),
    );
  });
  afterAll(() => rmSync(dir, { recursive: true }));

  test('a table to stdout, charts into the folder', async () => {
    const folder = join(dir, 'deep', 'charts');
    const { code, stdout, stderr } = await runCli(['bench', 'report', join(dir, 'sweep.jsonl'), '--charts', folder]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: expect.stringMatching(/model-decode-over-batch\.svg\n/) });
    expect(stdout).toMatch(/^GPU 9, driver 580\.1, 2026-11-26, commit (c0ffee){6}\n\n\| case /);
    expect(stdout.match(/^\| \/some\/where\/model decode /gm)).toHaveLength(6);
    expect(readdirSync(folder)).toEqual(['model-decode-over-batch.svg', 'model-decode-over-tokens.svg']);
    mustBeWellFormed(readFileSync(join(folder, 'model-decode-over-batch.svg'), 'utf8'));
  });

  test('nothing to draw is a failure of one line, and no folder', async () => {
    const folder = join(dir, 'none');
    const { code, stdout, stderr } = await runCli(['bench', 'report', join(dir, 'one.jsonl'), '--charts', folder]);
    expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringMatching(/^mla: .*nothing to draw;.*\n$/) });
    expect(stdout).toContain('| a ');
    expect(existsSync(folder)).toBe(false);
  });

  test('a folder that cannot be is a failure of one line', async () => {
    const folder = join(dir, 'sweep.jsonl', 'x');
    const { code, stderr } = await runCli(['bench', 'report', join(dir, 'sweep.jsonl'), '--charts', folder]);
    expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringMatching(/cannot be written.*\(ERR_FILE\)\n$/) });
  });
});
