// make-model.ts - a public Model over the fake one. Its text is one token per byte of UTF-8, so most characters beyond
// ASCII take several tokens.
import type { ModelInfo } from '../../lib/engine/api';
import { LocalModel, type ModelText } from '../../lib/engine/model';
import type { TextStream } from '../../lib/engine/step-model';
import { FakeModel, type FakeOptions } from './fake-model';

export const EOS = 256;

class ByteStream implements TextStream {
  private readonly decoder = new TextDecoder();

  push(id: number): string {
    return id < 256 ? this.decoder.decode(Uint8Array.of(id), { stream: true }) : '';
  }

  end(): string {
    return this.decoder.decode();
  }
}

export const byteText: ModelText = {
  encodePrompt: async (text) => [...Buffer.from(text)],
  encodeMore: async (text) => [...Buffer.from(text)],
  encodeChat: async (messages) => [...Buffer.from(messages.map(({ role, content }) => `${role}:${content};`).join(''))],
  stream: () => new ByteStream(),
  dispose: async () => {},
};

export interface Made {
  model: LocalModel;
  fake: FakeModel;
}

export function makeModel(
  options: FakeOptions & { text?: ModelText | null; prefillChunk?: number; info?: Partial<ModelInfo> } = {},
): Made {
  const fake = new FakeModel(options);
  const text = options.text === undefined ? byteText : options.text;
  const info = {
    directory: 'fake',
    modelType: 'deepseek_v2',
    layers: 1,
    vocabSize: fake.config.vocab_size,
    context: fake.context,
    maxSequences: fake.maxSequences,
    hasTokenizer: text !== null,
    hasChatTemplate: text !== null,
    loadMs: fake.loadMs,
    eosIds: options.eosIds ?? [EOS],
    ...options.info,
  } as ModelInfo;
  return { model: new LocalModel({ model: fake, text, info, prefillChunk: options.prefillChunk }), fake };
}

/** A `next` that writes `text` and then ends, whatever the prompt was. */
export function saying(text: string, promptLength: number): (tokens: readonly number[]) => number {
  const bytes = Buffer.from(text);
  return (tokens) => bytes[tokens.length - promptLength] ?? EOS;
}

/** The error that a promise rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('expected a rejection');
}
