// cache/snapshot-file.ts - a text and its rows of the cache as a file. Such files come from anywhere: everything in them
// is checked against what is expected, and nothing of them is used before all of it has been.
//
//   "NODEMLA\0"  version u32  bytes of header u32  header (JSON)  token ids i32[]  pages  sha256 of all before
//
// Numbers are little-endian. A page is [layers, 64] rows of the cache (cache-row.ts).
import { createHash, type Hash } from 'node:crypto';
import { MlaError } from '../errors';
import { closeQuietly, fstat, open, read } from '../files';
import { type CacheDtype, type CacheRow, cacheRowBytes, validRows } from './cache-row';
import { PAGE_TOKENS, pagesFor } from './page-pool';
import { fileErrors, replaceFile } from './replace-file';

const MAGIC = Buffer.from('NODEMLA\0', 'latin1');
const VERSION = 1;
const PREAMBLE_BYTES = MAGIC.length + 8;
const MAX_HEADER_BYTES = 4096;
const DIGEST_BYTES = 32;

/** What must be the same for rows to mean the same. */
export interface SnapshotLayout extends Readonly<CacheRow> {
  /** of the model: weights, configuration, precision */
  readonly fingerprint: string;
  readonly dtype: CacheDtype;
  readonly layers: number;
}

/** Limits of the model that reads. */
export interface SnapshotLimits {
  readonly context: number;
  readonly vocab: number;
}

const pageBytes = (layout: SnapshotLayout) => layout.layers * PAGE_TOKENS * cacheRowBytes(layout.dtype, layout);

/** The text of a snapshot. */
export interface SnapshotText {
  readonly tokens: readonly number[];
  /** how many of the tokens have rows */
  readonly rows: number;
}

/**
 * Writes a snapshot. The file appears under its name when it is complete and on disk; until then, and after a failure,
 * what had the name before is untouched.
 * @param pages the pages that hold `rows` rows, in order, [layers, 64] rows each
 * @throws ERR_FILE, or what `pages` throws
 */
export async function writeSnapshot(
  path: string,
  layout: SnapshotLayout,
  { tokens, rows }: SnapshotText,
  pages: AsyncIterable<Uint8Array>,
): Promise<void> {
  const header = Buffer.from(
    JSON.stringify({ ...layout, pageTokens: PAGE_TOKENS, tokens: tokens.length, rows }),
    'utf8',
  );
  const preamble = Buffer.alloc(PREAMBLE_BYTES);
  MAGIC.copy(preamble);
  preamble.writeUInt32LE(VERSION, MAGIC.length);
  preamble.writeUInt32LE(header.length, MAGIC.length + 4);
  const ids = Buffer.alloc(tokens.length * 4);
  tokens.forEach((id, i) => {
    ids.writeInt32LE(id, i * 4);
  });

  const hash = createHash('sha256');
  await replaceFile(path, async (write) => {
    const hashed = (bytes: Uint8Array) => {
      hash.update(bytes);
      return write(bytes);
    };
    for (const part of [preamble, header, ids]) await hashed(part);
    for await (const page of pages) await hashed(page);
    await write(hash.digest());
  });
}

/**
 * Reads a snapshot, page by page.
 * @param begin told the text when it is known to fit; what it returns takes the pages, in order
 * @throws ERR_SNAPSHOT for a file that is not what is expected, ERR_FILE, or what `begin` and its result throw. Pages
 *   that were given out before mean nothing then
 */
