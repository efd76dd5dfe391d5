// mutations-table.ts - makes every mistake of mutations.ts on a device and says which the golden data do not catch.
//
// With float32 activations a mistake must move some log-probability by at least five times the tolerance of the golden
// tests. With bf16 activations rounding alone moves some of them by more than their tolerance, so there a mistake must
// bring some checkpoint that much further off than the right build is; and it must be more than the tests of the bf16 path
// let pass (test/gpu/model.test.ts): a mean or a worst distance beyond those factors of what the right build has.
import type { LatentModelOptions } from '../../lib/model';
import type { Golden } from './golden';
import { controls, type Distance, distancesWith, type Mutation, mutations } from './mutations';

const TOLERANCE = { f32: 1e-2, bf16: 5e-2 };
const FACTOR = 5;
const MEAN_FACTOR = 1.25;
const WORST_FACTOR = 2;

type Dtype = keyof typeof TOLERANCE;
const DTYPES: readonly Dtype[] = ['f32', 'bf16'];

/** By checkpoint; one that cannot make the mistake is absent. */
type Distances = Record<string, Distance>;
type Row = { mutation: Mutation } & Record<Dtype, Distances>;

const worstOf = (distances: Distances) => Math.max(...Object.values(distances).map(({ worst }) => worst));

/** The largest of `by(distance, that of the right build)` over the checkpoints. */
const largest = (found: Distances, right: Distances, by: (found: Distance, right: Distance) => number) =>
  Math.max(...Object.entries(found).map(([name, distance]) => by(distance, right[name] as Distance)));

function tableOf(dtype: Dtype, rows: readonly Row[], names: readonly string[]): string {
  return [
    `| ${dtype}: worst (mean) | ${names.join(' | ')} |`,
    `|---|${names.map(() => '---').join('|')}|`,
    ...rows.map((row) => {
      const cells = names.map((name) => {
        const distance = row[dtype][name];
        return distance === undefined ? '-' : `${distance.worst.toPrecision(2)} (${distance.mean.toPrecision(2)})`;
      });
      return `| ${row.mutation.name} | ${cells.join(' | ')} |`;
    }),
  ].join('\n');
}

/** Why the golden data would not catch this mistake; the controls must not be caught. */
function judge({ mutation, f32, bf16 }: Row, right: Row): string[] {
  const growth = largest(bf16, right.bf16, (a, b) => a.worst - b.worst);
  const mean = largest(bf16, right.bf16, (a, b) => a.mean / b.mean);
  const worst = largest(bf16, right.bf16, (a, b) => a.worst / b.worst);
  if (controls.includes(mutation)) {
    return [
      ...(worstOf(f32) < TOLERANCE.f32 ? [] : [`f32 is ${worstOf(f32)} off`]),
      ...(mean < MEAN_FACTOR && worst < WORST_FACTOR ? [] : ['bf16 is further off than the right build']),
    ];
  }
  return [
    ...(worstOf(f32) >= FACTOR * TOLERANCE.f32 ? [] : [`f32 is only ${worstOf(f32)} off`]),
    ...(growth >= FACTOR * TOLERANCE.bf16 ? [] : [`bf16 is only ${growth} further off than the right build`]),
    ...(mean >= MEAN_FACTOR || worst >= WORST_FACTOR ? [] : ['the tests of bf16 would let it pass']),
  ];
}

/** Makes all mistakes. Returns a table of distances and, in words, what is not as it must be. */
export async function judgeMutations(
  goldens: readonly Golden[],
  device: string,
): Promise<{ table: string; missed: string[] }> {
  const rows: Row[] = [];
  for (const mutation of [...controls, ...mutations]) {
    const row: Row = { mutation, f32: {}, bf16: {} };
    for (const dtype of DTYPES) {
      const options = { device, activationDtype: dtype, cacheDtype: dtype } as LatentModelOptions;
      row[dtype] = await distancesWith(mutation, goldens, options);
    }
    rows.push(row);
  }
  const names = goldens.map(({ name }) => name);
  const missed = rows.flatMap((row) => judge(row, rows[0] as Row).map((what) => `${row.mutation.name}: ${what}`));
  return { table: DTYPES.map((dtype) => tableOf(dtype, rows, names)).join('\n\n'), missed };
}
