// engine/worker/remote-sequence.ts - a sequence of a model in a worker thread.
import { MlaError } from '../../errors';
import type { Generation, Sequence, SignalOptions } from '../api';
import type { GenerateOptions } from '../options';
import type { ModelThread } from './model-thread';
import type { NewSequence, SequenceState } from './protocol';
import { RemoteObject } from './remote-object';

/** A {@link Sequence} in the worker thread of its model: it knows what the thread has said last. */
export class RemoteSequence extends RemoteObject implements Sequence {
  private state: SequenceState;
  private ended: Promise<void> | null = null;

  /** @param check throws for options of generate that are wrong */
  constructor(
    thread: ModelThread,
    { target, state }: NewSequence,
    private readonly check: (options: GenerateOptions | undefined) => void,
  ) {
    super(thread, target);
    this.state = state;
    thread.watch(target, (changed) => {
      this.state = changed;
    });
  }

  get tokens(): readonly number[] {
    return this.state.tokens;
  }

  get cachedTokens(): number {
    return this.state.cachedTokens;
  }

  get disposed(): boolean {
    return this.ended !== null || this.thread.isClosed;
  }

  async append(prompt: string | readonly number[], options?: SignalOptions): Promise<void> {
    this.checkAlive();
    await this.call('append', [prompt], options ?? {});
  }

  generate(prompt: string | readonly number[], options?: GenerateOptions): Generation {
    this.checkAlive();
    this.check(options);
    return this.open('generate', prompt, options);
  }

  async fork(): Promise<Sequence> {
    this.checkAlive();
    return new RemoteSequence(this.thread, (await this.call('fork', [])) as NewSequence, this.check);
  }

  async save(path: string, options?: SignalOptions): Promise<void> {
    this.checkAlive();
    await this.call('save', [path], options ?? {});
  }

  dispose(): Promise<void> {
    this.ended ??= this.disposeOnce();
    return this.ended;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  private async disposeOnce(): Promise<void> {
    if (this.thread.isClosed) return; // it went with the model
    const given = this.call('dispose', []);
    await given.catch(() => {}); // only the end of the thread makes it fail, and that gives everything back
    this.thread.watch(this.target, null);
  }

  private checkAlive(): void {
    this.thread.checkOpen();
    if (this.ended !== null) throw new MlaError('ERR_DISPOSED', 'The sequence has been disposed.');
  }
}
