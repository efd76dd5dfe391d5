// hub/download.ts - brings a model into the cache: only what runs it (text files and safetensors; pickled weights are
// never fetched), each file checked against its hash, begun files continued.
import { createHash, type Hash } from 'node:crypto';
import { dirname, join } from 'node:path';
import { MlaError } from '../errors';
import {
  closeQuietly,
  fsync,
  ftruncate,
  lstat,
  mkdir,
  open,
  read,
  readFile,
  readlink,
  rename,
  rm,
  statfs,
  symlink,
  writeAll,
  writeFile,
} from '../files';
import { COMMIT, repositoryFolder } from './cache';
import { type HubClient, type HubFile, Passing } from './client';
import type { Repository } from './repository';

/** How far a download has come. Bytes that were in the cache already count as done. */
export interface DownloadProgress {
  doneBytes: number;
  totalBytes: number;
  /** files that are complete, and in all */
  doneFiles: number;
  totalFiles: number;
}

export interface DownloadOptions {
  onProgress?: ((progress: DownloadProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface Downloaded {
  /** the snapshot: a checkpoint folder */
  folder: string;
  commit: string;
  files: number;
  /** of all files, and of those the part that came over the network now */
  bytes: number;
  fetchedBytes: number;
}

const INDEX = 'model.safetensors.index.json';
const SINGLE = 'model.safetensors';
/** What a model needs beside its weights. */
const SMALL =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|chat_template|vocab)\.json$|^(merges\.txt|tiktoken\.model|tokenizer\.model|chat_template\.jinja|LICENSE.{0,32})$/i;
const PLAIN = /^(?!\.)[^/\\\0]{1,255}$/;
const FILES_AT_ONCE = 4;
const READ_BYTES = 4 << 20;

/**
 * Downloads what the revision has and the cache lacks. Started again after an interruption, it goes on where it was.
 * Rejects with ERR_HUB, with ERR_FILE (no space, no permission, another download of the same file), or with the signal's
 * reason; what has come stays for the next time.
 */
export async function downloadModel(
  client: HubClient,
  repository: Repository,
  { onProgress, signal }: DownloadOptions = {},
): Promise<Downloaded> {
  const { commit, files: names } = await client.list(repository);
  const job = new Job(
    client,
    { id: repository.id, revision: commit },
    repositoryFolder(repository),
    onProgress,
    signal,
  );
  try {
    const small = names.filter((name) => SMALL.test(name) || name === INDEX);
    if (!small.includes('config.json')) throw notAModel(repository, 'config.json');
    await job.fetch(small);
    const weights = names.includes(INDEX) ? await job.shards() : [SINGLE];
    const missing = weights.find((name) => !names.includes(name));
    if (missing !== undefined) throw notAModel(repository, missing);
    await job.fetch(weights);
    // Last: until now "org/name" leads to what was complete before.
    if (!COMMIT.test(repository.revision)) await job.point(repository.revision);
  } catch (error) {
    throw job.explained(error);
  }
  return job.result();
}

function notAModel({ id, revision }: Repository, name: string): MlaError {
  return new MlaError('ERR_HUB', `${id}@${revision} has no ${name}, which a model in safetensors has.`);
}

/** One download. */
class Job {
  readonly #blobs: string;
  readonly #snapshot: string;
  readonly #progress: DownloadProgress = { doneBytes: 0, totalBytes: 0, doneFiles: 0, totalFiles: 0 };
  /** by etag: two files with the same content are one blob */
  readonly #brought = new Map<string, Promise<void>>();
  #fetchedBytes = 0;

  constructor(
    private readonly client: HubClient,
    private readonly repository: Repository,
    private readonly folder: string,
    private readonly onProgress: DownloadOptions['onProgress'],
    private readonly signal: AbortSignal | undefined,
  ) {
    this.#blobs = join(folder, 'blobs');
    this.#snapshot = join(folder, 'snapshots', repository.revision);
  }

  /** Brings these files; FILES_AT_ONCE of them at a time. */
  async fetch(names: readonly string[]): Promise<void> {
    const bad = names.find((name) => !PLAIN.test(name));
    if (bad !== undefined)
      throw new MlaError('ERR_HUB', `${this.repository.id}: "${bad}" is not the plain name of a file.`);
    await mkdir(this.#blobs, { recursive: true });
    await mkdir(this.#snapshot, { recursive: true });
    const files: HubFile[] = [];
    await this.#together(names, async (name) => {
      const file = await this.client.describe(this.repository, name);
      if (file === null) throw new MlaError('ERR_HUB', `${this.repository.id}: ${name} was listed and is not there.`);
      files.push(file);
    });
    this.#progress.totalFiles += files.length;
    for (const { size } of files) this.#progress.totalBytes += size;
    await this.#requireSpace(files);
    await this.#together(files, async (file) => {
      const known = this.#brought.get(file.etag);
      const bringing = known ?? this.#bring(file);
      this.#brought.set(file.etag, bringing);
      await bringing;
      if (known !== undefined) this.#report(file.size);
      await this.#link(file);
      this.#progress.doneFiles++;
      this.#report(0);
    });
  }

