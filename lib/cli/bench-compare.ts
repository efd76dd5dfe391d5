// cli/bench-compare.ts - mla bench compare: fails when figures became worse by more than noise.
import { readFile } from 'node:fs/promises';
import type { Command } from 'commander';
import { type Comparison, type ComparisonReport, compare, type RecordSet, readRecords } from '../bench';
import { MlaError } from '../errors';
import { FoundWanting } from './failure';
import { addJsonFlag, type JsonFlag } from './flags';
import { print } from './output';
import { tableOf } from './table';

/** Adds the subcommand to `mla bench`. */
export function addBenchCompare(bench: Command): void {
  const command = bench
    .command('compare')
    .description(
      'Two files of records (lines of --json): a table, and exit code 1 when something is slower beyond noise.',
    )
    .argument('<before>', 'file with the figures to compare with')
    .argument('<after>', 'file with the figures to judge');
  addJsonFlag(command).action(async (before: string, after: string, flags: JsonFlag) => {
    const report = compare(await recordsOf(before), await recordsOf(after));
    await print(flags.json ? `${JSON.stringify(report)}\n` : textOf(report));
    judge(report);
  });
}

/** Reads a file of records. Rejects with ERR_FILE, or ERR_INVALID_ARG for what is none. */
export async function recordsOf(file: string): Promise<RecordSet> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    const { code = 'unknown error' } = cause as NodeJS.ErrnoException;
    throw new MlaError('ERR_FILE', `${file}: cannot be read (${code}).`, { cause });
  }
  return readRecords(text, file);
}

function judge({ cases, broken }: ComparisonReport): void {
  const slower = cases.filter(({ verdict }) => verdict === 'slower').length;
  const parts = [
    ...(slower > 0 ? [`${slower} of ${cases.length} cases are slower beyond noise`] : []),
    ...(broken.length > 0 ? [`${broken.length} cases fail now`] : []),
  ];
  if (parts.length > 0) throw new FoundWanting(`${parts.join(', ')}.`);
}

const HEAD = ['case', 'before', 'after', 'unit', 'time', 'noise', 'verdict'];

/** What is not the same stands first. */
function textOf({ device, cases, onlyBefore, onlyAfter, broken, overall, notes }: ComparisonReport): string {
  const rank = { slower: 0, faster: 1, same: 2 };
  const sorted = [...cases].sort((a, b) => rank[a.verdict] - rank[b.verdict]);
  const lines = [
    `${device}: ${cases.length} cases, the middle of all is ${percent(overall)}`,
    ...notes.map((text) => `note: ${text}`),
    '',
    tableOf(HEAD, [...sorted.map(rowOf), ...broken.map(({ id }) => [id, '', '', '', '', '', 'FAILS'])]).trimEnd(),
    ...broken.map(({ id, failure }) => `${id} fails: ${failure}`),
    ...(onlyBefore.length > 0 ? ['', `only before: ${onlyBefore.join('; ')}`] : []),
    ...(onlyAfter.length > 0 ? ['', `only after: ${onlyAfter.join('; ')}`] : []),
  ];
  return `${lines.join('\n')}\n`;
}

function rowOf({ id, unit, before, after, ratio, band, verdict }: Comparison): string[] {
  const figure = (value: number) => value.toFixed(value < 100 ? 2 : 1);
  const mark = verdict === 'same' ? '' : verdict === 'slower' ? 'SLOWER' : 'faster';
  return [id, figure(before), figure(after), unit, percent(ratio), `±${(100 * band).toFixed(1)} %`, mark];
}

/** A ratio of times as a change: 1.1 is +10.0 %. */
function percent(ratio: number): string {
  if (Number.isNaN(ratio)) return '-';
  const change = 100 * (ratio - 1);
  return `${change < 0 ? '' : '+'}${change.toFixed(1)} %`;
}
