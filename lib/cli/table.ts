// cli/table.ts - Markdown tables that read well in a terminal too; the first column is text, the others are figures.

/** Writes rows as soon as they are there: the widths are known before the figures. */
export class Table {
  readonly #widths: readonly number[];

  /** `columns`: title and width of each; a title that is wider makes its column wider. */
  constructor(private readonly columns: readonly (readonly [title: string, width: number])[]) {
    this.#widths = columns.map(([title, width]) => Math.max(3, width, title.length));
  }

  /** The titles and the rule below them. */
  head(): string {
    const rule = this.#widths.map((width, i) => (i === 0 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`));
    return this.row(this.columns.map(([title]) => title)) + this.row(rule);
  }

  /** One line; a cell that is too wide pushes the others aside. */
  row(cells: readonly string[]): string {
    const padded = this.#widths.map((width, i) => {
      const cell = (cells[i] ?? '').replaceAll('|', '\\|');
      return i === 0 ? cell.padEnd(width) : cell.padStart(width);
    });
    return `| ${padded.join(' | ')} |\n`;
  }
}

/** A whole table, as narrow as it can be. */
export function tableOf(titles: readonly string[], rows: readonly (readonly string[])[]): string {
  const widthOf = (i: number) => Math.max(0, ...rows.map((row) => (row[i] ?? '').length));
  const table = new Table(titles.map((title, i) => [title, widthOf(i)] as const));
  return table.head() + rows.map((row) => table.row(row)).join('');
}
