// fake-model.ts - a model without mathematics, with the rules of the real one: sequences take rows and pages, who is not
// in a step is parked and must be given its next token, a finished sequence gives -1, a failed step spoils its sequences.
// The next token is a function of all tokens before it (and of the seed), so any mistake in the order of tokens shows.
import type { EngineModel, SamplingSettings, SequenceHandle, StepEntry, StepResult } from '../../lib/engine/step-model';
import { MlaError } from '../../lib/errors';

export interface FakeOptions {
  context?: number;
  maxSequences?: number;
  pages?: number;
  vocab?: number;
  eosIds?: number[];
  /** The next token after `tokens`. */
  next?: (tokens: readonly number[], sampling: SamplingSettings) => number;
  generationDefaults?: EngineModel['generationDefaults'];
}

/** A default next token: any of 0..255, by everything that came before. */
export function hashNext(tokens: readonly number[], sampling: SamplingSettings): number {
  let hash = sampling.seed;
  for (const token of tokens) hash = (Math.imul(hash ^ token, 0x01000193) + 0x9e37) >>> 0;
  return hash % 256;
}

const PAGE = 64;

class FakeSequence implements SequenceHandle {
  disposed = false;
  failed = false;
  /** all tokens, the last one perhaps not in the cache yet */
  readonly tokens: number[] = [];
  length = 0;
  pages = 0;
  live = false;
  finished = false;
  sampling: SamplingSettings | null = null;

  constructor(
    readonly id: number,
    private readonly model: FakeModel,
  ) {}

  setSampling(settings: SamplingSettings): void {
    this.sampling = settings;
  }

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.model.released(this);
  }
}

/** One step as the fake saw it. */
export interface SeenStep {
  /** [id of the sequence, tokens it brought or 'decode'] */
  entries: [number, number | 'decode'][];
}

export class FakeModel implements EngineModel {
  readonly context: number;
  readonly maxSequences: number;
  readonly config: { vocab_size: number };
  readonly loadMs = 12;
  readonly generationDefaults: EngineModel['generationDefaults'];
  readonly steps: SeenStep[] = [];
  readonly open = new Set<FakeSequence>();
  disposed = false;
  stepsInFlight = 0;
  scoring = 0;
  /** Work in flight when dispose was called. */
  busyAtDispose = 0;
  maxStepsInFlight = 0;
  refusals = 0;
  /** Steps wait here before they resolve; replace it to hold or fail them. `index` counts steps from 0. */
  gate: (index: number) => Promise<void> = () => new Promise((resolve) => setImmediate(resolve));
  /** Called before a step is enqueued; may throw. */
  refuse: (index: number) => void = () => {};
  private readonly next: NonNullable<FakeOptions['next']>;
  private readonly pagesTotal: number;
  private tail: Promise<unknown> = Promise.resolve();
  private ids = 0;

  constructor(options: FakeOptions = {}) {
    this.context = options.context ?? 4096;
    this.maxSequences = options.maxSequences ?? 8;
    this.config = { vocab_size: options.vocab ?? 300 };
    this.pagesTotal = options.pages ?? Math.ceil(this.context / PAGE) * this.maxSequences;
    this.next = options.next ?? hashNext;
    this.generationDefaults = options.generationDefaults ?? {};
  }

  get pagesHeld(): number {
    return [...this.open].reduce((sum, { pages }) => sum + pages, 0);
  }

  pages() {
    const held = this.pagesHeld;
    return { total: this.pagesTotal, free: this.pagesTotal - held, cached: 0, held };
  }

  openSequence(): SequenceHandle {
    if (this.open.size >= this.maxSequences) throw new MlaError('ERR_STATE', 'fake: all sequences are open');
    const sequence = new FakeSequence(this.ids++, this);
    this.open.add(sequence);
    return sequence;
  }

  released(sequence: FakeSequence): void {
    this.open.delete(sequence);
  }

