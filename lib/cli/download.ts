// cli/download.ts - mla download: a model of the Hub into the cache that Hugging Face's tools share.
import type { Command } from 'commander';
import { downloadModel, HubClient, parseRepository } from '../hub';
import { UsageError } from './failure';
import { addJsonFlag, type JsonFlag } from './flags';
import { ByteBar, note, print, size } from './output';

interface DownloadFlags extends JsonFlag {
  revision?: string;
}

/** Adds the command. */
export function addDownload(program: Command, signal: AbortSignal): void {
  const command = program
    .command('download')
    .description(
      'Brings a model of the Hub into the cache, where -m org/name finds it; started again, it goes on where it was. ' +
        'HF_HOME says where the cache is, HF_TOKEN who asks.',
    )
    .argument('<model>', 'org/name or org/name@revision')
    .option('--revision <name>', 'branch, tag or commit (default: main)');
  addJsonFlag(command).action((model: string, flags: DownloadFlags) => download(model, flags, signal));
}

async function download(model: string, flags: DownloadFlags, signal: AbortSignal): Promise<void> {
  const repository = parseRepository(flags.revision === undefined ? model : `${model}@${flags.revision}`);
  if (repository === null)
    throw new UsageError(`"${model}" is no model of the Hub; expected org/name or org/name@revision.`);
  const bar = new ByteBar('downloading');
  const began = performance.now();
  try {
    const onProgress = ({ doneBytes, totalBytes }: { doneBytes: number; totalBytes: number }) =>
      bar.set(doneBytes, totalBytes);
    const got = await downloadModel(new HubClient({ signal }), repository, { onProgress, signal });
    bar.stop();
    await print(flags.json ? `${JSON.stringify(got)}\n` : `${got.folder}\n`);
    const seconds = (performance.now() - began) / 1000;
    const rate = got.fetchedBytes > 0 ? `, ${size(got.fetchedBytes / seconds)}/s` : '';
    if (!flags.json) note(`${got.files} files, ${size(got.bytes)}, of which ${size(got.fetchedBytes)} came now${rate}`);
  } finally {
    bar.stop();
  }
}
