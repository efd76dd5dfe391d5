// cli/run-with-model.ts - loads the model that the flags name, does something with it, and takes it down again.
import { type LoadOptions, loadModel, type Model } from '../engine';
import { MlaError } from '../errors';
import { build } from '../native';
import { NoGpuSupport } from './failure';
import { loadOptionsOf, type ModelFlags } from './flags';
import { LoadBar } from './output';

/** Runs `work` with a loaded model, which is disposed whatever happens. `more` stands above what the flags say. */
export async function runWithModel<T>(
  flags: ModelFlags,
  signal: AbortSignal,
  work: (model: Model) => Promise<T>,
  more: LoadOptions = {},
): Promise<T> {
  const bar = new LoadBar();
  let model: Model;
  try {
    model = await loadModel(flags.model, { ...loadOptionsOf(flags), ...more, onProgress: bar.update, signal });
  } catch (error) {
    const wantsGpu = flags.device.startsWith('cuda') && !build().cuda;
    if (wantsGpu && error instanceof MlaError && error.code === 'ERR_UNSUPPORTED') throw new NoGpuSupport(error);
    throw error;
  } finally {
    bar.stop();
  }
  try {
    return await work(model);
  } finally {
    await model.dispose();
  }
}
