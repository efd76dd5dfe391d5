// bench/records.ts - reads what `mla bench ... --json` printed: one record per line, several lines of the same command
// are repetitions of it in processes of their own.
import { MlaError } from '../errors';

/** What was swept when a figure of a whole model was taken. */
export interface Sweep {
  bench: 'decode' | 'prefill' | 'cache';
  /** shape, or folder */
  model: string;
  /** sequences together */
  batch: number;
  /** in the cache of each when decoding began, or of each prompt */
  tokens: number;
  /** of bench cache: which cache */
  cache?: string | undefined;
}

/** Times of one case, whatever the record counted: microseconds of an operation, or of a token. */
export interface Series {
  id: string;
  /** of an operation: microseconds that nothing can beat */
  floorUs?: number;
  /** of a whole model */
  sweep?: Sweep;
  /** what the record counted */
  unit: 'us' | 'tokens/s';
  /** microseconds; the samples of each run */
  runs: number[][];
}

/** All records of one file. */
export interface RecordSet {
  /** the GPU or processor that every record names */
  device: string;
  drivers: string[];
  commits: string[];
  /** when each record was made, as it says */
  dates: string[];
  /** MHz, of each record that has it */
  clocks: number[];
  series: Map<string, Series>;
  /** cases that gave no figure, with the reason */
  failures: Map<string, string>;
}

interface RawRecord {
  date?: string;
  commit?: string | null;
  gpu?: { driver?: string; clockSm?: number } | null;
  device?: { name?: string };
  results?: RawResult[];
}

interface RawResult {
  id?: unknown;
  samples?: unknown;
  repetitions?: unknown;
  failure?: string | null;
  floorUs?: unknown;
  sweep?: Partial<Record<keyof Sweep, unknown>>;
  device?: { name?: string };
}

/**
 * Reads a file's text.
 * @throws ERR_INVALID_ARG for what is no record, for records of several GPUs, or when there is no figure in it
 */
export function readRecords(text: string, name: string): RecordSet {
  const wrong = (what: string) => new MlaError('ERR_INVALID_ARG', `${name}: ${what}.`);
  const set: RecordSet = {
    device: '',
    drivers: [],
    commits: [],
    dates: [],
    clocks: [],
    series: new Map(),
    failures: new Map(),
  };
  const devices = new Set<string>();
  const drivers = new Set<string>();
  const commits = new Set<string>();
  for (const [i, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const record = parse(line);
    if (record === null || !Array.isArray(record.results))
      throw wrong(`line ${i + 1} is no record of mla bench with --json`);
    if (record.date) set.dates.push(record.date);
    if (record.commit) commits.add(record.commit);
    if (record.gpu?.driver) drivers.add(record.gpu.driver);
    if (record.gpu?.clockSm) set.clocks.push(record.gpu.clockSm);
    for (const result of record.results) {
      const device = (result.device ?? record.device)?.name;
      if (device !== undefined) devices.add(device);
      add(set, result, (what) => wrong(`line ${i + 1}: ${what}`));
    }
  }
  if (set.series.size + set.failures.size === 0) throw wrong('there is no figure in it');
  if (devices.size !== 1)
    throw wrong(
      `found figures of ${[...devices].join(' and of ') || 'no named device'}, expected one GPU or processor`,
    );
  return { ...set, device: [...devices][0] as string, drivers: [...drivers], commits: [...commits] };
}

function parse(line: string): RawRecord | null {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null ? (value as RawRecord) : null;
  } catch {
    return null;
  }
}

function add(set: RecordSet, result: RawResult, wrong: (what: string) => Error): void {
  const { id } = result;
  if (typeof id !== 'string') throw wrong('a result has no id');
  if (result.failure) {
    set.failures.set(id, result.failure);
    return;
  }
  const unit = result.samples === undefined ? 'tokens/s' : 'us';
  const values = unit === 'us' ? result.samples : result.repetitions;
  const sound = Array.isArray(values) && values.length > 0 && values.every((v) => typeof v === 'number' && v > 0);
  if (!sound) throw wrong(`${id} has no list of positive samples or repetitions`);
  const times = unit === 'us' ? (values as number[]) : (values as number[]).map((rate) => 1e6 / rate);
  const series: Series = set.series.get(id) ?? { id, unit, runs: [] };
  if (series.unit !== unit) throw wrong(`${id} was measured in ${series.unit} before`);
  series.runs.push(times);
  if (typeof result.floorUs === 'number' && result.floorUs > 0) series.floorUs = result.floorUs;
  if (isSweep(result.sweep)) series.sweep = result.sweep;
  set.series.set(id, series);
}

function isSweep(value: RawResult['sweep']): value is Sweep {
  const { bench, model, batch, tokens, cache } = value ?? {};
  const count = (n: unknown) => typeof n === 'number' && n >= 1;
  const named = typeof model === 'string' && (cache === undefined || typeof cache === 'string');
  return (bench === 'decode' || bench === 'prefill' || bench === 'cache') && named && count(batch) && count(tokens);
}
