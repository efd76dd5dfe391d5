// encode-worker.ts - runs in a worker thread: answers texts with their token ids.
import { parentPort, workerData } from 'node:worker_threads';
import { MlaError } from '../errors';
import type { EncodeReply, EncodeRequest, EncodeThreadData } from './encode-thread';
import { Encoder } from './encoder';
import { TokenTable } from './token-table';
import { parseTokenizerSpec } from './tokenizer-spec';

if (parentPort === null)
  throw new MlaError('ERR_INTERNAL', 'encode-worker is not a program: it runs in a worker thread.');
const port = parentPort;
const { source, config } = workerData as EncodeThreadData;
const spec = parseTokenizerSpec(source, config);
const encoder = new Encoder(spec, new TokenTable(spec.vocabSize, spec.vocab, spec.added));

port.on('message', ({ parts, special }: EncodeRequest) => {
  try {
    const ids = Int32Array.from(encoder.encode(parts, special));
    port.postMessage({ ids } satisfies EncodeReply, [ids.buffer as ArrayBuffer]);
  } catch (error) {
    const code = error instanceof MlaError ? error.code : 'ERR_INTERNAL';
    port.postMessage({ code, message: error instanceof Error ? error.message : 'unknown error' } satisfies EncodeReply);
  }
});
port.postMessage('ready' satisfies EncodeReply);
