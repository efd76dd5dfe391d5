// cli/bench-startup.ts - mla bench startup: loading a checkpoint, and its first token.
import type { Command } from 'commander';
import { benchStartup, circumstances, type StartupResult } from '../bench';
import { addJsonFlag, addPlacementFlags, integer, type JsonFlag, type ModelFlags } from './flags';
import { note, print } from './output';

interface StartupFlags
  extends Pick<ModelFlags, 'device' | 'dtype' | 'cacheDtype' | 'activationDtype' | 'threads'>,
    JsonFlag {
  model: string;
  repetitions: number;
  prompt: number;
}

/** Adds the subcommand. */
export function addBenchStartup(bench: Command, signal: AbortSignal): void {
  const startup = bench
    .command('startup')
    .description('Seconds until a model can be used, and until its first token.')
    .requiredOption('-m, --model <dir>', 'checkpoint folder')
    .option('--prompt <n>', 'tokens of the first prompt', integer(1, 65536), 32)
    .option('--repetitions <n>', 'how often it is loaded', integer(1, 1000), 3);
  addJsonFlag(addPlacementFlags(startup)).action((flags: StartupFlags) => run(flags, signal));
}

async function run(flags: StartupFlags, signal: AbortSignal): Promise<void> {
  const {
    model: dir,
    device,
    dtype,
    cacheDtype,
    activationDtype,
    threads,
    repetitions,
    prompt: promptTokens,
    json,
  } = flags;
  const results: StartupResult[] = [];
  const lines: Promise<void>[] = [];
  await benchStartup(
    { dir, device, dtype, cacheDtype, activationDtype, threads, repetitions, promptTokens, signal },
    (result) => {
      results.push(result);
      const { bytes, loadMs, weightsMs, bytesPerSecond, firstTokenMs } = result;
      const seconds = (ms: number) => (ms / 1000).toFixed(2);
      const gigabytes = (n: number) => (n / 1e9).toFixed(2);
      const rate = `${gigabytes(bytes)} GB in ${seconds(weightsMs)} s (${gigabytes(bytesPerSecond)} GB/s)`;
      const line = `usable after ${seconds(loadMs)} s, of which weights ${rate}; first token ${firstTokenMs.toFixed(0)} ms later`;
      if (!json) lines.push(print(`${line}\n`));
    },
  );
  await Promise.all(lines);
  const about = await circumstances(device === 'auto' ? 'cuda:0' : device);
  if (json) await print(`${JSON.stringify({ ...about, results })}\n`);
  else note(`${results[0]?.device.name} (${results[0]?.device.path}), ${about.date}, ${about.command}`);
}
