// cpu/reference-math.ts - the operations' formulas in plain float64, one loop per symbol. They know nothing of tiles,
// splits or vectors. Arrays are flat and row-major.

/** sum of a[i] * b[i]. */
export function dot(a: ArrayLike<number>, aStart: number, b: ArrayLike<number>, bStart: number, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += (a[aStart + i] as number) * (b[bStart + i] as number);
  return sum;
}

/** y[t][n] = sum over k of x[t][k] * w[n][k]. */
export function matmul(x: Float64Array, w: Float64Array, rows: number, n: number, k: number): Float64Array {
  const y = new Float64Array(rows * n);
  for (let t = 0; t < rows; t++) {
    for (let j = 0; j < n; j++) y[t * n + j] = dot(x, t * k, w, j * k, k);
  }
  return y;
}

/** Rows of d channels, each divided by its root mean square and multiplied by the weight. */
export function rmsNorm(x: Float64Array, weight: Float64Array, eps: number): Float64Array {
  const d = weight.length;
  return x.map((_, i) => {
    const row = Math.floor(i / d) * d;
    const mean = dot(x, row, x, row, d) / d;
    return ((x[i] as number) / Math.sqrt(mean + eps)) * (weight[i % d] as number);
  });
}

/** cos and sin of position * theta^(-2i/r), [positions, r/2, 2]. */
export function cosSin(positions: number, r: number, theta = 10000): Float64Array {
  return Float64Array.from({ length: positions * r }, (_, i) => {
    const angle = Math.floor(i / r) * theta ** (-(2 * Math.floor((i % r) / 2)) / r);
    return Math.fround(i % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
  });
}

/** Rotates the last r of every `width` channels by pairs; rows of padding (position < 0) stay. */
export function rope(
  x: Float64Array,
  heads: number,
  width: number,
  r: number,
  positions: readonly number[],
  table: Float64Array,
): Float64Array {
  const out = x.slice();
  positions.forEach((position, t) => {
    if (position < 0) return;
    for (let h = 0; h < heads; h++) {
      const at = (t * heads + h) * width + width - r;
      for (let i = 0; i < r; i += 2) {
        const a = x[at + i] as number;
        const b = x[at + i + 1] as number;
        const c = table[position * r + i] as number;
        const s = table[position * r + i + 1] as number;
        out[at + i] = a * c - b * s;
        out[at + i + 1] = a * s + b * c;
      }
    }
  });
  return out;
}

/** Attention of one query over n keys. */
export interface Attended {
  out: Float64Array;
  lse: number;
  /** per output channel, sum of p * |value|: what errors of p are multiplied with */
  size: Float64Array;
}

/** softmax(scale * score) times values; `score(j)` and `value(j, i)` read key j. No key gives zeros and -inf. */
export function attend(
  n: number,
  channels: number,
  scale: number,
  score: (j: number) => number,
  value: (j: number, i: number) => number,
): Attended {
  const out = new Float64Array(channels);
  const size = new Float64Array(channels);
  if (n <= 0) return { out, lse: -Infinity, size };
  const s = Float64Array.from({ length: n }, (_, j) => scale * score(j));
  const largest = s.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let j = 0; j < n; j++) {
    s[j] = Math.exp((s[j] as number) - largest);
    sum += s[j] as number;
  }
  for (let j = 0; j < n; j++) {
    const p = (s[j] as number) / sum;
    for (let i = 0; i < channels; i++) {
      out[i] = (out[i] as number) + p * value(j, i);
      size[i] = (size[i] as number) + p * Math.abs(value(j, i));
    }
  }
  return { out, lse: largest + Math.log(sum), size };
}

/** What moeRoute is told, by the names of ops.h. */
export interface RouteSettings {
  top_k: number;
  scale: number;
  n_group: number;
  topk_group: number;
  sigmoid: boolean;
  group_top2: boolean;
  norm_topk: boolean;
}

/** Indices in descending order of value, ties to the lowest index. */
function ranking(values: readonly number[]): number[] {
  return values.map((_, i) => i).sort((a, b) => (values[b] as number) - (values[a] as number) || a - b);
}

/** What implementations of routers get wrong. */
export interface RouteMistake {
  /** the choice of experts that stand in no chosen group; right: -Infinity */
  mask?: number;
  /** weights are made from scores plus bias; right: from scores */
  biased?: boolean;
}

/** Experts and weights of one row of router logits, in descending order of choice. */
export function route(
  logits: readonly number[],
  bias: readonly number[] | undefined,
  s: RouteSettings,
  { mask = -Infinity, biased = false }: RouteMistake = {},
) {
  const largest = Math.max(...logits);
  const sum = logits.reduce((total, x) => total + Math.exp(x - largest), 0);
  const scores = logits.map((x) => (s.sigmoid ? 1 / (1 + Math.exp(-x)) : Math.exp(x - largest) / sum));
  let choice = scores.map((x, e) => x + (bias?.[e] ?? 0));
  if (s.n_group > 1) {
    const size = logits.length / s.n_group;
    const groups = Array.from({ length: s.n_group }, (_, g) => {
      const sorted = choice.slice(g * size, (g + 1) * size).sort((a, b) => b - a);
      return s.group_top2 ? (sorted[0] as number) + (sorted[1] ?? 0) : (sorted[0] as number);
    });
    const kept = new Set(ranking(groups).slice(0, s.topk_group));
    choice = choice.map((x, e) => (kept.has(Math.floor(e / size)) ? x : mask));
  }
  const ids = choice
    .map((_, i) => i)
    .sort((a, b) => {
      const difference = (choice[b] as number) - (choice[a] as number);
      return difference > 0 || difference < 0 ? difference : a - b;
    })
    .slice(0, s.top_k);
  const chosen = ids.map((e) => (scores[e] as number) + (biased ? (bias?.[e] ?? 0) : 0));
  const total = chosen.reduce((x, y) => x + y, 0) + 1e-20;
  const weights = chosen.map((x) => (x / (s.norm_topk ? total : 1)) * s.scale);
  return { ids, weights };
}

/** Which experts a device has: of `experts`, those from expert_begin to expert_end, and `shared` that all devices have. */
export interface GroupSettings {
  experts: number;
  shared: number;
  expert_begin: number;
  expert_end: number;
}

/** Pairs of row and expert in the order of experts: what moeRoute makes of its ids. */
export function grouping(ids: ArrayLike<number>, s: GroupSettings) {
  const local = s.expert_end - s.expert_begin;
  const groupOf = (id: number) => {
    if (id >= s.experts) return local + id - s.experts;
    return id >= s.expert_begin && id < s.expert_end ? id - s.expert_begin : -1;
  };
  const groups = Array.from({ length: local + s.shared }, () => [] as number[]);
  for (let pair = 0; pair < ids.length; pair++) {
    const id = ids[pair] as number;
    if (id >= 0 && groupOf(id) >= 0) (groups[groupOf(id)] as number[]).push(pair);
  }
  const pairs = groups.flat();
  const offsets = [0];
  for (const group of groups) offsets.push((offsets[offsets.length - 1] as number) + group.length);
  const slots = new Array<number>(ids.length).fill(-1);
  pairs.forEach((pair, at) => {
    slots[pair] = at;
  });
  const order = [...pairs, ...new Array<number>(ids.length - pairs.length).fill(-1)];
  return { offsets, order, slots };
}
