// checkpoint.ts - a model folder, opened: which tensor lies in which file at which byte, and proof that the files stay so.
// Model folders are data: only config.json, generation_config.json, the index and *.safetensors are opened, none is executed.
import type { BigIntStats } from 'node:fs';
import * as path from 'node:path';
import { invalidArg, MlaError } from '../errors';
import { closeQuietly, stat } from '../files';
import { readConfigOf } from './config';
import {
  existsInside,
  type FileIdentity,
  type Folder,
  identityOf,
  listFolder,
  openFolder,
  openInside,
  readSmallInside,
  regularStat,
  whyNotPlainName,
} from './files';
import { parseJson } from './json';
import { quoted, shown } from './messages';
import { type ResolvedConfig, resolveRouting } from './routing';
import { readHeaderOf, type SafetensorsDtype, type SafetensorsHeader } from './safetensors';

/** One *.safetensors file of a checkpoint. */
export interface CheckpointFile {
  /** Place in {@link Checkpoint.files}. */
  readonly index: number;
  /** Name in the folder. */
  readonly name: string;
  /** Where it was opened (links resolved). */
  readonly path: string;
  /** Open for reading until {@link Checkpoint.close}; native code may pread from it. */
  readonly fd: number;
  /** Bytes. */
  readonly size: number;
}

/** Where a tensor lies. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly file: CheckpointFile;
  /** The descriptor of {@link file}. */
  readonly fd: number;
  /** First byte, counted from the start of the file. Not aligned. */
  readonly offset: number;
  readonly bytes: number;
}

/** The weights of a small model, or the list of files that have those of a large one. */
export const SINGLE = 'model.safetensors';
export const INDEX = 'model.safetensors.index.json';
export const MAX_INDEX_BYTES = 128 << 20;
const MAX_INDEX_VALUES = 2_000_000;
const MAX_FILES = 2000;
/** Formats that can hold code (pickle) or that this package does not read. */
const OTHER_WEIGHTS = /\.(bin|pt|pth|pkl|ckpt|h5|msgpack|npz|gguf|onnx)$/i;

interface OpenedFile extends CheckpointFile {
  readonly identity: FileIdentity;
  /** Path by which the folder names it, to notice that another file took its place. */
  readonly namedPath: string;
}

/** An open checkpoint. Holds its files open until {@link close}. */
export class Checkpoint implements AsyncDisposable {
  private closed = false;

  /** Use {@link openCheckpoint}. */
  constructor(
    /** The folder, links resolved. */
    readonly path: string,
    readonly config: ResolvedConfig,
    /** Every tensor of every file, by name. */
    readonly tensors: ReadonlyMap<string, TensorInfo>,
    readonly files: readonly CheckpointFile[],
    private readonly opened: readonly OpenedFile[],
  ) {}

  /**
   * Checks that every file is still what it was when it was opened; to be called after reading weights and before using them.
   * @throws ERR_CHECKPOINT when one was cut, grew, was written to, was removed or was replaced; ERR_DISPOSED after close
   */
  async verifyUnchanged(): Promise<void> {
    for (const file of this.opened) {
      if (this.closed) throw new MlaError('ERR_DISPOSED', `${this.path}: this checkpoint is closed.`);
      await verifyFile(file);
    }
  }

