// engine/load.ts - from a checkpoint folder, or the model in the package, to a public Model.
import { join } from 'node:path';
import { invalidArg } from '../errors';
import { findModelFolder } from '../hub';
import { LatentModel, type LoadProgress } from '../model';
import type { Model, ModelInfo } from './api';
import { LocalModel } from './model';
import { abortSignal, readOptions } from './settings';
import { CheckpointText } from './text';
import { RemoteModel } from './worker/remote-model';

/** The small model that ships in the package, for `loadModel()` without a folder. */
export const BUNDLED_MODEL = join(__dirname, '..', '..', 'models', 'kjv-10m');

/** Options of {@link loadModel}; every one has a default. */
export interface LoadOptions {
  /**
   * 'auto' takes the GPU when there is one, else the CPU; a GPU that is there and cannot be used is an error. Default
   * 'auto'.
   */
  device?: 'auto' | 'cpu' | `cuda:${number}` | undefined;
  /** Element type of the weights: 'auto' keeps the checkpoint's, 'fp8' quantises at load. Default 'auto'. */
  dtype?: 'auto' | 'f32' | 'bf16' | 'fp8' | undefined;
  /**
   * Element type of the latent cache: 'auto' is f32 on the CPU and bf16 on a GPU; 'fp8' takes little more than half of
   * the bytes of bf16 (docs/cache.md). Default 'auto'.
   */
  cacheDtype?: 'auto' | 'f32' | 'bf16' | 'fp8' | undefined;
  /**
   * Element type of activations: 'auto' is f32 on the CPU and bf16 on a GPU. 'fp8' is for weights in fp8, a checkpoint's or
   * those that `dtype: 'fp8'` makes: bf16, and e4m3 with a scale for each row and 128 columns where they meet such weights
   * (docs/numerics.md). Default 'auto'.
   */
  activationDtype?: 'auto' | 'f32' | 'bf16' | 'fp8' | undefined;
  /** Tokens a sequence may have in all. Default: the smaller of the model's limit and 4096. */
  context?: number | undefined;
  /** Sequences that run at once; further ones wait. Default 8. */
  maxSequences?: number | undefined;
  /** Pages of 64 tokens in the latent cache. Default: enough for all sequences at full context. */
  pages?: number | undefined;
  /** Prompt tokens per step, over all sequences. Default 512. */
  prefillChunk?: number | undefined;
  /** Whether prompts take over what earlier texts left in the cache. Default true. */
  prefixCache?: boolean | undefined;
  /**
   * Whether a request's text and log-probabilities depend on the request alone, bit for bit: not on what else runs, on
   * the chunks its prompt came in, or on what the cache had of it. Slower where prompts are long (docs/numerics.md).
   * Default false: other requests may then change the last bits, and so, now and then, a token.
   */
  deterministic?: boolean | undefined;
  /**
   * Milliseconds after which a step that has not ended is taken for a hang: everything open, and everything later,
   * rejects with ERR_DEVICE_LOST, and the process should be replaced. 0 is never. Default: 120000 on a GPU, 0 on the CPU.
   */
  stepTimeout?: number | undefined;
  /** CPU threads; 0, the default, is one per physical core. */
  threads?: number | undefined;
  /**
   * Where the model runs: in this thread, or wholly in a worker thread of its own, where a busy event loop here does not
   * hold it up. The interface is the same. Default 'main'.
   */
  thread?: 'main' | 'worker' | undefined;
  /** Told how far loading has come. What it throws ends the loading. */
  onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Ends the loading; loadModel then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

const LOAD_OPTIONS = [
  'device',
  'dtype',
  'cacheDtype',
  'activationDtype',
  'context',
  'maxSequences',
  'pages',
  'prefillChunk',
  'prefixCache',
  'deterministic',
  'stepTimeout',
  'threads',
  'thread',
  'onProgress',
  'signal',
] as const;

const CHOICES = {
  dtype: ['auto', 'f32', 'bf16', 'fp8'],
  cacheDtype: ['auto', 'f32', 'bf16', 'fp8'],
  activationDtype: ['auto', 'f32', 'bf16', 'fp8'],
  thread: ['main', 'worker'],
} as const;

/**
 * Loads a model from a Hugging Face checkpoint folder as downloaded (config.json, *.safetensors, tokenizer.json), or from
 * the cache of Hugging Face's tools by its name there, "org/name" or "org/name@revision"; nothing is downloaded. Without
 * either, the small model of the package. A folder without tokenizer.json gives a model that works with token ids alone.
 *
 * Rejects with an MlaError that names what is wrong (ERR_FILE, ERR_CONFIG, ERR_UNSUPPORTED_MODEL, ERR_CHECKPOINT,
 * ERR_SAFETENSORS, ERR_TOKENIZER, ERR_NO_DEVICE, ERR_DRIVER_TOO_OLD, ERR_OUT_OF_MEMORY, ERR_OUT_OF_DEVICE_MEMORY,
 * ERR_INVALID_ARG, ...) or with the signal's reason; nothing stays open or allocated then.
 */
export async function loadModel(dir?: string, options?: LoadOptions): Promise<Model> {
  if (dir !== undefined && (typeof dir !== 'string' || dir === '')) {
    throw invalidArg('dir', 'the path of a checkpoint folder, or undefined for the model of the package', dir);
  }
  const checked = checkLoadOptions(options);
  checked.signal?.throwIfAborted();
  const directory = dir === undefined ? BUNDLED_MODEL : await findModelFolder(dir);
  const { thread, ...here } = checked;
  if (thread === 'worker') return RemoteModel.load(directory, here);
  const text = await CheckpointText.load(directory);
  let model: LatentModel;
  try {
    model = await LatentModel.load(directory, here);
  } catch (error) {
    await text?.dispose();
    throw error;
  }
  return modelOf(model, text, directory, here.prefillChunk);
}

/** The public model around a loaded one; `text` null is a model that works with token ids alone. */
export function modelOf(
  model: LatentModel,
  text: CheckpointText | null,
  directory: string,
  prefillChunk?: number,
): Model {
  // Where neither config.json nor generation_config.json says what ends a text, the tokenizer may.
  const known = (text?.eosIds ?? []).filter((id) => id < model.config.vocab_size);
  const info: ModelInfo = {
    directory,
    modelType: model.config.model_type,
    layers: model.config.num_hidden_layers,
    vocabSize: model.config.vocab_size,
    context: model.context,
    maxSequences: model.maxSequences,
    device: model.deviceInfo,
    memory: model.memory,
    hasTokenizer: text !== null,
    hasChatTemplate: text?.hasChatTemplate ?? false,
    loadMs: model.loadMs,
    eosIds: model.eosIds.length > 0 ? model.eosIds : known,
  };
  return new LocalModel({ model, text, info, prefillChunk });
}

/** Numbers are checked by the model, which knows their limits; here only what it could not tell apart. */
function checkLoadOptions(options: unknown): LoadOptions {
  const given = readOptions(options, LOAD_OPTIONS);
  for (const [name, allowed] of Object.entries(CHOICES)) {
    const value = given[name as keyof typeof CHOICES];
    if (value !== undefined && !(allowed as readonly unknown[]).includes(value)) {
      throw invalidArg(name, `one of ${allowed.join(', ')}`, value);
    }
  }
  if (given.device !== undefined && !/^(auto|cpu|cuda:\d{1,3}(:portable)?)$/.test(String(given.device))) {
    throw invalidArg('device', "'auto', 'cpu', 'cuda:N' or 'cuda:N:portable'", given.device);
  }
  for (const name of ['context', 'maxSequences', 'pages', 'prefillChunk', 'stepTimeout', 'threads'] as const) {
    const value = given[name];
    const least = name === 'threads' || name === 'stepTimeout' ? 0 : 1;
    if (value !== undefined && !(Number.isSafeInteger(value) && (value as number) >= least)) {
      throw invalidArg(name, `an integer of at least ${least}`, value);
    }
  }
  if (((given.stepTimeout as number | undefined) ?? 0) >= 2 ** 31) {
    throw invalidArg('stepTimeout', 'at most 2147483647 milliseconds, which is what timers take', given.stepTimeout);
  }
  for (const name of ['prefixCache', 'deterministic'] as const) {
    if (given[name] !== undefined && typeof given[name] !== 'boolean') {
      throw invalidArg(name, 'true or false', given[name]);
    }
  }
  if (given.onProgress !== undefined && typeof given.onProgress !== 'function') {
    throw invalidArg('onProgress', 'a function', given.onProgress);
  }
  abortSignal(given.signal);
  return given as LoadOptions;
}
