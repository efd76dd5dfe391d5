// cli/bench-report.ts - mla bench report: records as Markdown and as charts.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Command } from 'commander';
import { chartsOf, figureOf, type RecordSet, type Series } from '../bench';
import { MlaError } from '../errors';
import { recordsOf } from './bench-compare';
import { FoundWanting } from './failure';
import { note, print } from './output';
import { tableOf } from './table';

interface ReportFlags {
  charts?: string;
}

/** Adds the subcommand to `mla bench`. */
export function addBenchReport(bench: Command): void {
  bench
    .command('report')
    .description('A file of records (lines of --json) as Markdown tables, and as charts.')
    .argument('<file>', 'file with the figures')
    .option('--charts <dir>', 'also write SVG: tokens/s over what was swept, operations in percent of their floor')
    .action(async (file: string, { charts }: ReportFlags) => {
      const set = await recordsOf(file);
      await print(textOf(set));
      if (charts !== undefined) await writeCharts(set, file, charts);
    });
}

async function writeCharts(set: RecordSet, file: string, folder: string): Promise<void> {
  const charts = chartsOf(set);
  if (charts.length === 0)
    throw new FoundWanting(
      `${file}: nothing to draw; a chart needs two values of --batch, --depth or --length, or operations.`,
    );
  try {
    await mkdir(folder, { recursive: true });
    for (const { file: name, svg } of charts) {
      await writeFile(join(folder, name), svg);
      note(join(folder, name));
    }
  } catch (cause) {
    const { code = 'unknown error' } = cause as NodeJS.ErrnoException;
    throw new MlaError('ERR_FILE', `${folder}: charts cannot be written (${code}).`, { cause });
  }
}

function textOf({ device, drivers, commits, dates, series, failures }: RecordSet): string {
  const all = [...series.values()];
  const models = all.filter(({ unit }) => unit === 'tokens/s');
  const operations = all.filter(({ unit }) => unit === 'us');
  const span = [...new Set([dates[0], dates.at(-1)].map((date) => date?.slice(0, 10)))].filter(Boolean).join(' to ');
  const about = [device, ...drivers.map((driver) => `driver ${driver}`), span, ...commits.map((c) => `commit ${c}`)];
  return [
    `${about.filter((part) => part !== '').join(', ')}\n`,
    ...(models.length > 0 ? [tableOf(['case', 'tokens/s', 'lowest', 'highest', 'runs'], models.map(modelRow))] : []),
    ...(operations.length > 0
      ? [tableOf(['case', 'us', 'lowest', 'highest', 'runs', '% floor'], operations.map(operationRow))]
      : []),
    ...(failures.size > 0 ? [tableOf(['failed', 'reason'], [...failures])] : []),
  ].join('\n');
}

const shown = (value: number) => value.toFixed(value < 100 ? 2 : 1);

function modelRow(series: Series): string[] {
  const { value, low, high } = figureOf(series);
  return [series.id, ...[value, low, high].map(shown), String(series.runs.length)];
}

function operationRow(series: Series): string[] {
  const { value } = figureOf(series);
  const share = series.floorUs === undefined ? '-' : ((100 * series.floorUs) / value).toFixed(1);
  return [...modelRow(series), share];
}
