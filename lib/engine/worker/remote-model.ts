// engine/worker/remote-model.ts - a model in a worker thread of its own, to its users the same as one in their thread.
import { MlaError } from '../../errors';
import type { ChatMessage } from '../../text';
import { onAbort } from '../abort-listeners';
import type { ChatOptions, Generation, Model, ModelInfo, Sequence, SignalOptions, TemplateOptions } from '../api';
import type { LoadOptions } from '../load';
import { CHAT_OPTIONS } from '../model';
import type { CompleteOptions, GenerateOptions, ScoreOptions } from '../options';
import type { EngineStats, Result, Score } from '../result';
import { GENERATE_OPTIONS, planSettings, readOptions } from '../settings';
import { ModelThread } from './model-thread';
import { MODEL, type NewSequence } from './protocol';
import { RemoteObject } from './remote-object';
import { RemoteSequence } from './remote-sequence';

/** A {@link Model} in a worker thread: every method is a message to the model there. */
export class RemoteModel extends RemoteObject implements Model {
  private disposed: Promise<void> | null = null;

  private constructor(
    thread: ModelThread,
    readonly info: ModelInfo,
  ) {
    super(thread, MODEL);
  }

  /**
   * Starts a thread and loads the model in it; the options have been checked.
   * Rejects as loadModel does, or with ERR_WORKER_LOST; the thread has ended then.
   */
  static async load(dir: string, options: LoadOptions): Promise<RemoteModel> {
    const { onProgress, signal, ...plain } = options;
    // What a caller's function throws, and the reason of a caller's signal, do not cross: they end the loading from here.
    let ended: { reason: unknown } | null = null;
    const endWith = (reason: unknown) => {
      ended ??= { reason };
      thread.abortLoading();
    };
    const thread = new ModelThread({ dir, options: plain, progress: onProgress !== undefined }, (progress) => {
      try {
        if (ended === null) onProgress?.(progress);
      } catch (error) {
        endWith(error);
      }
    });
    const stopListening = onAbort(signal, () => endWith(signal?.reason));
    try {
      const info = await thread.loaded();
      if (ended !== null) throw ended;
      return new RemoteModel(thread, info);
    } catch (error) {
      await thread.end();
      throw ended === null ? error : (ended as { reason: unknown }).reason;
    } finally {
      stopListening();
    }
  }

  generate(prompt: string | readonly number[], options?: GenerateOptions): Generation {
    this.thread.checkOpen();
    this.check(readOptions(options, GENERATE_OPTIONS));
    return this.open('generate', prompt, options);
  }

  chat(messages: readonly ChatMessage[], options?: ChatOptions): Generation {
    this.thread.checkOpen();
    this.check(readOptions(options, CHAT_OPTIONS));
    return this.open('chat', messages, options);
  }

  complete(prompt: string | readonly number[], options?: CompleteOptions): Promise<Result[]> {
    return this.call('complete', [prompt], options ?? {}) as Promise<Result[]>;
  }

  score(prompt: string | readonly number[], options?: ScoreOptions): Promise<Score> {
    return this.call('score', [prompt], options ?? {}) as Promise<Score>;
  }

  async createSequence(): Promise<Sequence> {
    return this.sequence(await this.call('createSequence', []));
  }

  async restore(path: string, options?: SignalOptions): Promise<Sequence> {
    return this.sequence(await this.call('restore', [path], options ?? {}));
  }

  encode(text: string): Promise<readonly number[]> {
    return this.call('encode', [text]) as Promise<readonly number[]>;
  }

  encodeChat(messages: readonly ChatMessage[], options?: TemplateOptions): Promise<readonly number[]> {
    return this.call('encodeChat', [messages], options) as Promise<readonly number[]>;
  }

  decode(ids: readonly number[]): Promise<string> {
    return this.call('decode', [ids]) as Promise<string>;
  }

  stats(): Promise<EngineStats> {
    return this.call('stats', []) as Promise<EngineStats>;
  }

  dispose(): Promise<void> {
    this.disposed ??= this.thread.dispose(new MlaError('ERR_DISPOSED', 'The model has been disposed.'));
    return this.disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  private sequence(made: unknown): Sequence {
    return new RemoteSequence(this.thread, made as NewSequence, (options) =>
      this.check(readOptions(options, GENERATE_OPTIONS)),
    );
  }

  /** Wrong options throw here, as they do where the model is in this thread. The worker checks again, and for use. */
  private check(given: Parameters<typeof planSettings>[0]): void {
    planSettings(given, { vocabSize: this.info.vocabSize, eosIds: this.info.eosIds, defaults: {} });
  }
}
