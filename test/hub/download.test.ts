// Downloads from a Hub on this machine: what lies in the cache afterwards, and that interruptions cost little.
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openCheckpoint } from '../../lib/checkpoint';
import { type DownloadProgress, downloadModel, findModelFolder, HubClient } from '../../lib/hub';
import { COMMIT, etagOf, FakeHub } from './server';

const GOLDEN = join(__dirname, '..', 'golden', 'v2-lite');
const repository = { id: 'org/name', revision: 'main' };
const files = new Map<string, Buffer>(
  readdirSync(GOLDEN)
    .filter((name) => name !== 'golden.json')
    .map((name) => [name, readFileSync(join(GOLDEN, name))]),
);
const unwanted = {
  'pytorch_model.bin': 'pickle',
  'README.md': '# x',
  'modeling_x.py': 'import os',
  'other.safetensors': '',
};
for (const [name, text] of Object.entries(unwanted)) files.set(name, Buffer.from(text));
const wanted = [...files.keys()].filter((name) => !(name in unwanted));
const shards = wanted.filter((name) => name.endsWith('.safetensors'));
const shard = shards[0] as string;
const bytesOf = (names: readonly string[]) => names.reduce((sum, name) => sum + (files.get(name) as Buffer).length, 0);

let hub: FakeHub;
let home = '';
let endpoint = '';
const folder = () => join(home, 'hub', 'models--org--name');
const blobs = () => readdirSync(join(folder(), 'blobs')).sort();
const asks = (name: string) =>
  hub.asked.filter((ask) => ask.method === 'GET' && ask.path.endsWith(`/${name}`) && ask.cdn);

beforeEach(async () => {
  hub = new FakeHub(files, 'secret');
  endpoint = await hub.start();
  home = mkdtempSync(join(tmpdir(), 'node-mla-hub-'));
  process.env.HF_HOME = home;
  process.env.HF_TOKEN = 'secret';
});

afterEach(async () => {
  await hub.stop();
  rmSync(home, { recursive: true, force: true });
  delete process.env.HF_HOME;
  delete process.env.HF_TOKEN;
});

const download = (options: Parameters<typeof downloadModel>[2] & { patienceMs?: number } = {}) =>
  downloadModel(
    new HubClient({ endpoint, signal: options.signal, patienceMs: options.patienceMs }),
    repository,
    options,
  );

test('the cache is laid out as other tools expect it, and loading finds it by name', async () => {
  const seen: DownloadProgress[] = [];
  const got = await download({ onProgress: (progress) => seen.push(progress) });
  expect(got).toEqual({
    folder: join(folder(), 'snapshots', COMMIT),
    commit: COMMIT,
    files: wanted.length,
    bytes: bytesOf(wanted),
    fetchedBytes: bytesOf(wanted),
  });
  expect(readFileSync(join(folder(), 'refs', 'main'), 'utf8')).toBe(COMMIT);
  expect(readdirSync(got.folder).sort()).toEqual([...wanted].sort());
  for (const name of wanted) {
    const content = files.get(name) as Buffer;
    expect(readlinkSync(join(got.folder, name))).toBe(`../../blobs/${etagOf(name, content)}`);
    expect(readFileSync(join(got.folder, name)).equals(content)).toBe(true);
  }
  expect(blobs()).toEqual([...new Set(wanted.map((name) => etagOf(name, files.get(name) as Buffer)))].sort());
  const last = {
    doneBytes: bytesOf(wanted),
    totalBytes: bytesOf(wanted),
    doneFiles: wanted.length,
    totalFiles: wanted.length,
  };
  expect(seen.at(-1)).toEqual(last);
  expect(await findModelFolder('org/name')).toBe(got.folder);
  expect(await findModelFolder(`org/name@${COMMIT}`)).toBe(got.folder);
  await (await openCheckpoint(got.folder)).close();
});

test('the token goes to the Hub and nowhere else', async () => {
  await download();
  for (const { cdn, authorization } of hub.asked) expect(authorization).toBe(cdn ? undefined : 'Bearer secret');
  expect(hub.asked.some(({ cdn }) => cdn)).toBe(true);
});

test('a second download fetches nothing', async () => {
  await download();
  const before = hub.asked.length;
  expect(await download()).toMatchObject({ bytes: bytesOf(wanted), fetchedBytes: 0 });
  expect(hub.asked.slice(before).filter(({ method, path }) => method === 'GET' && path.includes('/resolve/'))).toEqual(
    [],
  );
});

test('a connection that breaks is taken up where it broke', async () => {
  const half = Math.floor((files.get(shard) as Buffer).length / 2);
  hub.mischief = { cutAfter: (name, start) => (name === shard && start === 0 ? half : null) };
  const got = await download();
  expect(got.fetchedBytes).toBe(bytesOf(wanted));
  const ranges = asks(shard).map(({ range }) => range);
  expect(ranges[0]).toBe('bytes=0-');
  expect(ranges).toHaveLength(2);
  expect(Number(/^bytes=(\d+)-$/.exec(ranges[1] as string)?.[1])).toBeGreaterThan(0);
});

