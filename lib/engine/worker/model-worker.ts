// engine/worker/model-worker.ts - runs in a worker thread: loads the model there and answers for it.
import { parentPort, workerData } from 'node:worker_threads';
import { MlaError } from '../../errors';
import { loadModel } from '../load';
import { ModelHost } from './model-host';
import { packError } from './packed-error';
import { LOADING, type Reply, type Request, type WorkerStart } from './protocol';

if (parentPort === null)
  throw new MlaError('ERR_INTERNAL', 'model-worker is not a program: it runs in a worker thread.');
const port = parentPort;
const { dir, options, progress } = workerData as WorkerStart;

async function main(): Promise<void> {
  const stop = new AbortController();
  const abort = (request: Request) => {
    if (request.kind === 'abort') stop.abort();
  };
  port.on('message', abort);
  try {
    const model = await loadModel(dir, {
      ...options,
      signal: stop.signal,
      onProgress: progress
        ? (progress) => port.postMessage([{ kind: 'progress', progress }] satisfies Reply[])
        : undefined,
    });
    const host = new ModelHost(model, (replies) => port.postMessage(replies));
    port.on('message', (request: Request) => host.take(request));
    port.postMessage([{ kind: 'loaded', info: model.info }] satisfies Reply[]);
  } catch (error) {
    port.postMessage([{ kind: 'failed', id: LOADING, error: packError(error) }] satisfies Reply[]);
  } finally {
    port.off('message', abort);
  }
}

void main();
