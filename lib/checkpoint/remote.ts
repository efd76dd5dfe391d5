// remote.ts - a checkpoint that lies elsewhere, known by its small files and the headers of its large ones: enough for
// its layout and sizes, with the same checks as for a folder. How bytes get here is the caller's business.
import { MlaError } from '../errors';
import {
  addTensors,
  checkWeightMap,
  hasRouterBias,
  INDEX,
  MAX_INDEX_BYTES,
  parseWeightMap,
  SINGLE,
  type TensorInfo,
} from './checkpoint';
import { MAX_CONFIG_BYTES, parseConfig } from './config';
import type { LayoutInput } from './layout';
import { resolveRouting } from './routing';
import { headerLength, parseSafetensorsHeader, type SafetensorsHeader } from './safetensors';

/** Access to the files of a checkpoint. */
export interface RemoteFiles {
  /** what messages call the checkpoint */
  readonly name: string;
  /** A whole small file; null when there is none. Rejects when it has more than `maxBytes`. */
  read(file: string, maxBytes: number): Promise<Buffer | null>;
  /** Bytes [start, start + length) of a file, fewer where it ends before, and the size of the whole file. */
  range(file: string, start: number, length: number): Promise<{ bytes: Buffer; size: number }>;
}

/** Headers are asked for in one piece of this size; few are larger. */
const FIRST_BYTES = 256 << 10;
const FILES_AT_ONCE = 8;

/**
 * Reads config.json, the index and all headers; no weight.
 * Rejects as openCheckpoint does, and with what `files` rejects with. The tensors' descriptors are -1.
 */
export async function describeCheckpoint(
  files: RemoteFiles,
  onFile: (done: number, total: number) => void = () => {},
): Promise<LayoutInput> {
  const configJson = await files.read('config.json', MAX_CONFIG_BYTES);
  if (configJson === null) throw new MlaError('ERR_CHECKPOINT', `${files.name}: found no config.json, expected one.`);
  const generation = (await files.read('generation_config.json', MAX_CONFIG_BYTES)) ?? undefined;
  const config = parseConfig(configJson, `${files.name}/config.json`, generation);
  const index = await files.read(INDEX, MAX_INDEX_BYTES);
  const map = index === null ? null : parseWeightMap(index, `${files.name}/${INDEX}`);
  const names = map === null ? [SINGLE] : [...new Set(map.values())];
  const headers = new Map<string, SafetensorsHeader>();
  const waiting = [...names];
  const work = async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      headers.set(name, await readRemoteHeader(files, name));
      onFile(headers.size, names.length);
    }
  };
  await Promise.all(Array.from({ length: Math.min(FILES_AT_ONCE, names.length) }, work));
  const tensors = new Map<string, TensorInfo>();
  for (const [i, name] of names.entries()) {
    const header = headers.get(name) as SafetensorsHeader;
    addTensors(files.name, { index: i, name, path: name, fd: -1, size: header.fileSize }, header, tensors);
  }
  if (map !== null) checkWeightMap(files.name, map, tensors);
  return { path: files.name, config: resolveRouting(config, hasRouterBias(tensors)), tensors };
}

async function readRemoteHeader(files: RemoteFiles, name: string): Promise<SafetensorsHeader> {
  const source = `${files.name}/${name}`;
  const { bytes: start, size } = await files.range(name, 0, FIRST_BYTES);
  if (size < 8 || start.length < 8)
    throw new MlaError('ERR_SAFETENSORS', `${source}: found ${size} bytes, expected at least 8.`);
  const length = headerLength(start.subarray(0, 9), size, source);
  let json = start.subarray(8, 8 + length);
  if (json.length < length) {
    const rest = await files.range(name, start.length, 8 + length - start.length);
    json = Buffer.concat([json, rest.bytes]);
  }
  if (json.length !== length) {
    throw new MlaError('ERR_SAFETENSORS', `${source}: found ${json.length} bytes of header, expected ${length}.`);
  }
  return parseSafetensorsHeader(json, size, source);
}
