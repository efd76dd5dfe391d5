// cache/replace-file.ts - a file that appears whole or not at all, whenever the process or the machine stops.
import { randomBytes } from 'node:crypto';
import { MlaError } from '../errors';
import { close, closeQuietly, fsync, open, rename, rm, writeAll } from '../files';

/**
 * Makes a new file under a name of its own, for its owner alone, and gives it `path` when it is complete and on disk;
 * until then, and after a failure, what had the name before is untouched.
 * @param fill writes the content, piece after piece
 * @throws ERR_FILE, or what `fill` throws
 */
export async function replaceFile(
  path: string,
  fill: (write: (bytes: Uint8Array) => Promise<void>) => Promise<void>,
): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  const fd = await fileErrors(path, () => open(temporary, 'wx', 0o600));
  try {
    try {
      await fill((bytes) => fileErrors(path, () => writeAll(fd, bytes)));
      await fileErrors(path, () => fsync(fd));
    } catch (error) {
      await closeQuietly(fd);
      throw error;
    }
    await fileErrors(path, async () => {
      await close(fd);
      await rename(temporary, path);
    });
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw error;
  }
}

/** Does something with the file `path`; what fails is ERR_FILE. */
export async function fileErrors<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    throw new MlaError('ERR_FILE', `${path}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}
