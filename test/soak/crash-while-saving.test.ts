// A process that is killed while it saves, at every call that it makes of the file system: before it, half-way through a
// write, after it. What is there afterwards is the old file or the new one, whole.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PAGE_TOKENS, readSnapshot, type SnapshotLayout, writeSnapshot } from '../../lib/cache';
import { Conversation } from '../../lib/cli/conversation';
import { ROOT } from '../native/child';

const dir = mkdtempSync(join(tmpdir(), 'mla-crash-'));
afterAll(() => rmSync(dir, { recursive: true }));

const LAYOUT: SnapshotLayout = { fingerprint: 'abc', dtype: 'f32', c: 2, r: 1, layers: 2 };
const LIMITS = { context: 1000, vocab: 500 };
const PAGES = 3;
const PAGE_BYTES = 2 * PAGE_TOKENS * 3 * 4;

/** Saves `round` to argv's path, counting calls; at call number `at` the process kills itself. */
const CHILD = `
const fs = require('node:fs');
const { promisify } = require('node:util');
const { what, path, round, at, when } = JSON.parse(process.argv[1]);
let calls = 0;
const die = () => process.kill(process.pid, 'SIGKILL');
async function call(real, half) {
  const mine = calls++ === at;
  if (mine && when === 'before') die();
  if (mine && when === 'half' && half) { await half(); die(); }
  const result = await real();
  if (mine) die();
  return result;
}
// What lib/files makes promises of when it is loaded, below.
function count(name, ofCall) {
  const real = fs[name];
  const asked = promisify(real);
  fs[name] = Object.assign((...args) => real(...args), { [promisify.custom]: (...args) => ofCall(asked, args) });
}
for (const name of ['open', 'fsync', 'close', 'rename']) count(name, (real, args) => call(() => real(...args)));
count('write', (real, [fd, bytes, offset = 0, length = bytes.length - offset]) =>
  call(() => real(fd, bytes, offset, length), () => real(fd, bytes, offset, length >> 1)));
const tokens = Array.from({ length: 150 }, (_, i) => (i + round) % 500);
async function* pages() {
  for (let i = 0; i < ${PAGES}; i++) yield new Uint8Array(new Float32Array(${PAGE_BYTES / 4}).fill(i + round).buffer);
}
const SAVE = {
  sequence: () =>
    require(${JSON.stringify(join(ROOT, 'dist', 'cache'))}).writeSnapshot(path, ${JSON.stringify(LAYOUT)}, { tokens, rows: 150 }, pages()),
  conversation: () => {
    const { Conversation } = require(${JSON.stringify(join(ROOT, 'dist', 'cli', 'conversation'))});
    const said = new Conversation('system of ' + round);
    for (let i = 0; i < 50; i++) said.add({ role: 'user', content: round + ' said ' + i });
    return said.save(path);
  },
  // the control: how one should not do it
  'in place': async () => {
    const file = await promisify(fs.open)(path, 'w');
    for await (const page of pages()) await promisify(fs.write)(file, page);
    await promisify(fs.close)(file);
  },
};
SAVE[what]().then(() => process.stdout.write(String(calls)));
`;

type What = 'sequence' | 'conversation' | 'in place';

function save(what: What, path: string, round: number, at = -1, when = ''): number {
  const args = JSON.stringify({ what, path, round, at, when });
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['-e', CHILD, args], { encoding: 'utf8' });
  if (at < 0) expect({ status, signal, stderr }).toEqual({ status: 0, signal: null, stderr: '' });
  else expect({ signal, stderr }).toEqual({ signal: 'SIGKILL', stderr: '' });
  return Number(stdout);
}

/** Which round a file is of; throws when it is neither. */
const ROUND: Record<What, (path: string) => Promise<number>> = {
  sequence: async (path) => {
    const pages: number[] = [];
    const text = await readSnapshot(path, LAYOUT, LIMITS, () => (page) => {
      pages.push(Buffer.from(page).readFloatLE(0));
    });
    const round = text.tokens[0] as number;
    expect([text.tokens.length, text.rows, pages]).toEqual([150, 150, [round, round + 1, round + 2]]);
    return round;
  },
  conversation: async (path) => {
    const read = new Conversation(null);
    await read.load(path);
    expect(read.messages).toHaveLength(51);
    const [system, first, last] = [0, 1, 50].map((i) => Number(/\d+/.exec(String(read.messages[i]?.content))?.[0]));
    expect([first, last]).toEqual([system, system]);
    return system as number;
  },
  'in place': async (path) => {
    const floats = new Float32Array(readFileSync(path).slice().buffer);
    const round = floats[0] as number;
    expect(floats.length).toBe((PAGES * PAGE_BYTES) / 4);
    expect(floats[floats.length - 1]).toBe(round + PAGES - 1);
    return round;
  },
};

/** Kills a save at every call, each time over a file of round 1. */
async function crashes(
  what: What,
): Promise<{ calls: number; kills: number; old: number; new: number; broken: number }> {
  const path = join(dir, what);
  const calls = save(what, path, 1);
  const old = readFileSync(path);
  const seen = { calls, kills: 0, old: 0, new: 0, broken: 0 };
  for (let at = 0; at < calls; at++) {
    for (const when of ['before', 'half', 'after']) {
      writeFileSync(path, old);
      save(what, path, 2, at, when);
      seen.kills++;
      try {
        const round = await ROUND[what](path);
        if (round === 1) seen.old++;
        else if (round === 2) seen.new++;
        else seen.broken++;
      } catch {
        seen.broken++;
      }
    }
  }
  return seen;
}

test.each(['sequence', 'conversation'] as const)(
  '%s: the old file or the new one',
  async (what) => {
    const seen = await crashes(what);
    console.log(`${what}: killed at ${seen.calls} calls, ${seen.kills} times: ${JSON.stringify(seen)}`);
    expect(seen.calls).toBeGreaterThanOrEqual(5); // open, write, sync, close, rename
    expect(seen.broken).toBe(0);
    expect(seen.old + seen.new).toBe(seen.kills);
    expect(seen.new).toBe(2); // behind the rename, and half-way through it, which is the same
    // What a killed process leaves beside it is in nobody's way.
    expect(readdirSync(dir).filter((name) => name.startsWith(`${what}.`)).length).toBeGreaterThan(0);
    save(what, join(dir, what), 3);
    expect(await ROUND[what](join(dir, what))).toBe(3);
  },
  120_000,
);

test('control: a file that is written in place is found broken', async () => {
  const seen = await crashes('in place');
  console.log(`in place: ${JSON.stringify(seen)}`);
  expect(seen.broken).toBeGreaterThan(0);
}, 120_000);

test('the parent reads what the child writes', async () => {
  const path = join(dir, 'same');
  async function* pages() {
    for (let i = 0; i < PAGES; i++) yield new Uint8Array(new Float32Array(PAGE_BYTES / 4).fill(i + 1).buffer);
  }
  const tokens = Array.from({ length: 150 }, (_, i) => (i + 1) % 500);
  await writeSnapshot(path, LAYOUT, { tokens, rows: 150 }, pages());
  save('sequence', join(dir, 'other'), 1);
  expect(readFileSync(join(dir, 'other')).equals(readFileSync(path))).toBe(true);
  writeFileSync(path, '');
  await expect(ROUND.sequence(path)).rejects.toMatchObject({ code: 'ERR_SNAPSHOT' });
});
