// bench/chart.ts - draws figures as SVG: lines over a swept quantity, and bars. The same figures give the same bytes.

/** One measured point; `low` and `high` are the ends of its spread. */
export interface ChartPoint {
  x: number;
  y: number;
  low: number;
  high: number;
}

/** One line; a dashed one is somebody else's, and has the dashes of all others of its name. */
export interface ChartLine {
  name: string;
  points: readonly ChartPoint[];
  /** lines of one group share a colour */
  group: number;
  dashed?: boolean;
}

/** Figures over a swept quantity, which is drawn in powers of two. */
export interface LineChart {
  title: string;
  xLabel: string;
  yLabel: string;
  lines: readonly ChartLine[];
  /** what the figures belong to */
  footer: string;
}

/** One bar; `mark` is what it is compared with. */
export interface ChartBar {
  name: string;
  value: number;
  mark?: number | undefined;
}

/** Bars from 0 to at least 100. */
export interface BarChart {
  title: string;
  xLabel: string;
  bars: readonly ChartBar[];
  footer: string;
}

/** Distinguishable without telling red from green (Okabe and Ito). */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#555555'];
/** Dashes, so that lines of one colour are told apart. */
const DASHES = ['6 4', '1.5 3', '10 3 2 3', '3 3', '12 5', '6 2 1.5 2 1.5 2'];
const FONT = 'font-family="Helvetica, Arial, sans-serif"';
/** Wider than this the vertical axis becomes logarithmic: small figures would lie on the floor. */
const MOST_LINEAR_RATIO = 8;

const WIDTH = 860;
const PLOT = { left: 84, top: 52, width: 470, height: 300 };

const xml = (text: string) =>
  text.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c] as string);
const at = (value: number) => String(Math.round(value * 10) / 10);
const figure = (value: number) => value.toLocaleString('en-US', { maximumFractionDigits: 2 });

type Anchor = 'start' | 'middle' | 'end';

function text(x: number, y: number, content: string, anchor: Anchor = 'start', more = 'font-size="12"'): string {
  return `<text x="${at(x)}" y="${at(y)}" text-anchor="${anchor}" ${more}>${xml(content)}</text>`;
}

function line(x1: number, y1: number, x2: number, y2: number, more: string): string {
  return `<line x1="${at(x1)}" y1="${at(y1)}" x2="${at(x2)}" y2="${at(y2)}" ${more}/>`;
}

function picture(height: number, title: string, footer: string, body: readonly string[]): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${at(height)}" width="${WIDTH}" height="${at(height)}" ${FONT} fill="#222">`,
    `<rect width="${WIDTH}" height="${at(height)}" fill="#fff"/>`,
    text(PLOT.left, 28, title, 'start', 'font-size="16" font-weight="bold"'),
    ...body,
    text(PLOT.left, height - 12, footer, 'start', 'font-size="10" fill="#666"'),
    '</svg>\n',
  ].join('\n');
}

/** 1, 2 or 5 times a power of ten: the nearest at or below, and the one above. */
function round125(value: number, up: boolean): number {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 2, 5, 10].map((step) => step * power);
  const found = up
    ? steps.find((step) => step >= value * 0.999999)
    : steps.findLast((step) => step <= value * 1.000001);
  return found as number;
}

/** A vertical axis: its ticks, and where a value lies between 0 (bottom) and 1. */
function verticalAxis(low: number, high: number): { ticks: number[]; place: (value: number) => number } {
  if (high / low <= MOST_LINEAR_RATIO) {
    const step = round125(high / 6, true);
    const ticks = Array.from({ length: Math.ceil(high / step) + 1 }, (_, i) => i * step);
    const top = ticks.at(-1) as number;
    return { ticks, place: (value) => value / top };
  }
  const ticks = [round125(low, false)];
  while ((ticks.at(-1) as number) < high) ticks.push(round125((ticks.at(-1) as number) * 1.1, true));
  const [first, last] = [Math.log(ticks[0] as number), Math.log(ticks.at(-1) as number)];
  return { ticks, place: (value) => (Math.log(value) - first) / (last - first) };
}

/** Widest digit of an axis. */
const DIGIT = 7.5;

/** Those of the values whose figures do not run into each other; powers of two are preferred. */
function legible(values: readonly number[], xOf: (value: number) => number): number[] {
  const odd = (value: number) => Number(!Number.isInteger(Math.log2(value)));
  const room = (a: number, b: number) => ((figure(a).length + figure(b).length + 1) / 2) * DIGIT;
  const chosen: number[] = [];
  for (const value of values.toSorted((a, b) => odd(a) - odd(b) || a - b)) {
    if (chosen.every((other) => Math.abs(xOf(other) - xOf(value)) >= room(other, value))) chosen.push(value);
  }
  return chosen;
}