export async function readSnapshot(
  path: string,
  layout: SnapshotLayout,
  limits: SnapshotLimits,
  begin: (text: SnapshotText) => (page: Uint8Array, index: number) => void | Promise<void>,
): Promise<SnapshotText> {
  const fd = await fileErrors(path, () => open(path, 'r'));
  try {
    const stat = await fileErrors(path, () => fstat(fd));
    if (!stat.isFile()) throw broken(path, 'it is not a file');
    const reader = new Reader(path, fd, stat.size);
    const preamble = await reader.take(PREAMBLE_BYTES, 'the preamble');
    if (!preamble.subarray(0, MAGIC.length).equals(MAGIC)) throw broken(path, 'it does not begin as one');
    const version = preamble.readUInt32LE(MAGIC.length);
    if (version !== VERSION) throw broken(path, `it has format ${version}; expected ${VERSION}`);
    const headerBytes = preamble.readUInt32LE(MAGIC.length + 4);
    if (headerBytes > MAX_HEADER_BYTES) throw broken(path, `its header has ${headerBytes} bytes`);
    const header = parseHeader(path, await reader.take(headerBytes, 'the header'), layout, limits);
    const count = pagesFor(header.rows);
    const size = PREAMBLE_BYTES + headerBytes + header.tokens * 4 + count * pageBytes(layout) + DIGEST_BYTES;
    if (stat.size !== size) throw broken(path, `it has ${stat.size} bytes; its header makes it ${size}`);
    const ids = await reader.take(header.tokens * 4, 'the tokens');
    const tokens = Array.from({ length: header.tokens }, (_, i) => ids.readInt32LE(i * 4));
    for (const id of tokens) {
      if (id < 0 || id >= limits.vocab) throw broken(path, `it has token ${id}; expected 0 to ${limits.vocab - 1}`);
    }
    const text = { tokens, rows: header.rows };
    const takePage = begin(text);
    for (let i = 0; i < count; i++) {
      const page = await reader.take(pageBytes(layout), `page ${i}`);
      if (!validRows(page, layout.dtype, layout)) {
        throw broken(path, `page ${i} has values that are not finite, or scales that no row has`);
      }
      await takePage(page, i);
    }
    const digest = reader.digest();
    if (!(await reader.take(DIGEST_BYTES, 'the checksum')).equals(digest)) {
      throw broken(path, 'its checksum is wrong: it is damaged');
    }
    return text;
  } finally {
    await closeQuietly(fd);
  }
}

/** Reads a file from its beginning and adds up what it reads. */
class Reader {
  private at = 0;
  private readonly hash: Hash = createHash('sha256');

  constructor(
    private readonly path: string,
    private readonly fd: number,
    private readonly size: number,
  ) {}

  async take(bytes: number, what: string): Promise<Buffer> {
    const short = () => broken(this.path, `it ends within ${what}`);
    if (this.at + bytes > this.size) throw short();
    const buffer = Buffer.alloc(bytes);
    for (let done = 0; done < bytes; ) {
      const { bytesRead } = await fileErrors(this.path, () =>
        read(this.fd, buffer, done, bytes - done, this.at + done),
      );
      if (bytesRead === 0) throw short();
      done += bytesRead;
    }
    this.at += bytes;
    this.hash.update(buffer);
    return buffer;
  }

  /** Of everything so far. */
  digest(): Buffer {
    return this.hash.copy().digest();
  }
}

function parseHeader(
  path: string,
  bytes: Buffer,
  layout: SnapshotLayout,
  limits: SnapshotLimits,
): { tokens: number; rows: number } {
  let header: Record<string, unknown>;
  try {
    header = JSON.parse(bytes.toString('utf8'));
  } catch {
    throw broken(path, 'its header is not JSON');
  }
  if (typeof header !== 'object' || header === null) throw broken(path, 'its header is no object');
  for (const [name, expected] of Object.entries({ ...layout, pageTokens: PAGE_TOKENS })) {
    if (header[name] !== expected) {
      const what = name === 'fingerprint' ? 'it was made by another model' : `its ${name} is not ${expected}`;
      throw broken(path, what);
    }
  }
  const { tokens, rows } = header;
  const within = (value: unknown, most: number): value is number =>
    Number.isInteger(value) && (value as number) >= 0 && (value as number) <= most;
  if (!within(tokens, 2 ** 31)) throw broken(path, 'its number of tokens is none');
  if (!within(rows, tokens)) throw broken(path, 'its number of rows is none, or above that of its tokens');
  if (tokens > limits.context) {
    throw new MlaError(
      'ERR_CONTEXT_LENGTH',
      `${path} has ${tokens} tokens; the context has ${limits.context}. Load the model with a larger context.`,
    );
  }
  return { tokens, rows };
}

function broken(path: string, why: string): MlaError {
  return new MlaError('ERR_SNAPSHOT', `${path} is no saved sequence of this model: ${why}.`);
}
