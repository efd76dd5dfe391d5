// Random damage to saved sequences, from a seed: refused with a code in bounded time, or accepted where a second, naive
// reader accepts it too. A damaged file with a right checksum is one that somebody made. MLA_FUZZ_INPUTS sets how many.
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readSnapshot, type SnapshotLayout, writeSnapshot } from '../../lib/cache';
import { Conversation } from '../../lib/cli/conversation';
import { MlaError } from '../../lib/errors';
import { mutate, random, renumber } from '../checkpoint/damage';

const INPUTS = Number(process.env.MLA_FUZZ_INPUTS ?? 2000);
/** No single input may take more processor time. */
const SLOWEST_MS = 1000;
const MOST_BYTES = 512 * 2 ** 20;

const dir = mkdtempSync(join(tmpdir(), 'mla-snapshot-fuzz-'));
afterAll(() => rmSync(dir, { recursive: true }));

const LAYOUT: SnapshotLayout = { fingerprint: 'f', dtype: 'f32', layers: 1, c: 1, r: 1 };
const LIMITS = { context: 100, vocab: 50 };
const PAGE_BYTES = 64 * 2 * 4;

/** The rules written a second time: the code of the refusal, or null. */
function naive(file: Buffer): string | null {
  const bad = 'ERR_SNAPSHOT';
  if (file.length < 16 || file.toString('latin1', 0, 8) !== 'NODEMLA\0' || file.readUInt32LE(8) !== 1) return bad;
  const headerBytes = file.readUInt32LE(12);
  if (headerBytes > 4096 || file.length < 16 + headerBytes) return bad;
  let header: Record<string, unknown> | null;
  try {
    header = JSON.parse(file.toString('utf8', 16, 16 + headerBytes));
  } catch {
    return bad;
  }
  for (const [name, value] of Object.entries({ ...LAYOUT, pageTokens: 64 })) if (header?.[name] !== value) return bad;
  const { tokens, rows } = header as { tokens: number; rows: number };
  if (![tokens, rows].every((n) => Number.isInteger(n) && n >= 0) || tokens > 2 ** 31 || rows > tokens) return bad;
  if (tokens > LIMITS.context) return 'ERR_CONTEXT_LENGTH';
  const body = file.subarray(16 + headerBytes, -32);
  if (file.length < 48 + headerBytes || body.length !== 4 * tokens + Math.ceil(rows / 64) * PAGE_BYTES) return bad;
  for (let i = 0; i < tokens; i++) if (body.readUInt32LE(4 * i) >= LIMITS.vocab) return bad;
  for (let at = 4 * tokens; at < body.length; at += 4) if (!Number.isFinite(body.readFloatLE(at))) return bad;
  return createHash('sha256').update(file.subarray(0, -32)).digest().equals(file.subarray(-32)) ? null : bad;
}

/** With a right length of the header, and a right checksum. */
function forged(header: Buffer, body: Buffer, preamble: Buffer): Buffer {
  const first = Buffer.from(preamble);
  first.writeUInt32LE(header.length, 12);
  const content = Buffer.concat([first, header, body]);
  return Buffer.concat([content, createHash('sha256').update(content).digest()]);
}

interface Figures {
  inputs: number;
  accepted: number;
  slowestMs: number;
  grownMiB: number;
}

/** Inputs under way at once: most of the time goes into waiting for the file system. */
const LANES = 16;

/** Tries `inputs` of them; `attempt` gives whether one was accepted. */
async function fuzz(
  inputs: number,
  next: () => Buffer,
  attempt: (path: string, input: Buffer) => Promise<boolean>,
): Promise<Figures> {
  const before = process.memoryUsage().rss;
  let begun = 0;
  let accepted = 0;
  let slowest = 0;
  const lane = async (_: unknown, number: number) => {
    const path = join(dir, `input ${number}`);
    while (begun++ < inputs) {
      const input = next();
      writeFileSync(path, input);
      // With what the other lanes do meanwhile: no input takes longer than that.
      const usage = process.cpuUsage();
      if (await attempt(path, input)) accepted++;
      const { user, system } = process.cpuUsage(usage);
      slowest = Math.max(slowest, (user + system) / 1000);
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  const grown = process.memoryUsage().rss - before;
  expect(slowest).toBeLessThan(SLOWEST_MS);
  expect(grown).toBeLessThan(MOST_BYTES);
  return { inputs, accepted, slowestMs: Math.round(slowest), grownMiB: Math.round(grown / 2 ** 20) };
}

test('saved sequences: the verdict of a second reader', async () => {
  const below = random(20261126);
  const seeds: Buffer[] = [];
  for (const [tokens, rows] of [
    [3, 0],
    [5, 4],
    [70, 65],
  ] as const) {
    const path = join(dir, 'seed');
    async function* pages() {
      for (let i = 0; i < Math.ceil(rows / 64); i++) yield new Uint8Array(new Float32Array(128).fill(i + 1).buffer);
    }
    const ids = Array.from({ length: tokens }, (_, i) => (i * 7) % 50);
    await writeSnapshot(path, LAYOUT, { tokens: ids, rows }, pages());
    seeds.push(readFileSync(path));
  }
  const next = (): Buffer => {
    const file = seeds[below(seeds.length)] as Buffer;
    const end = 16 + file.readUInt32LE(12);
    const [preamble, header, body] = [file.subarray(0, 16), file.subarray(16, end), file.subarray(end, -32)];
    const kind = below(4);
    if (kind === 0) return mutate(file, below);
    if (kind === 1) return forged(mutate(header, below), body, preamble);
    if (kind === 2) return forged(Buffer.from(renumber(header.toString(), below)), body, preamble);
    return forged(header, mutate(body, below), preamble);
  };
  const codes: Record<string, number> = {};
  const figures = await fuzz(INPUTS, next, async (path, input) => {
    let code: string | null = null;
    try {
      await readSnapshot(path, LAYOUT, LIMITS, () => () => {});
    } catch (error) {
      if (!(error instanceof MlaError)) throw error;
      code = error.code;
    }
    codes[String(code)] = (codes[String(code)] ?? 0) + 1;
    if (code !== naive(input)) {
      throw new Error(`we say ${code}, the naive reader ${naive(input)}: ${input.toString('latin1')}`);
    }
    return code === null;
  });
  console.log(`saved sequences: ${JSON.stringify(figures)}, ${JSON.stringify(codes)}`);
  expect(figures.accepted).toBeGreaterThan(INPUTS / 100);
  expect(codes.ERR_SNAPSHOT).toBeGreaterThan(INPUTS / 2);
});

test('conversations: read, or refused with ERR_FILE and as they were', async () => {
  const below = random(36);
  const messages = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'é\n"x"' },
    { role: 'assistant', content: 'y' },
  ];
  const good = Buffer.from(JSON.stringify({ messages }));
  const inputs = INPUTS / 4;
  const figures = await fuzz(
    inputs,
    () => mutate(good, below),
    async (path) => {
      const conversation = new Conversation('as it was');
      try {
        await conversation.load(path);
      } catch (error) {
        if (!(error instanceof MlaError) || error.code !== 'ERR_FILE') throw error;
        expect(conversation.messages).toEqual([{ role: 'system', content: 'as it was' }]);
        return false;
      }
      for (const { role } of conversation.messages) expect(['system', 'user', 'assistant', 'tool']).toContain(role);
      return true;
    },
  );
  console.log(`conversations: ${JSON.stringify(figures)}`);
  expect(figures.accepted).toBeGreaterThan(inputs / 100);
});