  /** Closes all files. Idempotent. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    for (const file of this.opened) await closeQuietly(file.fd);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Opens a model folder as downloaded (or the same in a Hugging Face cache) and checks the whole of it before any weight
 * is read: config.json, the index, the header of every file, and that they agree.
 * @throws ERR_FILE, ERR_CONFIG, ERR_UNSUPPORTED_MODEL, ERR_SAFETENSORS or ERR_CHECKPOINT; nothing stays open then
 */
export async function openCheckpoint(dir: string): Promise<Checkpoint> {
  if (typeof dir !== 'string') throw invalidArg('dir', 'the path of a model folder', dir);
  const folder = await openFolder(dir);
  const config = await readConfigOf(folder);
  const map = await readWeightMap(folder);
  const names = map === null ? [SINGLE] : [...new Set(map.values())];
  const opened: OpenedFile[] = [];
  try {
    const tensors = new Map<string, TensorInfo>();
    for (const name of names) await addFile(folder, name, opened, tensors);
    if (map) checkWeightMap(folder.path, map, tensors);
    const files = opened.map(({ index, name, path, fd, size }) => ({ index, name, path, fd, size }));
    return new Checkpoint(folder.path, resolveRouting(config, hasRouterBias(tensors)), tensors, files, opened);
  } catch (error) {
    for (const file of opened) await closeQuietly(file.fd);
    throw error;
  }
}

async function addFile(
  folder: Folder,
  name: string,
  opened: OpenedFile[],
  tensors: Map<string, TensorInfo>,
): Promise<void> {
  if (!(await existsInside(folder, name))) {
    throw new MlaError('ERR_CHECKPOINT', `${folder.path}: found no ${quoted(name)}, expected every file of the index.`);
  }
  const { identity, ...rest } = await openInside(folder, name);
  const file: CheckpointFile = { index: opened.length, name, ...rest };
  opened.push({ ...file, identity, namedPath: path.join(folder.path, name) });
  addTensors(folder.path, file, await readHeaderOf(file.fd, file.size, file.path), tensors);
}

/** Adds the tensors of one file. @throws ERR_CHECKPOINT when another file has one of them */
export function addTensors(
  path: string,
  file: CheckpointFile,
  header: SafetensorsHeader,
  tensors: Map<string, TensorInfo>,
): void {
  for (const entry of header.tensors.values()) {
    const other = tensors.get(entry.name);
    if (other) {
      throw new MlaError(
        'ERR_CHECKPOINT',
        `${path}: tensor ${quoted(entry.name)}: found in ${quoted(other.file.name)} and in ${quoted(file.name)}, expected in one file.`,
      );
    }
    tensors.set(entry.name, { ...entry, file, fd: file.fd });
  }
}

/** Whether the routers have biases, which decides what config.json may leave open. */
export function hasRouterBias(tensors: ReadonlyMap<string, TensorInfo>): boolean {
  return [...tensors.keys()].some((name) => name.endsWith('.mlp.gate.e_score_correction_bias'));
}

/** Reads the index: tensor name -> file name. Null when the folder has one model.safetensors and no index. */
async function readWeightMap(folder: Folder): Promise<Map<string, string> | null> {
  const single = await existsInside(folder, SINGLE);
  const json = await readSmallInside(folder, INDEX, MAX_INDEX_BYTES);
  if (json === null) {
    if (single) return null;
    throw await nothingToLoad(folder);
  }
  const map = parseWeightMap(json, `${folder.path}/${INDEX}`);
  if (single && ![...map.values()].includes(SINGLE)) {
    throw new MlaError(
      'ERR_CHECKPOINT',
      `${folder.path}: found ${SINGLE} and an index of other files, expected one of them. Remove the stale one.`,
    );
  }
  return map;
}

/** Reads the index's JSON: tensor name -> plain file name. @throws ERR_CHECKPOINT */
export function parseWeightMap(json: Buffer, source: string): Map<string, string> {
  const wrong = (text: string): MlaError => new MlaError('ERR_CHECKPOINT', `${source}: ${text}.`);
  const index = parseJson(json, {
    code: 'ERR_CHECKPOINT',
    source,
    maxBytes: MAX_INDEX_BYTES,
    maxValues: MAX_INDEX_VALUES,
  });
  const map = typeof index === 'object' && index !== null && !Array.isArray(index) ? index.weight_map : undefined;
  if (typeof map !== 'object' || map === null || Array.isArray(map)) {
    throw wrong(`weight_map: found ${shown(map)}, expected an object of tensor name to file name`);
  }
  const result = new Map<string, string>();
  const checked = new Set<string>();
  for (const [tensor, file] of Object.entries(map)) {
    if (typeof file !== 'string') {
      throw wrong(`weight_map, tensor ${quoted(tensor)}: found ${shown(file)}, expected the name of a file`);
    }
    result.set(tensor, file);
    if (checked.has(file)) continue;
    checked.add(file);
    const bad = whyNotPlainName(file);
    const why =
      bad ?? (file.endsWith('.safetensors') ? null : 'a file of another format (pickle files are never opened)');
    if (why) {
      throw wrong(`weight_map, tensor ${quoted(tensor)}: found ${quoted(file)}, ${why}, expected NAME.safetensors`);
    }
    if (checked.size > MAX_FILES) throw wrong(`weight_map: found more than ${MAX_FILES} files, expected fewer`);
  }
  if (result.size === 0) throw wrong('weight_map: found no tensor, expected the tensors of a model');
  return result;
}

/** The files must hold what the index says. @throws ERR_CHECKPOINT */
export function checkWeightMap(path: string, map: Map<string, string>, tensors: Map<string, TensorInfo>): void {
  for (const [name, file] of map) {
    const there = tensors.get(name)?.file.name;
    if (there === file) continue;
    const found = there === undefined ? 'in no file' : `in ${quoted(there)}`;
    throw new MlaError(
      'ERR_CHECKPOINT',
      `${path}: tensor ${quoted(name)}: found ${found}, expected in ${quoted(file)} as ${INDEX} says.`,
    );
  }
}

async function nothingToLoad(folder: Folder): Promise<MlaError> {
  const entries = await listFolder(folder);
  const shards = entries.filter((name) => name.endsWith('.safetensors')).sort();
  const others = entries.filter((name) => OTHER_WEIGHTS.test(name)).sort();
  const expected = `expected ${SINGLE}, or ${INDEX} with its files`;
  const found =
    shards.length > 0
      ? `${shards.length} *.safetensors (${shards.slice(0, 3).map(quoted).join(', ')}) but no index of them`
      : others.length > 0
        ? `only ${others.slice(0, 3).map(quoted).join(', ')}`
        : 'no weights';
  const advice =
    shards.length === 0 && others.length > 0
      ? ' Such files are never opened: pickle can run code, and other formats are not read. Convert the model to safetensors.'
      : '';
  return new MlaError('ERR_CHECKPOINT', `${folder.path}: found ${found}, ${expected}.${advice}`);
}

async function verifyFile(file: OpenedFile): Promise<void> {
  const changed = (what: string): MlaError =>
    new MlaError(
      'ERR_CHECKPOINT',
      `${quoted(file.path)}: ${what} since it was opened, expected no change while a model loads.`,
    );
  const was = file.identity;
  const now = identityOf(await regularStat(file.fd, file.path));
  if (now.size < was.size) throw changed(`found it cut from ${was.size} to ${now.size} bytes`);
  if (now.size > was.size) throw changed(`found it grown from ${was.size} to ${now.size} bytes`);
  if (now.mtimeNs !== was.mtimeNs) throw changed('found it written to');
  // The descriptor would not notice a rename over the name; the folder would then hold another model than the one read.
  let named: BigIntStats;
  try {
    named = await stat(file.namedPath, { bigint: true });
  } catch (error) {
    throw new MlaError(
      'ERR_CHECKPOINT',
      `${quoted(file.namedPath)}: found it removed since it was opened, expected no change while a model loads.`,
      { cause: error },
    );
  }
  if (named.ino !== was.ino || named.dev !== was.dev) throw changed('found another file in its place');
}
