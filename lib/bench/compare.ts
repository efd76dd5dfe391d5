// bench/compare.ts - whether one set of figures is slower than another by more than noise.
//
// The figure of a run is the median of its samples, that of a side the median of its runs. Two runs of the same build
// differ for reasons that the samples of one run do not show (clocks, temperature, where memory came to lie). So the
// standard deviation s of a run's figure is the largest of three:
//   RUN_TO_RUN     what is usual,
//   between runs   the standard deviation of the runs' figures, where a side has at least three,
//   within a run   1.2533 * 1.4826 * MAD / sqrt(n): the standard error of a median, from the median absolute deviation.
// A difference counts when it is above BAND * s * sqrt(1/runsA + 1/runsB). BAND = 4: of a hundred cases of an unchanged
// build one in 300 comparisons would be called slower if s is right. More runs make the band narrower.
import { MlaError } from '../errors';
import type { RecordSet, Series } from './records';
import { median } from './timing';

/**
 * Relative standard deviation between runs of one build. Of six runs of nine operations on an H100 (2026-11-26) it was
 * 0.1 to 0.6 %, and 1.3 % for one product of a single row.
 */
const RUN_TO_RUN = 0.01;
const BAND = 4;
const ENOUGH_RUNS = 3;
/** Standard error of a median over that of a mean; standard deviation of normal numbers over their MAD. */
const MEDIAN_OVER_MEAN = 1.2533;
const DEVIATION_OVER_MAD = 1.4826;

/** One case on both sides. */
export interface Comparison {
  id: string;
  unit: Series['unit'];
  /** in `unit` */
  before: number;
  after: number;
  /** time after over time before: above 1 is slower */
  ratio: number;
  /** the largest |ratio - 1| that noise explains */
  band: number;
  verdict: 'slower' | 'faster' | 'same';
}

/** The result of comparing two sets. */
export interface ComparisonReport {
  device: string;
  cases: Comparison[];
  /** cases that only one side has */
  onlyBefore: string[];
  onlyAfter: string[];
  /** cases that gave a figure before and fail now */
  broken: { id: string; failure: string }[];
  /** the middle of all ratios */
  overall: number;
  /** what may explain a difference that is none of the code's */
  notes: string[];
}

/**
 * Compares the cases that both sets have.
 * @throws ERR_INVALID_ARG when the sets are of different GPUs, or have no case in common
 */
export function compare(before: RecordSet, after: RecordSet): ComparisonReport {
  if (before.device !== after.device) {
    throw new MlaError(
      'ERR_INVALID_ARG',
      `Figures of ${before.device} and of ${after.device} do not compare; expected two files of one GPU or processor.`,
    );
  }
  const shared = [...before.series.values()].filter(({ id }) => after.series.has(id));
  const cases = shared.map((series) => compareSeries(series, after.series.get(series.id) as Series));
  const broken = [...after.failures].filter(([id]) => before.series.has(id)).map(([id, failure]) => ({ id, failure }));
  if (cases.length + broken.length === 0)
    throw new MlaError('ERR_INVALID_ARG', 'The two files have no case in common.');
  const missing = (from: RecordSet, other: RecordSet) =>
    [...from.series.keys()].filter((id) => !other.series.has(id) && !other.failures.has(id));
  return {
    device: before.device,
    cases,
    onlyBefore: missing(before, after),
    onlyAfter: missing(after, before),
    broken,
    overall: cases.length === 0 ? Number.NaN : median(cases.map(({ ratio }) => ratio)),
    notes: notesOn(before, after),
  };
}

function compareSeries(a: Series, b: Series): Comparison {
  if (a.unit !== b.unit)
    throw new MlaError('ERR_INVALID_ARG', `${a.id} is in ${a.unit} in one file and in ${b.unit} in the other.`);
  const timeA = figureOf(a);
  const timeB = figureOf(b);
  const ratio = timeB / timeA;
  const s = Math.max(deviationOf(a), deviationOf(b));
  const band = BAND * s * Math.sqrt(1 / a.runs.length + 1 / b.runs.length);
  const shown = (time: number) => (a.unit === 'us' ? time : 1e6 / time);
  // Symmetric in the two sides: exchanging them turns slower into faster.
  const verdict = Math.abs(Math.log(ratio)) <= Math.log1p(band) ? 'same' : ratio > 1 ? 'slower' : 'faster';
  return { id: a.id, unit: a.unit, before: shown(timeA), after: shown(timeB), ratio, band, verdict };
}

function figureOf({ runs }: Series): number {
  return median(runs.map(median));
}

/** Relative standard deviation of the figure of one run. */
function deviationOf(series: Series): number {
  const figure = figureOf(series);
  const within = median(
    series.runs.map((run) => {
      const middle = median(run);
      const mad = median(run.map((value) => Math.abs(value - middle)));
      return (MEDIAN_OVER_MEAN * DEVIATION_OVER_MAD * mad) / Math.sqrt(run.length);
    }),
  );
  const between = series.runs.length < ENOUGH_RUNS ? 0 : standardDeviation(series.runs.map(median));
  return Math.max(RUN_TO_RUN, within / figure, between / figure);
}

function standardDeviation(values: readonly number[]): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1));
}

function notesOn(before: RecordSet, after: RecordSet): string[] {
  const notes: string[] = [];
  const differ = (what: string, a: readonly string[], b: readonly string[]) => {
    if (a.length > 0 && b.length > 0 && a.join() !== b.join())
      notes.push(`different ${what}: ${a.join(', ')} before, ${b.join(', ')} after`);
  };
  differ('drivers', before.drivers, after.drivers);
  if (before.clocks.length > 0 && after.clocks.length > 0) {
    const [a, b] = [median(before.clocks), median(after.clocks)];
    if (Math.abs(b / a - 1) > 0.02) notes.push(`different clocks: ${a} MHz before, ${b} MHz after`);
  }
  return notes;
}
