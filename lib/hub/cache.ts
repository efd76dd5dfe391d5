// hub/cache.ts - the cache layout of Hugging Face's own tools, which share it:
//
//   HUB/models--ORG--NAME/refs/main               the commit a branch or tag pointed to last
//   HUB/models--ORG--NAME/snapshots/COMMIT/FILE   a relative link into
//   HUB/models--ORG--NAME/blobs/ETAG              the content, by its git hash or, for large files, its SHA-256
//
// HUB is HF_HUB_CACHE, or hub/ in HF_HOME, or huggingface/hub/ in XDG_CACHE_HOME, or ~/.cache/huggingface/hub.
import { homedir } from 'node:os';
import { join } from 'node:path';
import { MlaError } from '../errors';
import { readFile, stat } from '../files';
import { parseRepository, type Repository } from './repository';

/** Variables that decide where things lie; process.env has them. */
export interface CacheEnvironment {
  HF_HUB_CACHE?: string | undefined;
  HF_HOME?: string | undefined;
  HF_TOKEN_PATH?: string | undefined;
  XDG_CACHE_HOME?: string | undefined;
}

/** A full commit. */
export const COMMIT = /^[0-9a-f]{40}$/;

/** Where Hugging Face's tools keep everything. */
export function homeFolder(env: CacheEnvironment = process.env): string {
  return env.HF_HOME || join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface');
}

/** Where models lie. */
export function cacheFolder(env: CacheEnvironment = process.env): string {
  return env.HF_HUB_CACHE || join(homeFolder(env), 'hub');
}

/** The folder of one model. */
export function repositoryFolder({ id }: Repository, env: CacheEnvironment = process.env): string {
  return join(cacheFolder(env), `models--${id.replace('/', '--')}`);
}

/** The snapshot that the cache has for a revision; null when it has none. */
export async function findSnapshot(
  repository: Repository,
  env: CacheEnvironment = process.env,
): Promise<string | null> {
  const folder = repositoryFolder(repository, env);
  let commit = repository.revision;
  if (!COMMIT.test(commit)) {
    try {
      commit = (await readFile(join(folder, 'refs', commit), 'utf8')).trim();
    } catch {
      return null;
    }
    if (!COMMIT.test(commit)) return null;
  }
  const snapshot = join(folder, 'snapshots', commit);
  return (await isFolder(snapshot)) ? snapshot : null;
}

/**
 * What a user calls a model, as a folder: a path that exists is itself; "org/name" or "org/name@revision" is looked up in
 * the cache. Nothing is downloaded.
 * Rejects with ERR_FILE naming the command that downloads it.
 */
export async function findModelFolder(model: string, env: CacheEnvironment = process.env): Promise<string> {
  const repository = parseRepository(model);
  if (repository === null || (await isFolder(model))) return model;
  const snapshot = await findSnapshot(repository, env);
  if (snapshot !== null) return snapshot;
  throw new MlaError(
    'ERR_FILE',
    `"${model}" is neither a folder nor a model in ${cacheFolder(env)}; "mla download ${model}" brings it there.`,
  );
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch {
    return false;
  }
}
