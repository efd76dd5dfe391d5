// engine/sequence.ts - a text that keeps its rows in the cache between generations. It holds tokens and pages; whatever
// is computed for it goes through the engine like any other request.
import { MlaError } from '../errors';
import type { Generation, Sequence, SignalOptions } from './api';
import type { GenerationOwner } from './generation';
import type { GenerateOptions } from './options';
import type { KeptPages } from './step-model';

/** What a sequence needs of its model. */
export interface SequenceHost {
  /** @throws what is wrong with the prompt; the ids come later. `first`: whether the text begins with it, then */
  encoder(prompt: unknown, first: () => boolean): () => Promise<readonly number[]>;
  /** @throws ERR_DISPOSED */
  checkAlive(): void;
  /** A generation whose prompt, all of it, `encode` gives; it ends with `signal` too. */
  generate(
    encode: () => Promise<readonly number[]>,
    options: unknown,
    signal: AbortSignal,
    owner: GenerationOwner,
  ): Generation;
  /** Brings a text into the cache. */
  prefill(tokens: readonly number[], kept: KeptPages | null, signal: AbortSignal): Promise<KeptPages>;
  save(path: string, tokens: readonly number[], kept: KeptPages | null, signal: AbortSignal): Promise<void>;
  signalOf(options: SignalOptions | undefined): AbortSignal | undefined;
}

/** A {@link Sequence} of a model in this thread. */
export class LocalSequence implements Sequence {
  #tokens: readonly number[];
  #kept: KeptPages | null;
  #busy: Promise<void> | null = null;
  readonly #disposing = new AbortController();

  constructor(
    private readonly host: SequenceHost,
    tokens: readonly number[] = [],
    kept: KeptPages | null = null,
  ) {
    this.#tokens = tokens;
    this.#kept = kept;
  }

  get tokens(): readonly number[] {
    return this.#tokens;
  }

  get cachedTokens(): number {
    return this.#kept?.tokens.length ?? 0;
  }

  get disposed(): boolean {
    return this.#disposing.signal.aborted;
  }

  async append(prompt: string | readonly number[], options?: SignalOptions): Promise<void> {
    const encode = this.#encoder(prompt);
    const signal = this.#signal(this.host.signalOf(options));
    const release = this.#take();
    try {
      const tokens = [...this.#tokens, ...(await encode())];
      signal.throwIfAborted();
      if (tokens.length > this.cachedTokens) this.#grow(tokens, await this.host.prefill(tokens, this.#kept, signal));
    } finally {
      release();
    }
  }

  generate(prompt: string | readonly number[], options?: GenerateOptions): Generation {
    const encode = this.#encoder(prompt);
    let release = () => {};
    const kept = () => this.#kept;
    return this.host.generate(
      async () => {
        this.#mustBeOpen();
        release = this.#take();
        return [...this.#tokens, ...(await encode())];
      },
      options,
      this.#disposing.signal,
      {
        get kept() {
          return kept();
        },
        grow: (tokens, rows) => this.#grow(tokens, rows),
        release: () => release(),
      },
    );
  }

  async fork(): Promise<Sequence> {
    this.#mustBeIdle();
    return new LocalSequence(this.host, this.#tokens, this.#kept?.share() ?? null);
  }

  async save(path: string, options?: SignalOptions): Promise<void> {
    this.#mustBeIdle();
    const signal = this.#signal(this.host.signalOf(options));
    signal.throwIfAborted();
    // Rows of its own: the sequence may go on, or go, while they are read.
    const kept = this.#kept?.share() ?? null;
    try {
      await this.host.save(path, this.#tokens, kept, signal);
    } finally {
      kept?.dispose();
    }
  }

  async dispose(): Promise<void> {
    if (!this.disposed) {
      this.#disposing.abort(disposedError());
      this.#kept?.dispose();
      this.#kept = null;
    }
    await this.#busy;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #grow(tokens: readonly number[], kept: KeptPages): void {
    if (this.disposed) {
      kept.dispose();
      return;
    }
    this.#kept?.dispose();
    this.#tokens = tokens;
    this.#kept = kept;
  }

  #encoder(prompt: unknown): () => Promise<readonly number[]> {
    this.#mustBeOpen();
    return this.host.encoder(prompt, () => this.#tokens.length === 0);
  }

  /** Ends with the sequence, and with what the caller gave. */
  #signal(given: AbortSignal | undefined): AbortSignal {
    const own = this.#disposing.signal;
    return given === undefined ? own : AbortSignal.any([given, own]);
  }

  /** One at a time. @returns what ends this turn; idempotent */
  #take(): () => void {
    this.#mustBeIdle();
    let end = () => {};
    this.#busy = new Promise((resolve) => {
      end = () => {
        this.#busy = null;
        end = () => {};
        resolve();
      };
    });
    return () => end();
  }

  #mustBeIdle(): void {
    this.#mustBeOpen();
    if (this.#busy !== null) {
      throw new MlaError(
        'ERR_STATE',
        'This sequence is busy with another generation; wait for its end, or fork the sequence before.',
      );
    }
  }

  #mustBeOpen(): void {
    this.host.checkAlive();
    if (this.disposed) throw disposedError();
  }
}

function disposedError(): MlaError {
  return new MlaError('ERR_DISPOSED', 'The sequence has been disposed.');
}
