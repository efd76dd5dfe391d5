// fake-model.ts - a model without mathematics, with the rules of the real one: sequences take rows and pages, who is not
// in a step is parked and must be given its next token, a finished sequence gives -1, a failed step spoils its sequences.
// Its cache has the real pages (lib/cache) and a memory in which a row is the token it belongs to. The next token is a
// function of all tokens before it, read back through the pages, and of the seed: so any mistake in the order of tokens,
// and any page that is shared, copied, taken over or given away wrongly, shows in the text.
import { KeptPages, PAGE_TOKENS, PagePool, PrefixIndex, TextPages } from '../../lib/cache';
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
  prefixCache?: boolean;
}

/** A default next token: any of 0..255, by everything that came before. */
export function hashNext(tokens: readonly number[], sampling: SamplingSettings): number {
  let hash = sampling.seed;
  for (const token of tokens) hash = (Math.imul(hash ^ token, 0x01000193) + 0x9e37) >>> 0;
  return hash % 256;
}

/** What a row holds that nobody has written. */
const POISON = -1;

class FakeSequence implements SequenceHandle {
  disposed = false;
  failed = false;
  live = false;
  finished = false;
  /** the token sampled last, which the next decode step feeds */
  next = -1;
  sampling: SamplingSettings | null = null;

  constructor(
    readonly id: number,
    readonly text: TextPages,
    private readonly model: FakeModel,
  ) {}

  get length(): number {
    return this.text.length;
  }

  setSampling(settings: SamplingSettings): void {
    if (this.live) throw new Error('fake: sampling set while it is decoded');
    this.sampling = settings;
  }

  begin(tokens: readonly number[], kept: KeptPages | null, salt: string): number {
    return this.text.begin(tokens, kept, salt);
  }

  keep(): KeptPages {
    return this.text.keep();
  }

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.text.release();
    this.model.open.delete(this);
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
  readonly pool: PagePool;
  readonly index: PrefixIndex | null;
  /** rows [pages, 64]: the token each belongs to */
  readonly memory: Int32Array;
  private readonly next: NonNullable<FakeOptions['next']>;
  private readonly files = new Map<string, { tokens: readonly number[]; rows: number; pages: Int32Array[] }>();
  private tail: Promise<unknown> = Promise.resolve();
  private ids = 0;

  constructor(options: FakeOptions = {}) {
    this.context = options.context ?? 4096;
    this.maxSequences = options.maxSequences ?? 8;
    this.config = { vocab_size: options.vocab ?? 300 };
    this.pool = new PagePool(options.pages ?? Math.ceil(this.context / PAGE_TOKENS) * this.maxSequences);
    this.index = options.prefixCache === false ? null : new PrefixIndex(this.pool);
    this.memory = new Int32Array(this.pool.total * PAGE_TOKENS).fill(POISON);
    this.next = options.next ?? hashNext;
    this.generationDefaults = options.generationDefaults ?? {};
  }

  get pagesHeld(): number {
    return this.pool.held;
  }

  pages() {
    return this.pool.stats();
  }

  openSequence(): SequenceHandle {
    if (this.open.size >= this.maxSequences) throw new MlaError('ERR_STATE', 'fake: all sequences are open');
    const sequence = new FakeSequence(this.ids++, new TextPages(this.pool, this.index), this);
    this.open.add(sequence);
    return sequence;
  }

