// What users get wrong most often, through the public functions and in one process: each is one sentence with a code that
// names the thing, nothing is left behind, and the next text is right.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type LoadOptions, loadModel } from '../../lib/engine';
import { type ErrorCode, MlaError } from '../../lib/errors';

const GOLDEN = join(__dirname, '..', 'golden', 'v3');
const { tokens, greedy } = JSON.parse(readFileSync(join(GOLDEN, 'golden.json'), 'utf8')).prompts[1];
const OPTIONS: LoadOptions = { device: 'cpu', threads: 2, context: 64, maxSequences: 2 };
const SHARD = 'model-00002-of-00002.safetensors';
const ROUNDS = 5;

type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'mla-bad-input-'));
  cpSync(GOLDEN, folder, { recursive: true });
});
afterEach(() => rmSync(folder, { recursive: true }));

const rewriteJson = (name: string, change: (json: Record<string, unknown>) => void) => {
  const json = JSON.parse(readFileSync(join(folder, name), 'utf8'));
  change(json);
  writeFileSync(join(folder, name), JSON.stringify(json));
};

/** Replaces the header of the last shard; the data stay. */
function rewriteHeader(change: (header: string) => string): void {
  const file = readFileSync(join(folder, SHARD));
  const end = 8 + Number(file.readBigUInt64LE(0));
  const header = Buffer.from(change(file.toString('utf8', 8, end).trimEnd()));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(join(folder, SHARD), Buffer.concat([length, header, file.subarray(end)]));
}

/** Changes one tensor of the last shard; gives its name. */
function changeTensor(change: (tensor: Header[string]) => void): void {
  rewriteHeader((text) => {
    const header = JSON.parse(text) as Header;
    change(header['model.norm.weight'] as Header[string]);
    return JSON.stringify(header);
  });
}

const generate = async (prompt: number[], options: object = {}) => {
  const model = await loadModel(folder, OPTIONS);
  try {
    return (await model.generate(prompt, { maxTokens: 4, temperature: 0, ignoreEos: true, ...options }).result).tokens;
  } finally {
    await model.dispose();
  }
};
const load = async (options: LoadOptions = {}) => (await loadModel(folder, { ...OPTIONS, ...options })).dispose();

const CASES: [what: string, code: ErrorCode, names: RegExp, spoil: () => void, run?: () => Promise<unknown>][] = [
  [
    'a prompt longer than the context',
    'ERR_CONTEXT_LENGTH',
    /65 tokens.*\b64\b/,
    () => {},
    () => generate(new Array(65).fill(1)),
  ],
  [
    'a truncated shard',
    'ERR_SAFETENSORS',
    /model-00002-of-00002\.safetensors/,
    () => truncateSync(join(folder, SHARD), 5000),
  ],
  [
    'overlapping offsets',
    'ERR_SAFETENSORS',
    /overlap.*"/,
    () =>
      changeTensor((tensor) => {
        const [begin, end] = tensor.data_offsets;
        tensor.data_offsets = begin === 0 ? [4, end + 4] : [begin - 4, end - 4];
      }),
  ],
  [
    'a duplicate key',
    'ERR_SAFETENSORS',
    /duplicate-key.*"model\.norm\.weight"/,
    () => rewriteHeader((text) => text.replace(/"model\.norm\.weight":\{[^}]*\}/, (entry) => `${entry},${entry}`)),
  ],
  [
    'a missing tensor',
    'ERR_CHECKPOINT',
    /model\.norm\.weight/,
    () => {
      rewriteHeader((text) => text.replace('"model.norm.weight"', '"model.nrom.weight"'));
      rewriteJson('model.safetensors.index.json', (index) => {
        const map = index.weight_map as Record<string, string>;
        delete map['model.norm.weight'];
        map['model.nrom.weight'] = SHARD;
      });
    },
  ],
  [
    'a wrong shape',
    'ERR_CHECKPOINT',
    /model\.norm\.weight.*\[2, /,
    () => changeTensor((tensor) => tensor.shape.splice(0, 1, 2, (tensor.shape[0] as number) / 2)),
  ],
  [
    'an unknown architecture',
    'ERR_UNSUPPORTED_MODEL',
    /llama/,
    () => rewriteJson('config.json', (config) => Object.assign(config, { model_type: 'llama' })),
  ],
  [
    'temperature NaN',
    'ERR_INVALID_ARG',
    /temperature.*NaN/,
    () => {},
    () => generate([1], { temperature: Number.NaN }),
  ],
  [
    'a cache that no memory holds',
    'ERR_OUT_OF_MEMORY',
    /GiB|GB|bytes/,
    () => {},
    () => load({ pages: 2 ** 24, context: 5120 }),
  ],
];

const held = () => ({
  descriptors: readdirSync('/proc/self/fd').length,
  threads: readdirSync('/proc/self/task').length,
});

test.each(CASES)('%s', async (what, code, names, spoil, run = load) => {
  await generate(tokens); // what Node opens once, it has opened now
  const before = held();
  spoil();
  let error: unknown;
  for (let round = 0; round < ROUNDS; round++) {
    error = await run().then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(MlaError);
    const { message } = error as MlaError;
    expect({ code: (error as MlaError).code, message }).toEqual({ code, message: expect.stringMatching(names) });
    expect(message).toMatch(/^[^\n]+\.$/);
  }
  expect(held()).toEqual(before);
  cpSync(GOLDEN, folder, { recursive: true });
  expect(await generate(tokens)).toEqual(greedy.slice(0, 4));
  console.log(`${what}: ${(error as MlaError).message.replace(folder, '.')} (${code})`);
});
