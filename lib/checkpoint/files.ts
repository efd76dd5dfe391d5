// files.ts - opens the files of a model folder so that nothing outside it is read and nothing odd (a FIFO, a device,
// a folder, a link that leads out) is waited for or followed.
import { type BigIntStats, constants } from 'node:fs';
import * as path from 'node:path';
import { MlaError } from '../errors';
import { close, closeQuietly, fstat, lstat, open, read, readdir, realpath, stat } from '../files';
import { quoted } from './messages';

/** What tells one state of a file from another. */
export interface FileIdentity {
  readonly dev: bigint;
  readonly ino: bigint;
  readonly size: bigint;
  readonly mtimeNs: bigint;
}

/** A regular file, open for reading. */
export interface OpenFile {
  /** Where it was opened (links resolved). */
  readonly path: string;
  readonly fd: number;
  /** Bytes. */
  readonly size: number;
  readonly identity: FileIdentity;
}

/** A model folder: its real path, and the one other folder that links in it may lead to. */
export interface Folder {
  readonly path: string;
  /** `blobs` of the same repository in the Hugging Face cache layout (models--x/snapshots/REV -> models--x/blobs), or null. */
  readonly blobs: string | null;
}

/** Resolves a folder. ERR_FILE when it is not there or is not a folder. */
export async function openFolder(dir: string): Promise<Folder> {
  try {
    const real = await realpath(dir);
    if (!(await stat(real)).isDirectory()) {
      throw new MlaError(
        'ERR_FILE',
        `${quoted(dir)}: found a file, expected a folder with config.json and *.safetensors.`,
      );
    }
    const parent = path.dirname(real);
    const cached = path.basename(parent) === 'snapshots';
    return { path: real, blobs: cached ? path.join(path.dirname(parent), 'blobs') : null };
  } catch (error) {
    throw fileError(dir, error, 'expected a model folder');
  }
}

/** Names of the folder's entries. ERR_FILE when it cannot be read. */
export async function listFolder(folder: Folder): Promise<string[]> {
  try {
    return await readdir(folder.path);
  } catch (error) {
    throw fileError(folder.path, error, 'expected a folder that can be listed');
  }
}

/** Says why a text is not the plain name of a file in a folder, or gives null when it is one. */
export function whyNotPlainName(name: string): string | null {
  if (name === '') return 'an empty name';
  if (name === '.' || name === '..') return 'the name of a folder';
  if (/[/\\]/.test(name)) return 'a path with separators';
  if (name.includes('\0')) return 'a name with a NUL character';
  if (Buffer.byteLength(name) > 255) return 'a name longer than 255 bytes';
  return null;
}

/** True when the folder has an entry of that name (a dangling link counts). */
export async function existsInside(folder: Folder, name: string): Promise<boolean> {
  try {
    await lstat(path.join(folder.path, name));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw fileError(path.join(folder.path, name), error, 'expected a readable file');
  }
}

/**
 * Opens a file of the folder by its plain name. Links are followed only to regular files inside the folder or inside
 * the same cached repository's blobs. The caller closes it. Throws ERR_FILE, or ERR_CHECKPOINT for a link that leads out.
 */
export async function openInside(folder: Folder, name: string): Promise<OpenFile> {
  const named = path.join(folder.path, name);
  const bad = whyNotPlainName(name);
  if (bad) throw new MlaError('ERR_CHECKPOINT', `${quoted(name)}: found ${bad}, expected the plain name of a file.`);
  let real: string;
  try {
    real = await realpath(named);
  } catch (error) {
    throw fileError(named, error, 'expected a file (or a link to one that exists)');
  }
  const inside = real.startsWith(folder.path.endsWith(path.sep) ? folder.path : folder.path + path.sep);
  if (!inside && !(folder.blobs !== null && path.dirname(real) === folder.blobs)) {
    throw new MlaError(
      'ERR_CHECKPOINT',
      `${quoted(named)}: found a link that leads to ${quoted(real)}, expected one that stays inside the folder` +
        `${folder.blobs === null ? '' : " (or in the cached repository's blobs)"}. Copy the file into the folder.`,
    );
  }
  return openRegular(real);
}