  /** The files that the index names. */
  async shards(): Promise<string[]> {
    try {
      const index = JSON.parse(await readFile(join(this.#snapshot, INDEX), 'utf8')) as {
        weight_map: Record<string, string>;
      };
      const names = [...new Set(Object.values(index.weight_map))];
      if (names.length > 0 && names.every((name) => /\.safetensors$/.test(name))) return names;
    } catch (error) {
      if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    }
    throw new MlaError('ERR_HUB', `${this.repository.id}: ${INDEX} names no safetensors files.`);
  }

  /** Notes the commit as what a branch or tag stands for. */
  async point(revision: string): Promise<void> {
    const ref = join(this.folder, 'refs', revision);
    await mkdir(dirname(ref), { recursive: true });
    await writeFile(`${ref}.next`, this.repository.revision);
    await rename(`${ref}.next`, ref);
  }

  result(): Downloaded {
    const { totalBytes, totalFiles } = this.#progress;
    return {
      folder: this.#snapshot,
      commit: this.repository.revision,
      files: totalFiles,
      bytes: totalBytes,
      fetchedBytes: this.#fetchedBytes,
    };
  }

  /** What the file system threw becomes ERR_FILE. */
  explained(error: unknown): unknown {
    const { code, syscall, path } = error as NodeJS.ErrnoException;
    if (error instanceof MlaError || syscall === undefined) return error;
    return new MlaError('ERR_FILE', `${path ?? this.folder}: cannot be written (${code}).`, { cause: error });
  }

  async #together<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
    const waiting = [...items];
    let failed = false;
    const worker = async () => {
      for (let item = waiting.shift(); item !== undefined && !failed; item = waiting.shift()) {
        this.signal?.throwIfAborted();
        await work(item).catch((error) => {
          failed = true;
          throw error;
        });
      }
    };
    // All of them: none may still write when this rejects.
    const ends = await Promise.allSettled(Array.from({ length: FILES_AT_ONCE }, worker));
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }

  async #requireSpace(files: readonly HubFile[]): Promise<void> {
    let needed = 0;
    for (const { etag, size } of files) {
      const have = (await sizeOf(join(this.#blobs, etag))) ?? (await sizeOf(incomplete(this.#blobs, etag))) ?? 0;
      needed += Math.max(0, size - have);
    }
    const { bavail, bsize } = await statfs(this.#blobs);
    if (needed <= bavail * bsize) return;
    const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
    throw new MlaError(
      'ERR_FILE',
      `${this.folder}: ${gib(needed)} are needed and ${gib(bavail * bsize)} are free; HF_HOME moves the cache to another disk.`,
    );
  }

  /** Makes the blob of a file, from the begun one if there is one. */
  async #bring(file: HubFile): Promise<void> {
    const blob = join(this.#blobs, file.etag);
    if ((await sizeOf(blob)) === file.size) {
      this.#report(file.size);
      return;
    }
    const unlock = await lock(`${incomplete(this.#blobs, file.etag)}.lock`);
    try {
      const begun = await open(incomplete(this.#blobs, file.etag), 'a+');
      try {
        await this.#fill(begun, file);
        await fsync(begun);
      } finally {
        await closeQuietly(begun);
      }
      await rename(incomplete(this.#blobs, file.etag), blob);
    } finally {
      await unlock();
    }
  }

  /** Appends what is missing, and checks the whole. */
  async #fill(begun: number, file: HubFile): Promise<void> {
    let have = 0;
    let hash = hashFor(file);
    const start = async () => {
      await ftruncate(begun, 0);
      this.#report(-have);
      have = 0;
      hash = hashFor(file);
    };
    const buffer = Buffer.allocUnsafe(READ_BYTES);
    for (;;) {
      this.signal?.throwIfAborted();
      const { bytesRead } = await read(begun, buffer, 0, buffer.length, have);
      if (bytesRead === 0) break;
      hash.update(buffer.subarray(0, bytesRead));
      have += bytesRead;
      this.#report(bytesRead);
    }
    if (have > file.size) await start();
    await this.client.retrying(
      async () => {
        if (have === file.size) return;
        const body = await this.client.open(this.repository, file.name, have);
        const what = `${this.repository.id}/${file.name}`;
        if (body === null || body.size !== file.size) {
          throw new MlaError('ERR_HUB', `${what}: ${body?.size ?? 0} bytes are offered, ${file.size} were announced.`);
        }
        if (body.start !== have) await start();
        for await (const chunk of body.chunks) {
          if (have + chunk.length > file.size)
            throw new MlaError('ERR_HUB', `${what}: more came than ${file.size} bytes.`);
          await writeAll(begun, chunk);
          hash.update(chunk);
          have += chunk.length;
          this.#fetchedBytes += chunk.length;
          this.#report(chunk.length);
        }
        if (have < file.size) throw new Passing('ERR_HUB', `${what}: it ended after ${have} of ${file.size} bytes.`);
      },
      () => have,
    );
    if (hash.digest('hex') === file.etag) return;
    await ftruncate(begun, 0);
    throw new MlaError(
      'ERR_HUB',
      `${this.repository.id}/${file.name}: what came does not match its hash ${file.etag}; it was thrown away. Run the download again.`,
    );
  }

  /** snapshots/COMMIT/FILE -> ../../blobs/ETAG */
  async #link({ name, etag }: HubFile): Promise<void> {
    const path = join(this.#snapshot, name);
    const target = join('..', '..', 'blobs', etag);
    if ((await readlink(path).catch(() => null)) === target) return;
    await rm(`${path}.next`, { force: true });
    await symlink(target, `${path}.next`);
    await rename(`${path}.next`, path);
  }

  #report(bytes: number): void {
    this.#progress.doneBytes += bytes;
    this.onProgress?.({ ...this.#progress });
  }
}

/** As other tools name a file that is under way. */
const incomplete = (blobs: string, etag: string) => join(blobs, `${etag}.incomplete`);

/** SHA-256 of the content for large files; for the others git's hash, SHA-1 of "blob SIZE\0" and the content. */
function hashFor({ etag, size }: HubFile): Hash {
  return etag.length === 64 ? createHash('sha256') : createHash('sha1').update(`blob ${size}\0`);
}

async function sizeOf(path: string): Promise<number | null> {
  try {
    return (await lstat(path)).size;
  } catch {
    return null;
  }
}

/** Two downloads that append to one file would spoil it. A lock whose process has gone is none. */
async function lock(path: string): Promise<() => Promise<void>> {
  for (let attempt = 0; ; attempt++) {
    try {
      await writeFile(path, String(process.pid), { flag: 'wx' });
      return () => rm(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      const holder = Number(await readFile(path, 'utf8').catch(() => '0'));
      if (attempt > 0 || isAlive(holder)) {
        throw new MlaError('ERR_FILE', `${path}: process ${holder} is downloading this file; wait for it, or end it.`);
      }
      await rm(path, { force: true });
    }
  }
}

function isAlive(pid: number): boolean {
  if (!(pid > 0)) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