  step(entries: StepEntry[]): Promise<StepResult[]> {
    if (this.disposed) throw new MlaError('ERR_DISPOSED', 'fake: disposed');
    if (entries.length === 0) throw new Error('fake: empty step');
    const index = this.steps.length;
    this.refuse(index);
    const sequences = entries.map(({ sequence }) => sequence as FakeSequence);
    if (new Set(sequences).size !== sequences.length) throw new Error('fake: a sequence twice in a step');
    let missing = 0;
    for (const [i, { tokens }] of entries.entries()) {
      const sequence = sequences[i] as FakeSequence;
      if (sequence.disposed || sequence.failed) throw new Error('fake: a sequence that is gone');
      if (tokens === undefined && !sequence.live) throw new Error('fake: nothing to continue from');
      if (tokens !== undefined && tokens.length === 0) throw new Error('fake: no tokens');
      const length = sequence.length + (tokens?.length ?? 1);
      if (length > this.context) throw new MlaError('ERR_CONTEXT_LENGTH', 'fake: too long');
      missing += Math.ceil(Math.min(length + 1, this.context) / PAGE) - sequence.pages;
    }
    if (missing > this.pagesTotal - this.pagesHeld) {
      this.refusals++;
      throw new MlaError('ERR_NO_PAGES', 'fake: no pages');
    }
    this.steps.push({ entries: entries.map(({ sequence, tokens }) => [sequence.id, tokens?.length ?? 'decode']) });
    for (const sequence of this.open) if (!sequences.includes(sequence)) sequence.live = false;
    const results = entries.map((entry, i) => this.advance(sequences[i] as FakeSequence, entry));
    this.stepsInFlight++;
    this.maxStepsInFlight = Math.max(this.maxStepsInFlight, this.stepsInFlight);
    const gate = this.gate(index);
    const before = this.tail;
    const done = (async () => {
      await before;
      try {
        await gate;
        return results;
      } catch (error) {
        for (const sequence of [...sequences, ...this.open]) if (sequence.length > 0) sequence.failed = true;
        throw error;
      } finally {
        this.stepsInFlight--;
      }
    })();
    this.tail = done.catch(() => {});
    return done;
  }

  async score(tokens: readonly number[], { top = 0, logits = false } = {}) {
    this.scoring++;
    await this.gate(-1);
    this.scoring--;
    return {
      logprobs: Float32Array.from(tokens, (_, i) => (i === 0 ? Number.NaN : -i)),
      top: tokens.map((_, i) => (i === 0 ? [] : Array.from({ length: top }, (_, k) => ({ id: k, logprob: -k - 1 })))),
      logits: logits ? new Float32Array(this.config.vocab_size).fill(0.5) : null,
    };
  }

  async dispose(): Promise<void> {
    this.disposed = true;
    this.busyAtDispose = this.stepsInFlight + this.scoring;
    await this.tail;
  }

  private advance(sequence: FakeSequence, { tokens, sample = true }: StepEntry): StepResult {
    const nothing: StepResult = { token: -1, logprob: Number.NaN, finished: null };
    if (tokens === undefined) sequence.length++;
    else {
      // Given tokens follow what is in the cache; a sampled token that is not in it is replaced.
      sequence.tokens.length = sequence.length;
      sequence.tokens.push(...tokens);
      sequence.length += tokens.length;
      sequence.finished = false;
    }
    sequence.pages = Math.ceil(Math.min(sequence.length + 1, this.context) / PAGE);
    sequence.live = tokens === undefined || sample;
    if (!sequence.live || sequence.finished) return nothing;
    const sampling = sequence.sampling as SamplingSettings;
    const token = this.next(sequence.tokens, sampling);
    sequence.tokens.push(token);
    const finished = sampling.stopIds.includes(token)
      ? 'stop'
      : sequence.tokens.length >= sampling.maxLength
        ? 'length'
        : null;
    sequence.finished = finished !== null;
    return { token, logprob: -token / 256, finished };
  }
}

/** What a request must give, computed without an engine. */
export function expectedTokens(
  prompt: readonly number[],
  { seed = 0, maxTokens = 256, stopIds = [] as number[], next = hashNext } = {},
): number[] {
  const all = [...prompt];
  const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, seed, stopIds, maxLength: prompt.length + maxTokens };
  while (all.length < sampling.maxLength) {
    const token = next(all, sampling);
    all.push(token);
    if (stopIds.includes(token)) break;
  }
  return all.slice(prompt.length);
}
