// native/load.ts - finds the .node, makes sure that it is whole, and loads it.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join, resolve, sep } from 'node:path';
import { MlaError } from '../errors';
import type { RawAddon } from './raw';

/** Written by scripts/build-native.cjs: this, then the SHA-256 of everything before. */
const SEAL_MAGIC = 'MLASEAL1';
const DIGEST_BYTES = 32;

const ROOT = resolve(__dirname, '..', '..');

/** The one command that helps, for a checkout and for an installed package. */
function remedy(): string {
  return ROOT.split(sep).includes('node_modules')
    ? `Run "npm rebuild node-mla" (it needs CMake and a C++20 compiler).`
    : `Run "npm run build:native" (it needs CMake and a C++20 compiler).`;
}

function loadError(what: string, cause?: unknown): MlaError {
  return new MlaError('ERR_NATIVE_LOAD', `${what} ${remedy()}`, cause === undefined ? undefined : { cause });
}

function firstLine(error: unknown): string {
  return String((error as Error)?.message ?? error).split('\n')[0] ?? '';
}

/**
 * A damaged binary must be refused before it is mapped: the system's loader trusts it, and the process would die on a
 * bad instruction or on a page that is not there.
 */
function checkSeal(file: string): void {
  let content: Buffer;
  try {
    content = readFileSync(file);
  } catch (error) {
    throw loadError(`The native addon ${file} cannot be read: ${firstLine(error)}.`, error);
  }
  const at = content.length - SEAL_MAGIC.length - DIGEST_BYTES;
  if (at < 0 || content.toString('latin1', at, at + SEAL_MAGIC.length) !== SEAL_MAGIC)
    throw loadError(`The native addon ${file} is incomplete: its checksum is missing.`);
  const digest = createHash('sha256').update(content.subarray(0, at)).digest();
  if (!digest.equals(content.subarray(at + SEAL_MAGIC.length)))
    throw loadError(`The native addon ${file} is damaged: its checksum does not match.`);
}

/**
 * Loads the addon: a local build first, then the prebuilt binary of this platform.
 * @throws ERR_NATIVE_LOAD naming the cause and the command that helps
 */
export function loadAddon(): { raw: RawAddon; file: string } {
  // node-gyp-build decides which file; it reads NODE_MLA_PREBUILD itself.
  const nodeGypBuild = require('node-gyp-build') as { path(root: string): string };
  let file: string;
  try {
    file = nodeGypBuild.path(ROOT);
  } catch (error) {
    throw loadError(
      `There is no native addon for ${process.platform}-${process.arch} in ${join(ROOT, 'build')} or ${join(ROOT, 'prebuilds')}.`,
      error,
    );
  }
  checkSeal(file);
  try {
    return { raw: require(file) as RawAddon, file };
  } catch (error) {
    throw loadError(`The native addon ${file} cannot be loaded: ${firstLine(error)}.`, error);
  }
}
