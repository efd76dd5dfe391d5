// Random damage, from a seed: only MlaError may come out, quickly, and our verdict on safetensors headers must be that
// of a second, naive reader over JSON.parse. MLA_FUZZ_INPUTS sets the number of inputs per target.
import { parseConfig, parseJson, resolveRouting } from '../../lib/checkpoint';
import { headerLength, parseSafetensorsHeader } from '../../lib/checkpoint/safetensors';
import { MlaError } from '../../lib/errors';
import { mutate, random, renumber } from './damage';
import { cpuTime, fileOf, type Json, packed, REAL, TINY } from './support';

const INPUTS = Number(process.env.MLA_FUZZ_INPUTS ?? 20_000);
/** No single input may take more processor time. */
const SLOWEST_MS = 1000;

/** Runs one input; gives whether it was accepted. */
function attempt(action: () => unknown): boolean {
  try {
    action();
    return true;
  } catch (error) {
    if (!(error instanceof MlaError)) throw error;
    return false;
  }
}

const DTYPES = new Map([
  ['BF16', 2],
  ['F16', 2],
  ['F32', 4],
  ['F64', 8],
  ['F8_E4M3', 1],
  ['F8_E5M2', 1],
  ['F8_E8M0', 1],
  ['I8', 1],
  ['U8', 1],
  ['I16', 2],
  ['U16', 2],
  ['I32', 4],
  ['U32', 4],
  ['I64', 8],
  ['U64', 8],
  ['BOOL', 1],
]);

/** True when some object has a key twice or some number is not spelled as a plain natural number. */
function hiddenFromParse(text: string): boolean {
  const open: (Set<string> | null)[] = [];
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/gs) ?? [];
  for (const [i, token] of tokens.entries()) {
    if (token === '{') open.push(new Set());
    else if (token === '[') open.push(null);
    else if (token === '}' || token === ']') open.pop();
    else if (token[0] === '"' && tokens[i + 1] === ':') {
      const keys = open.at(-1);
      const key = JSON.parse(token);
      if (keys?.has(key)) return true;
      keys?.add(key);
    } else if (/^[-\d]/.test(token) && !/^(0|[1-9]\d*)$/.test(token)) return true;
  }
  return false;
}

/** The rules written a second time, over JSON.parse and BigInt. */
function naive(file: Buffer): boolean {
  if (file.length < 8) return false;
  const length = file.readBigUInt64LE(0);
  if (length > 100_000_000n || length > BigInt(file.length - 8)) return false;
  const json = file.subarray(8, 8 + Number(length));
  let header: Json;
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json);
    if (text[0] !== '{') return false;
    header = JSON.parse(text);
    // Whole pairs come out of JSON.stringify as they are, lone halves as escapes.
    if (JSON.stringify(header).match(/(^|[^\\])(\\\\)*\\ud[89a-f]/i) || hiddenFromParse(text)) return false;
  } catch {
    return false;
  }
  const data = BigInt(file.length - 8) - length;
  const natural = (n: unknown): n is number => Number.isSafeInteger(n) && !Object.is(n, -0) && Number(n) >= 0;
  const spans: [bigint, bigint][] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (entry === null || typeof entry !== 'object' || Array.isArray(entry)) return false;
    if (name === '__metadata__') {
      if (!Object.values(entry).every((value) => typeof value === 'string')) return false;
      continue;
    }
    const { dtype, shape, data_offsets, ...rest } = entry as Json;
    if (Object.keys(rest).length > 0 || !Array.isArray(shape) || !Array.isArray(data_offsets)) return false;
    const size = DTYPES.get(dtype as string);
    if (size === undefined || !shape.every(natural) || shape.length > 32) return false;
    if (data_offsets.length !== 2 || !data_offsets.every(natural)) return false;
    let bytes = BigInt(size);
    for (const n of shape as number[]) {
      bytes *= BigInt(n);
      if (bytes >= 2n ** 53n) return false;
    }
    const [a, b] = (data_offsets as number[]).map(BigInt) as [bigint, bigint];
    if (b - a !== bytes) return false;
    spans.push([a, b]);
  }
  // An empty tensor may stand at any border between two others.
  spans.sort((x, y) => Number(x[0] - y[0]) || Number(x[1] - y[1]));
  let end = 0n;
  for (const [a, b] of spans) {
    if (a !== end) return false;
    end = b;
  }
  return end === data;
}

function readFile(file: Buffer): unknown {
  if (file.length < 8) throw new MlaError('ERR_SAFETENSORS', 'short');
  const length = headerLength(file.subarray(0, 9), file.length, 'f');
  return parseSafetensorsHeader(file.subarray(8, 8 + length), file.length, 'f');
}

