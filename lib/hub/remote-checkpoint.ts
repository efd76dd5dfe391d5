// hub/remote-checkpoint.ts - the layout of a model on the Hub, by a few hundred kilobytes of it: config.json, the index
// and the headers of its files.
import { describeCheckpoint, type ModelLayout, resolveLayout } from '../checkpoint';
import { MlaError } from '../errors';
import { firstBytes, type HubClient } from './client';
import type { Repository } from './repository';

/** Reads and checks everything but the weights. Rejects with ERR_HUB and with what a folder's checks reject with. */
export async function describeRemote(
  client: HubClient,
  repository: Repository,
  onFile?: (done: number, total: number) => void,
): Promise<ModelLayout> {
  const name = `${repository.id}@${repository.revision}`;
  const open = async (file: string, start: number, length: number, maxBytes: number) =>
    client.retrying(async () => {
      const body = await client.open(repository, file, start, length);
      if (body === null) return null;
      if (body.start !== start || body.size > maxBytes) {
        throw new MlaError('ERR_HUB', `${name}/${file}: the Hub gave ${body.size} bytes, more than are to be read.`);
      }
      return { bytes: await firstBytes(body.chunks, length), size: body.size };
    });
  const described = await describeCheckpoint(
    {
      name,
      read: async (file, maxBytes) => (await open(file, 0, maxBytes, maxBytes))?.bytes ?? null,
      range: async (file, start, length) => {
        const found = await open(file, start, length, Number.MAX_SAFE_INTEGER);
        if (found === null)
          throw new MlaError('ERR_CHECKPOINT', `${name}: found no "${file}", expected every file of the index.`);
        return found;
      },
    },
    onFile,
  );
  return resolveLayout(described);
}