test('an aborted download leaves what it has, is not found by name, and goes on the next time', async () => {
  const abort = new AbortController();
  const size = (files.get(shard) as Buffer).length;
  hub.mischief = { cutAfter: (name) => (name === shard ? size >> 1 : null) };
  const onProgress = ({ doneBytes }: DownloadProgress) => {
    if (doneBytes > bytesOf(wanted) - bytesOf(shards) + (size >> 3)) abort.abort(new Error('enough'));
  };
  await expect(download({ signal: abort.signal, onProgress })).rejects.toThrow('enough');
  await expect(findModelFolder('org/name')).rejects.toThrow(/"mla download org\/name" brings it there/);
  expect(blobs().filter((name) => name.endsWith('.lock'))).toEqual([]);
  hub.mischief = {};
  const got = await download();
  expect(got.fetchedBytes).toBeLessThan(bytesOf(wanted));
  expect(await findModelFolder('org/name')).toBe(got.folder);
});

test('a server without ranges sends everything again, and the result is right', async () => {
  hub.mischief = { noRanges: true, cutAfter: (name) => (name === shard && asks(shard).length === 1 ? 1000 : null) };
  await download();
  expect(asks(shard)).toHaveLength(2);
});

test('content that does not match its hash is thrown away and named', async () => {
  hub.mischief = {
    replace: (name, content) => (name === shard ? Buffer.concat([content.subarray(1), Buffer.from([0])]) : content),
  };
  await expect(download()).rejects.toMatchObject({
    code: 'ERR_HUB',
    message: expect.stringMatching(/does not match its hash/),
  });
  hub.mischief = {};
  await download();
});

test('a begun file that was damaged is noticed', async () => {
  await download();
  const etag = etagOf(shard, files.get(shard) as Buffer);
  rmSync(join(folder(), 'blobs', etag));
  writeFileSync(join(folder(), 'blobs', `${etag}.incomplete`), Buffer.alloc(500, 7));
  await expect(download()).rejects.toThrow(/does not match its hash/);
  expect((await download()).fetchedBytes).toBe((files.get(shard) as Buffer).length);
});

test('what passes is tried again; what does not is said at once', async () => {
  let failures = 2;
  hub.mischief = { status: (name) => (name === 'config.json' && failures-- > 0 ? 503 : null) };
  await download();
  const refused = async (status: number, message: RegExp) => {
    hub.mischief = { status: () => status };
    const before = hub.asked.length;
    await expect(download()).rejects.toMatchObject({ code: 'ERR_HUB', message: expect.stringMatching(message) });
    expect(hub.asked.length).toBe(before + 1);
  };
  await refused(401, /answered 401: it does not exist, or needs a token/);
  await refused(403, /answered 403: access is refused/);
  await refused(404, /answered 404: there is no such model/);
});

test('silence is given up after a while', async () => {
  hub.mischief = { silent: true };
  const client = new HubClient({ endpoint, patienceMs: 100 });
  const body = await client.open(repository, 'config.json', 0);
  const reading = (async () => {
    for await (const _ of body?.chunks ?? []) throw new Error('a byte came');
  })();
  await expect(reading).rejects.toThrow(/no byte came for 0.1 s/);
});

test('another download of the same file is not disturbed', async () => {
  const etag = etagOf(shard, files.get(shard) as Buffer);
  await download();
  rmSync(join(folder(), 'blobs', etag));
  const lock = join(folder(), 'blobs', `${etag}.incomplete.lock`);
  writeFileSync(lock, String(process.ppid));
  await expect(download()).rejects.toMatchObject({
    code: 'ERR_FILE',
    message: expect.stringMatching(/is downloading this file/),
  });
  writeFileSync(lock, '999999999');
  await download();
});

test.each(['org', 'a/b/c', '../x', 'org/..', 'org/na--me', '/org/name', 'org/name@', 'org/name@../x', 'org/.hidden'])(
  '%s is no name of a model and is left to the file system',
  async (text) => expect(await findModelFolder(text)).toBe(text),
);

test('a list that names paths is refused', async () => {
  const index = JSON.stringify({ weight_map: { a: '../../../evil.safetensors' } });
  const evil = new FakeHub(
    new Map([
      ['config.json', Buffer.from('{}')],
      ['model.safetensors.index.json', Buffer.from(index)],
      ['../../../evil.safetensors', Buffer.from('x')],
    ]),
  );
  const at = await evil.start();
  try {
    await expect(downloadModel(new HubClient({ endpoint: at }), repository)).rejects.toThrow(
      /not the plain name of a file/,
    );
  } finally {
    await evil.stop();
  }
});

test('HF_HUB_OFFLINE and a wrong HF_ENDPOINT are said', () => {
  process.env.HF_HUB_OFFLINE = '1';
  try {
    expect(() => new HubClient()).toThrow(/HF_HUB_OFFLINE is set/);
  } finally {
    delete process.env.HF_HUB_OFFLINE;
  }
  expect(() => new HubClient({ endpoint: 'ftp://x' })).toThrow(/HF_ENDPOINT: expected a URL/);
});