test('safetensors: only MlaError, in bounded time, and the verdict of a second reader', () => {
  const below = random(20260701);
  const f32 = { dtype: 'F32', shape: [2, 3] };
  const seeds = [
    packed({ a: f32 }),
    packed({
      a: f32,
      b: { dtype: 'BF16', shape: [4] },
      empty: { dtype: 'F32', shape: [0, 3] },
      c: { dtype: 'F8_E4M3', shape: [] },
    }),
    packed(
      Object.fromEntries(
        Array.from({ length: 12 }, (_, i) => [`model.layers.${i}.weight`, { dtype: 'BF16', shape: [i + 1, 2] }]),
      ),
    ),
  ];
  const [first] = seeds as [(typeof seeds)[0]];
  seeds.push({
    header: `{"__metadata__":{"format":"pt","x":"\\u00e9\\n"},${first.header.slice(1)}   `,
    dataBytes: first.dataBytes,
  });
  let accepted = 0;
  let slowest = 0;
  for (let i = 0; i < INPUTS; i++) {
    const seed = seeds[below(seeds.length)] as (typeof seeds)[0];
    const kind = below(4);
    const header = kind === 0 ? Buffer.from(renumber(seed.header, below)) : mutate(Buffer.from(seed.header), below);
    let file = fileOf(header, seed.dataBytes);
    if (kind === 3) file = mutate(fileOf(seed.header, seed.dataBytes), below);
    let refusal = '';
    let ours = false;
    const took = cpuTime(() => {
      ours = attempt(() => {
        try {
          readFile(file);
        } catch (error) {
          refusal = (error as Error).message;
          throw error;
        }
      });
    });
    slowest = Math.max(slowest, took);
    const theirs = naive(file);
    if (ours) accepted++;
    if (ours !== theirs) {
      throw new Error(
        `we ${ours ? 'accept' : `refuse (${refusal})`}, the naive reader ${theirs ? 'accepts' : 'refuses'}: ${file.toString('latin1')}`,
      );
    }
  }
  console.log(`safetensors fuzz: ${INPUTS} inputs, ${accepted} accepted, slowest ${slowest.toFixed(1)} ms`);
  expect(accepted).toBeGreaterThan(INPUTS / 100);
  expect(INPUTS - accepted).toBeGreaterThan(INPUTS / 2);
  expect(slowest).toBeLessThan(SLOWEST_MS);
});

test('config.json: only MlaError, in bounded time', () => {
  const below = random(7);
  const seeds = [TINY, ...Object.values(REAL)].map((json) => JSON.stringify(json));
  const odd = [
    'null',
    '-1',
    '0',
    '1e400',
    '"x"',
    '[]',
    '{}',
    'true',
    '1.5',
    '9007199254740993',
    '[1,"a"]',
    '4096',
    '1e9',
  ];
  let accepted = 0;
  let slowest = 0;
  for (let i = 0; i < INPUTS; i++) {
    const text = seeds[below(seeds.length)] as string;
    let input: string | Buffer;
    if (below(2) === 0) {
      const members = [...text.matchAll(/":(-?[\d.e+-]+|"[^"]*"|true|false|null)/g)];
      const hit = members[below(members.length)] as RegExpMatchArray;
      const at = (hit.index as number) + 2;
      input = text.slice(0, at) + odd[below(odd.length)] + text.slice(at + (hit[1] as string).length);
    } else {
      input = mutate(Buffer.from(text), below);
    }
    const hasBias = below(2) === 0;
    const took = cpuTime(() => {
      if (attempt(() => resolveRouting(parseConfig(input), hasBias))) accepted++;
    });
    slowest = Math.max(slowest, took);
  }
  console.log(`config fuzz: ${INPUTS} inputs, ${accepted} accepted, slowest ${slowest.toFixed(1)} ms`);
  expect(accepted).toBeGreaterThan(INPUTS / 100);
  expect(slowest).toBeLessThan(SLOWEST_MS);
});

test('JSON: what we accept, JSON.parse accepts with the same value; what it accepts and we refuse has a reason', () => {
  const below = random(99);
  const seed =
    '{"a":[1,-2.5e3,0,true,false,null],"b":{"c":"x\\u00e9\\ud83d\\ude00\\n","d":{}},"e":"\u00fc","f":[[],[{}]]}';
  let both = 0;
  for (let i = 0; i < INPUTS; i++) {
    const input = mutate(Buffer.from(seed), below);
    let ours: unknown;
    let refusal = '';
    try {
      ours = parseJson(input, { code: 'ERR_CONFIG', source: 's', maxBytes: 1 << 20 });
    } catch (error) {
      if (!(error instanceof MlaError)) throw error;
      refusal = error.message;
    }
    let theirs: unknown;
    let accepts = true;
    try {
      theirs = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(input));
    } catch {
      accepts = false;
    }
    if (refusal === '') {
      expect(accepts).toBe(true);
      expect(JSON.stringify(ours)).toBe(JSON.stringify(theirs));
      both++;
    } else if (accepts) {
      expect(refusal).toMatch(/twice|too large|surrogate/);
    }
  }
  expect(both).toBeGreaterThan(INPUTS / 100);
});