  step(entries: StepEntry[]): Promise<StepResult[]> {
    if (this.disposed) throw new MlaError('ERR_DISPOSED', 'fake: disposed');
    if (entries.length === 0) throw new Error('fake: empty step');
    const index = this.steps.length;
    this.refuse(index);
    const sequences = entries.map(({ sequence }) => sequence as FakeSequence);
    if (new Set(sequences).size !== sequences.length) throw new Error('fake: a sequence twice in a step');
    let missing = 0;
    for (const [i, { tokens, sample = true }] of entries.entries()) {
      const sequence = sequences[i] as FakeSequence;
      if (sequence.disposed || sequence.failed) throw new Error('fake: a sequence that is gone');
      if (tokens === undefined && !sequence.live) throw new Error('fake: nothing to continue from');
      if (tokens !== undefined && tokens.length === 0) throw new Error('fake: no tokens');
      const length = sequence.length + (tokens?.length ?? 1);
      if (length > this.context) throw new MlaError('ERR_CONTEXT_LENGTH', 'fake: too long');
      missing += sequence.text.missing(this.rowsAhead(length, sample));
    }
    if (missing > this.pool.available) {
      this.refusals++;
      throw new MlaError('ERR_NO_PAGES', 'fake: no pages');
    }
    this.steps.push({ entries: entries.map(({ sequence, tokens }) => [sequence.id, tokens?.length ?? 'decode']) });
    for (const sequence of this.open) if (!sequences.includes(sequence)) sequence.live = false;
    const written: number[] = [];
    const results = entries.map((entry, i) => this.advance(sequences[i] as FakeSequence, entry, written));
    const lengths = sequences.map(({ length }) => length);
    this.stepsInFlight++;
    this.maxStepsInFlight = Math.max(this.maxStepsInFlight, this.stepsInFlight);
    const gate = this.gate(index);
    const before = this.tail;
    const done = (async () => {
      await before;
      try {
        await gate;
        for (const [i, sequence] of sequences.entries()) {
          const { token } = results[i] as StepResult;
          if (sequence.disposed || (token < 0 && entries[i]?.sample !== false)) continue;
          sequence.text.confirm(lengths[i] as number, token < 0 ? null : token);
          sequence.text.publish();
        }
        return results;
      } catch (error) {
        for (const sequence of [...sequences, ...this.open]) if (sequence.length > 0) sequence.failed = true;
        for (const row of written) this.memory[row] = POISON;
        this.index?.clear();
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

  async save(path: string, tokens: readonly number[], kept: KeptPages | null): Promise<void> {
    const pages = (kept?.pages ?? []).map((page) => this.memory.slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS));
    this.files.set(path, { tokens, rows: kept?.tokens.length ?? 0, pages });
  }

  async restore(path: string) {
    const file = this.files.get(path);
    if (file === undefined) throw new MlaError('ERR_FILE', 'fake: no such file');
    const { tokens, rows, pages: contents } = file;
    const pages = this.pool.take(contents.length);
    for (const [i, page] of pages.entries()) this.memory.set(contents[i] as Int32Array, page * PAGE_TOKENS);
    const kept = rows === 0 ? null : new KeptPages(this.pool, tokens.slice(0, rows), pages);
    this.pool.releaseAll(pages);
    return { tokens, kept };
  }

  /** Rows there must be pages for: those written now and, where a token is sampled, its own. */
  private rowsAhead(length: number, sample: boolean): number {
    return sample ? Math.min(length + 1, this.context) : length;
  }

  private advance(sequence: FakeSequence, { tokens, sample = true }: StepEntry, written: number[]): StepResult {
    const nothing: StepResult = { token: -1, logprob: Number.NaN, top: [], finished: null };
    const { text } = sequence;
    const start = text.length;
    const held = text.pages.length;
    const copy = text.grow(this.rowsAhead(start + (tokens?.length ?? 1), sample));
    if (copy !== null)
      this.memory.copyWithin(copy[1] * PAGE_TOKENS, copy[0] * PAGE_TOKENS, (copy[0] + 1) * PAGE_TOKENS);
    for (const page of text.pages.slice(held)) this.memory.fill(POISON, page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS);
    const fed = tokens ?? (sequence.finished ? [] : [sequence.next]);
    for (let i = 0; i < fed.length; i++) {
      const row = this.rowOf(text, start + i);
      this.memory[row] = fed[i] as number;
      written.push(row);
    }
    if (tokens === undefined) text.advance();
    else {
      text.append(tokens);
      text.publish();
      sequence.finished = false;
    }
    sequence.live = tokens === undefined || sample;
    if (!sequence.live || sequence.finished) return nothing;
    const sampling = sequence.sampling as SamplingSettings;
    const all = this.read(text);
    const token = this.next(all, sampling);
    sequence.next = token;
    const finished = this.ends(all.length + 1, token, sampling);
    sequence.finished = finished !== null;
    const top = Array.from({ length: sampling.top ?? 0 }, (_, k) => ({ id: (token + k) % 256, logprob: -k - 1 }));
    return { token, logprob: -token / 256, top, finished };
  }

  private ends(length: number, token: number, sampling: SamplingSettings): StepResult['finished'] {
    if (sampling.stopIds.includes(token) && length > (sampling.minLength ?? 0)) return 'stop';
    return length >= sampling.maxLength ? 'length' : null;
  }

  /** The tokens of a text, as its rows have them. */
  private read(text: TextPages): number[] {
    const all: number[] = [];
    for (const [i, page] of text.pages.entries()) {
      const count = Math.min(PAGE_TOKENS, text.length - i * PAGE_TOKENS);
      for (let row = page * PAGE_TOKENS; row < page * PAGE_TOKENS + count; row++) all.push(this.memory[row] as number);
    }
    return all;
  }

  private rowOf(text: TextPages, position: number): number {
    const page = text.pages[Math.floor(position / PAGE_TOKENS)] as number;
    return page * PAGE_TOKENS + (position % PAGE_TOKENS);
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