/** Draws lines; each needs at least one point, and all figures must be above 0. */
export function lineChart({ title, xLabel, yLabel, lines, footer }: LineChart): string {
  const points = lines.flatMap((one) => one.points);
  const swept = [...new Set(points.map(({ x }) => x))].sort((a, b) => a - b);
  const { ticks, place } = verticalAxis(
    Math.min(...points.map(({ low }) => low)),
    Math.max(...points.map(({ high }) => high)),
  );
  const [first, last] = [Math.log2(swept[0] as number), Math.log2(swept.at(-1) as number)];
  const inset = 18;
  const xOf = (x: number) =>
    PLOT.left + inset + ((Math.log2(x) - first) / (last - first || 1)) * (PLOT.width - 2 * inset);
  const yOf = (y: number) => PLOT.top + PLOT.height * (1 - place(y));
  const bottom = PLOT.top + PLOT.height;
  const body: string[] = [];
  for (const tick of ticks) {
    body.push(line(PLOT.left, yOf(tick), PLOT.left + PLOT.width, yOf(tick), 'stroke="#ddd"'));
    body.push(text(PLOT.left - 8, yOf(tick) + 4, figure(tick), 'end'));
  }
  for (const x of swept) body.push(line(xOf(x), bottom, xOf(x), bottom + 5, 'stroke="#222"'));
  for (const x of legible(swept, xOf)) body.push(text(xOf(x), bottom + 20, figure(x), 'middle'));
  body.push(line(PLOT.left, bottom, PLOT.left + PLOT.width, bottom, 'stroke="#222"'));
  body.push(text(PLOT.left + PLOT.width / 2, bottom + 42, xLabel, 'middle'));
  const turned = `transform="rotate(-90 20 ${at(PLOT.top + PLOT.height / 2)})" font-size="12"`;
  body.push(text(20, PLOT.top + PLOT.height / 2, yLabel, 'middle', turned));
  const strangers = [...new Set(lines.filter(({ dashed }) => dashed).map(({ name }) => name))];
  lines.forEach((one, i) => {
    const dashes = one.dashed ? ` stroke-dasharray="${DASHES[strangers.indexOf(one.name) % DASHES.length]}"` : '';
    const colour = COLOURS[one.group % COLOURS.length] as string;
    const stroke = `stroke="${colour}" stroke-width="${one.dashed ? 1.3 : 2}"${dashes}`;
    const path = one.points.map(({ x, y }) => `${at(xOf(x))},${at(yOf(y))}`).join(' ');
    body.push(`<polyline points="${path}" fill="none" ${stroke}/>`);
    for (const { x, y, low, high } of one.points) {
      if (high > low) body.push(line(xOf(x), yOf(low), xOf(x), yOf(high), `stroke="${colour}"`));
      const inside = one.dashed ? `fill="#fff" stroke="${colour}"` : `fill="${colour}"`;
      body.push(`<circle cx="${at(xOf(x))}" cy="${at(yOf(y))}" r="${one.dashed ? 2.5 : 3.5}" ${inside}/>`);
    }
    const legend = PLOT.top + 10 + i * 19;
    body.push(line(PLOT.left + PLOT.width + 18, legend, PLOT.left + PLOT.width + 42, legend, stroke));
    body.push(text(PLOT.left + PLOT.width + 48, legend + 4, one.name, 'start', 'font-size="11"'));
  });
  return picture(Math.max(bottom + 78, PLOT.top + 40 + lines.length * 19), title, footer, body);
}

/** Draws bars below each other. */
export function barChart({ title, xLabel, bars, footer }: BarChart): string {
  const left = 280;
  const width = WIDTH - left - 70;
  const row = 17;
  const top = 52;
  const bottom = top + bars.length * row;
  const most = Math.max(100, ...bars.map(({ value, mark = 0 }) => Math.max(value, mark)));
  const xOf = (value: number) => left + (value / most) * width;
  const body: string[] = [];
  for (let tick = 0; tick <= most; tick += 25) {
    body.push(line(xOf(tick), top, xOf(tick), bottom, 'stroke="#ddd"'));
    body.push(text(xOf(tick), bottom + 16, figure(tick), 'middle', 'font-size="11"'));
  }
  bars.forEach(({ name, value, mark }, i) => {
    const y = top + i * row;
    body.push(text(left - 8, y + 12, name, 'end', 'font-size="11"'));
    body.push(
      `<rect x="${left}" y="${at(y + 3)}" width="${at(xOf(value) - left)}" height="${row - 6}" fill="${COLOURS[0]}"/>`,
    );
    if (mark !== undefined)
      body.push(line(xOf(mark), y + 1, xOf(mark), y + row - 1, 'stroke="#d55e00" stroke-width="3"'));
    body.push(text(xOf(Math.max(value, mark ?? 0)) + 6, y + 12, value.toFixed(0), 'start', 'font-size="10"'));
  });
  body.push(text(left + width / 2, bottom + 36, xLabel, 'middle'));
  return picture(bottom + 68, title, footer, body);
}