/** Opens a regular file; never follows a link in the last place and never waits (a FIFO or device is refused). */
export async function openRegular(file: string, followLink = false): Promise<OpenFile> {
  let fd: number;
  try {
    // O_NONBLOCK: opening a FIFO that nobody writes to returns at once instead of hanging.
    const flags = constants.O_RDONLY | constants.O_NONBLOCK | (followLink ? 0 : constants.O_NOFOLLOW);
    fd = await open(file, flags);
  } catch (error) {
    throw fileError(file, error, 'expected a readable file');
  }
  try {
    const found = await regularStat(fd, file);
    return { path: file, fd, size: Number(found.size), identity: identityOf(found) };
  } catch (error) {
    await close(fd);
    throw error;
  }
}

/** State of an open file. ERR_FILE when it is not a regular one. */
export async function regularStat(fd: number, file: string): Promise<BigIntStats> {
  let stat: BigIntStats;
  try {
    stat = await fstat(fd, { bigint: true });
  } catch (error) {
    throw fileError(file, error, 'expected an open file');
  }
  if (!stat.isFile()) {
    const kind = stat.isDirectory() ? 'a folder' : stat.isFIFO() ? 'a FIFO' : stat.isSocket() ? 'a socket' : 'a device';
    throw new MlaError('ERR_FILE', `${quoted(file)}: found ${kind}, expected a regular file.`);
  }
  return stat;
}

/** The part of a stat that must not change while a model loads. */
export function identityOf(stat: BigIntStats): FileIdentity {
  return { dev: stat.dev, ino: stat.ino, size: stat.size, mtimeNs: stat.mtimeNs };
}

/** Reads exactly `length` bytes at `position`. ERR_CHECKPOINT when the file ends before (it was cut meanwhile). */
export async function readExactly(fd: number, file: string, position: number, length: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(length);
  let filled = 0;
  while (filled < length) {
    let bytesRead: number;
    try {
      ({ bytesRead } = await read(fd, buffer, filled, length - filled, position + filled));
    } catch (error) {
      throw fileError(file, error, 'expected a file that can be read');
    }
    if (bytesRead === 0) {
      const end = position + filled;
      throw new MlaError(
        'ERR_CHECKPOINT',
        `${quoted(file)}: found its end at byte ${end}, expected ${length} bytes at ${position}: it was cut while it was read.`,
      );
    }
    filled += bytesRead;
  }
  return buffer;
}

/** Reads a whole small file of the folder, or gives null when there is none. ERR_FILE beyond `maxBytes`. */
export async function readSmallInside(folder: Folder, name: string, maxBytes: number): Promise<Buffer | null> {
  if (!(await existsInside(folder, name))) return null;
  const file = await openInside(folder, name);
  try {
    if (file.size > maxBytes) {
      throw new MlaError('ERR_FILE', `${quoted(file.path)}: found ${file.size} bytes, expected at most ${maxBytes}.`);
    }
    return await readExactly(file.fd, file.path, 0, file.size);
  } finally {
    await closeQuietly(file.fd);
  }
}

/** Turns what the file system threw into ERR_FILE; leaves our own errors as they are. */
export function fileError(file: string, error: unknown, expected: string): MlaError {
  if (error instanceof MlaError) return error;
  const code = (error as NodeJS.ErrnoException | undefined)?.code ?? 'an unknown error';
  const hint =
    code === 'EMFILE' || code === 'ENFILE'
      ? ' Too many open files: raise the limit (ulimit -n).'
      : code === 'ELOOP'
        ? ' A link leads in a circle or changed while it was opened.'
        : '';
  return new MlaError('ERR_FILE', `${quoted(file)}: found ${code}, ${expected}.${hint}`, { cause: error });
}
