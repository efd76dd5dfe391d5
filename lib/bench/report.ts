// bench/report.ts - what a set of records says, as charts: tokens per second over each swept quantity, and how near each
// operation comes to its floor.
import { Anchors } from './anchors';
import { barChart, type ChartBar, type ChartLine, type ChartPoint, lineChart } from './chart';
import type { RecordSet, Series, Sweep } from './records';
import { median } from './timing';

/** A drawn chart, and the name of the file it belongs into. */
export interface Chart {
  file: string;
  svg: string;
}

/** What a quantity is called on an axis and in a legend. */
const QUANTITY = {
  batch: { axis: 'sequences together', of: (n: number) => (n === 1 ? '1 sequence' : `${n} sequences`) },
  decode: { axis: 'tokens in the cache of each', of: (n: number) => `${n.toLocaleString('en-US')} in the cache` },
  prefill: { axis: 'tokens of the prompt', of: (n: number) => `${n.toLocaleString('en-US')} tokens` },
  cache: { axis: 'tokens in the cache of each', of: (n: number) => `${n.toLocaleString('en-US')} in the cache` },
};
/** What a chart of a bench is about. */
const SUBJECT = { decode: 'decoding', prefill: 'prompts', cache: 'decoding with either cache' };

/** The figure of a series in its own unit: the middle of its runs' medians, with the smallest and largest of them all. */
export function figureOf({ unit, runs }: Series): { value: number; low: number; high: number } {
  const shown = (us: number) => (unit === 'us' ? us : 1e6 / us);
  const all = runs.flat().map(shown);
  return { value: shown(median(runs.map(median))), low: Math.min(...all), high: Math.max(...all) };
}

/** Public figures beside more lines of ours than this would hide them. */
const MOST_LINES_WITH_OTHERS = 2;

/** Draws what there is to draw: a quantity with one value only gives no chart. */
export function chartsOf(set: RecordSet): Chart[] {
  const anchors = new Anchors();
  const footer = [set.device, ...set.drivers.map((driver) => `driver ${driver}`), set.dates.at(-1)?.slice(0, 10) ?? '']
    .concat(set.commits.map((commit) => commit.replace(/^([0-9a-f]{9})[0-9a-f]+/, '$1')))
    .filter((part) => part !== '')
    .join(', ');
  const swept = new Map<string, { sweep: Sweep; series: Series }[]>();
  const floors: Series[] = [];
  for (const series of set.series.values()) {
    const { sweep } = series;
    if (sweep !== undefined) {
      const key = `${sweep.bench} ${sweep.model}`;
      swept.set(key, [...(swept.get(key) ?? []), { sweep, series }]);
    } else if (series.floorUs !== undefined) floors.push(series);
  }
  const charts: Chart[] = [];
  for (const members of swept.values())
    for (const over of ['batch', 'tokens'] as const) {
      const chart = sweepChart(members, over, set.device === anchors.gpu ? anchors : undefined, footer);
      if (chart !== null) charts.push(chart);
    }
  if (floors.length > 0) charts.push(floorChart(floors, set.device === anchors.gpu ? anchors : undefined, footer));
  return charts;
}

function sweepChart(
  members: readonly { sweep: Sweep; series: Series }[],
  over: 'batch' | 'tokens',
  anchors: Anchors | undefined,
  footer: string,
): Chart | null {
  const { bench, model } = (members[0] as { sweep: Sweep }).sweep;
  if (new Set(members.map(({ sweep }) => sweep[over])).size < 2) return null;
  const fixed = over === 'batch' ? 'tokens' : 'batch';
  const nameOf = QUANTITY[fixed === 'batch' ? 'batch' : bench].of;
  const lines: ChartLine[] = [];
  const lineOf = (sweep: Sweep) =>
    [sweep.cache && `${sweep.cache} cache`, nameOf(sweep[fixed])].filter(Boolean).join(', ');
  const names = new Set(members.toSorted((a, b) => a.sweep[fixed] - b.sweep[fixed]).map(({ sweep }) => lineOf(sweep)));
  const known = names.size <= MOST_LINES_WITH_OTHERS ? anchors : undefined;
  [...names].forEach((name, group) => {
    const points: ChartPoint[] = [];
    const others = new Map<string, ChartPoint[]>();
    for (const { sweep, series } of members) {
      if (lineOf(sweep) !== name) continue;
      const x = sweep[over];
      const { value: y, low, high } = figureOf(series);
      points.push({ x, y, low, high });
      for (const { by, tokensPerSecond } of known?.model(series.id) ?? []) {
        const point = { x, y: tokensPerSecond, low: tokensPerSecond, high: tokensPerSecond };
        others.set(by, [...(others.get(by) ?? []), point]);
      }
    }
    const inOrder = (list: ChartPoint[]) => list.sort((a, b) => a.x - b.x);
    lines.push({ name, points: inOrder(points), group });
    for (const [by, list] of others) lines.push({ name: by, points: inOrder(list), group, dashed: true });
  });
  const title = `${model}: ${SUBJECT[bench]}, tokens per second in all`;
  const svg = lineChart({
    title,
    xLabel: QUANTITY[over === 'batch' ? 'batch' : bench].axis,
    yLabel: 'tokens/s',
    lines,
    footer,
  });
  const name = model.replace(/^.*\/(?=.)/, '').replace(/[^\w.-]+/g, '-');
  return { file: `${name}-${bench}-over-${over}.svg`, svg };
}

function floorChart(list: readonly Series[], anchors: Anchors | undefined, footer: string): Chart {
  const bars: ChartBar[] = list.map((series) => {
    const floor = series.floorUs as number;
    const known = anchors?.kernel(series.id);
    return {
      name: series.id,
      value: (100 * floor) / figureOf(series).value,
      mark: known && (100 * floor) / known.us,
    };
  });
  const marks = bars.some(({ mark }) => mark !== undefined) ? '; orange: the fastest public library' : '';
  const title = 'Operations: percent of the floor that bytes and arithmetic set';
  return { file: 'operations.svg', svg: barChart({ title, xLabel: `percent of the floor${marks}`, bars, footer }) };
}
