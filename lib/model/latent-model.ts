// model/latent-model.ts - a loaded model: it owns weights and latent cache, runs steps of a batch of sequences, and
// scores texts. It never waits: a step is enqueued and its results are promised, so the next one can follow at once.

import { type KeptPages, type PageStats, PrefixIndex, TextPages } from '../cache';
import { type GenerationSettings, openCheckpoint, type ResolvedConfig } from '../checkpoint';
import { invalidArg, MlaError } from '../errors';
import type { Device, DeviceInfo, Graph, Reader, Stream } from '../native';
import { type Built, buildMachine, clearRows, originOf, type WeightOrigin } from './build';
import { decodePass, type Machine } from './forward';
import type { MemoryPlan } from './memory-plan';
import { namedShape } from './named-shapes';
import { openModelDevice } from './open-device';
import { fillRandomWeights } from './random-weights';
import { ALL_FEATURES, clearSampling, featuresOf, type SamplingFeatures } from './sampling';
import { checkScore, type ScoreOptions, scoreTokens } from './score';
import { Sequence, type SequenceOwner } from './sequence';
import { layoutOf, restoreText, saveText } from './snapshot';
import { bucketOf, type CheckedStep, checkStep, type Expected, enqueueDecode, enqueuePrefill, parkRow } from './step';
import type { LatentModelOptions, ScoreResult, SequenceHandle, StepEntry, StepResult, TopToken } from './types';
import { Views } from './views';
import { GPU_STEP_TIMEOUT_MS, Watchdog } from './watchdog';

/** Numbers for monitoring. */
export interface ModelStats {
  pagesTotal: number;
  pagesFree: number;
  sequences: number;
  /** steps enqueued so far */
  steps: number;
  /** bytes of device memory held */
  allocatedBytes: number;
}

/** The sampling part of generation_config.json, in its own names. */
export type GenerationDefaults = { [K in keyof GenerationSettings]?: NonNullable<GenerationSettings[K]> };

/** The model class. Made by {@link LatentModel.load}; ended by dispose(). */
export class LatentModel implements AsyncDisposable {
  readonly #device: Device;
  readonly #built: Built;
  readonly #machine: Machine;
  readonly #attention: NonNullable<LatentModelOptions['attention']>;
  readonly #captures: boolean;
  readonly #owner: SequenceOwner;
  readonly #sequences = new Set<Sequence>();
  readonly #freeRows: number[];
  /** decode steps, by features and size of batch */
  readonly #graphs = new Map<number, { graph: Graph; views: Views }>();
  readonly #index: PrefixIndex | null;
  readonly #watchdog: Watchdog;
  /** what steps bring their results in: those that no step in flight has */
  readonly #resultReaders: ResultReader[] = [];
  #nextId = 1;
  #steps = 0;
  #disposed: Promise<void> | null = null;

  readonly config: ResolvedConfig;
  /** ids that end a text; empty when the checkpoint names none */
  readonly eosIds: readonly number[];
  /** what generation_config.json advises for sampling; what it does not say is absent */
  readonly generationDefaults: GenerationDefaults;
  /** tokens a sequence may have */
  readonly context: number;
  readonly maxSequences: number;
  readonly vocab: number;
  readonly deviceInfo: DeviceInfo;
  readonly memory: MemoryPlan;
  /** milliseconds that loading took */
  readonly loadMs: number;

  private constructor(device: Device, built: Built, options: LatentModelOptions, loadMs: number) {
    this.#device = device;
    this.#built = built;
    this.#machine = built.machine;
    this.#index = options.prefixCache === false ? null : new PrefixIndex(built.machine.cache.pool);
    this.deviceInfo = device.info();
    const limit = options.stepTimeout ?? (this.deviceInfo.kind === 'cuda' ? GPU_STEP_TIMEOUT_MS : 0);
    this.#watchdog = new Watchdog(limit, () => giveUp(device, limit));
    this.#attention = options.deterministic ? 'absorbed' : (options.attention ?? 'auto');
    this.#captures = options.graphs ?? true;
    this.config = built.machine.config;
    this.eosIds = this.config.eos_token_id;
    this.generationDefaults = Object.fromEntries(
      Object.entries(this.config.generation).filter(([, value]) => value !== null),
    );
    this.context = built.machine.limits.context;
    this.maxSequences = built.machine.limits.maxSequences;
    this.vocab = built.machine.dims.vocab;
    this.#freeRows = Array.from({ length: this.maxSequences }, (_, i) => i);
    const { maxTop } = built.machine.limits;
    const release = (sequence: Sequence) => this.#release(sequence);
    this.#owner = { context: this.context, vocab: this.vocab, maxTop, release };
    this.memory = built.memory;
    this.loadMs = loadMs;
  }

  /**
   * Opens and validates a model folder, plans its memory, and loads it. Rejects with a typed error that names what is
   * wrong (ERR_FILE, ERR_SAFETENSORS, ERR_CHECKPOINT, ERR_CONFIG, ERR_UNSUPPORTED_MODEL, ERR_OUT_OF_MEMORY, ...) or with the
   * signal's reason; nothing stays open or allocated then.
   */
  static async load(dir: string, options: LatentModelOptions = {}): Promise<LatentModel> {
    const start = performance.now();
    options.signal?.throwIfAborted();
    options.onProgress?.({ phase: 'open', loadedBytes: 0, totalBytes: 0 });
    const checkpoint = await openCheckpoint(dir);
    try {
      return await LatentModel.#build(await originOf(checkpoint), options, start);
    } finally {
      await checkpoint.close();
    }
  }

  /**
   * A model of a published shape (see named-shapes.ts) with random weights made on the device: for measurements, where
   * only the sizes count. Rejects as {@link load} does, with ERR_INVALID_ARG for a name that is not known.
   */
  static async random(shape: string, options: LatentModelOptions = {}): Promise<LatentModel> {
    const fill: WeightOrigin['fill'] = (device, stream, _, weights) => fillRandomWeights(device, stream, weights);
    const fingerprint = async () => `random weights of ${shape}`;
    return LatentModel.#build({ ...namedShape(shape), fill, fingerprint }, options, performance.now());
  }

  static async #build(origin: WeightOrigin, options: LatentModelOptions, start: number): Promise<LatentModel> {
    let device: Device | null = null;
    checkForm(options);
    try {
      device = openModelDevice(options.device ?? 'auto', options.threads ?? 0, options.deterministic ?? false);
      const built = await buildMachine(device, origin, options);
      const model = new LatentModel(device, built, options, performance.now() - start);
      options.onProgress?.({ phase: 'ready', loadedBytes: built.memory.weights, totalBytes: built.memory.weights });
      return model;
    } catch (error) {
      await device?.dispose();
      throw error;
    }
  }

  /** A new, empty sequence. @throws ERR_STATE when maxSequences are open, ERR_DISPOSED */
  openSequence(): SequenceHandle {
    this.#mustBeOpen();
    const row = this.#freeRows.shift();
    if (row === undefined) {
      throw new MlaError('ERR_STATE', `All ${this.maxSequences} sequences of this model are open; dispose one first.`);
    }
    const text = new TextPages(this.#machine.cache.pool, this.#index);
    const sequence = new Sequence(this.#nextId++, row, text, this.#owner);
    this.#sequences.add(sequence);
    return sequence;
  }

  /**
   * Enqueues one step: the running sequences decode one token, the others take their new tokens. Resolves, in the
   * order of `entries`, when the device has done it; may be called again before that.
   * @throws ERR_INVALID_ARG, ERR_STATE, ERR_CONTEXT_LENGTH or ERR_NO_PAGES before anything is enqueued
   */
  step(entries: readonly StepEntry[]): Promise<StepResult[]> {
    this.#mustBeOpen();
    const step = checkStep(this.#machine, entries, this.#owner);
    try {
      this.#enqueue(step);
      this.#steps += 1;
      return this.#results(step.expected);
    } catch (error) {
      this.#fail(step.expected.sequences);
      throw error;
    }
  }

  /**
   * Log-probabilities of every token given the ones before, with the likeliest alternatives of each position.
   * Rejects with ERR_INVALID_ARG, ERR_CONTEXT_LENGTH, ERR_NO_PAGES or the signal's reason.
   */
  async score(tokens: readonly number[], options: ScoreOptions = {}): Promise<ScoreResult> {
    this.#mustBeOpen();
    checkScore(this.#machine, tokens, options);
    const text = new TextPages(this.#machine.cache.pool, null);
    const sequence = new Sequence(this.#nextId++, -1, text, this.#owner);
    this.#sequences.add(sequence);
    try {
      return await scoreTokens(this.#machine, sequence, tokens, options, this.#attention, this.#watchdog);
    } finally {
      sequence.dispose();
    }
  }

  /** Writes tokens, and the rows that are kept of them, to a file. Rejects with ERR_FILE, ERR_DISPOSED or the signal's reason. */
  async save(path: string, tokens: readonly number[], kept: KeptPages | null, signal: AbortSignal): Promise<void> {
    this.#mustBeOpen();
    await saveText(this.#machine, layoutOf(this.#machine, this.#built.fingerprint), path, tokens, kept, signal);
  }

  /**
   * Reads what `save` wrote. Rejects with ERR_SNAPSHOT, ERR_FILE, ERR_CONTEXT_LENGTH, ERR_NO_PAGES, ERR_DISPOSED or the
   * signal's reason; no page is taken then.
   */
  async restore(path: string, signal: AbortSignal): Promise<{ tokens: readonly number[]; kept: KeptPages | null }> {
    this.#mustBeOpen();
    return restoreText(this.#machine, layoutOf(this.#machine, this.#built.fingerprint), path, signal);
  }

  /** The pages of the latent cache, by use. */
  pages(): PageStats {
    return this.#machine.cache.pool.stats();
  }

  stats(): ModelStats {
    const { pool } = this.#machine.cache;
    return {
      pagesTotal: pool.total,
      pagesFree: pool.available,
      sequences: this.#sequences.size,
      steps: this.#steps,
      allocatedBytes: this.#device.allocatedBytes(),
    };
  }

  /** Waits for enqueued work, then gives all memory back. Idempotent. */
  dispose(): Promise<void> {
    this.#disposed ??= this.#dispose();
    return this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #dispose(): Promise<void> {
    for (const sequence of [...this.#sequences]) sequence.dispose();
    try {
      await this.#watchdog.watch(this.#machine.stream.record().done);
    } catch {
      // a lost device has nothing to be waited for
    }
    for (const { graph, views } of this.#graphs.values()) {
      graph.dispose();
      views.dispose();
    }
    this.#graphs.clear();
    for (const { reader } of this.#resultReaders) reader.dispose();
    this.#built.dispose();
    await this.#device.dispose();
  }

  #mustBeOpen(): void {
    if (this.#disposed !== null) throw new MlaError('ERR_DISPOSED', 'This model has been disposed.');
  }

  #release(sequence: Sequence): void {
    if (!this.#sequences.delete(sequence)) return;
    if (sequence.live && this.#disposed === null) parkRow(this.#machine, sequence.row);
    sequence.live = false;
    // whoever gets these pages next is enqueued behind everything that still reads them
    sequence.text.release();
    if (sequence.row >= 0) {
      this.#freeRows.push(sequence.row);
      this.#freeRows.sort((a, b) => a - b);
    }
  }

  #enqueue(step: CheckedStep): void {
    const machine = this.#machine;
    if (this.#liveBeside(step.decode)) this.#park(new Set(step.decode));
    enqueueDecode(machine, step.decode, (bucket, features) => this.#decode(bucket, features));
    if (step.prefill.length > 0) enqueuePrefill(machine, step.prefill, this.#attention);
  }

  /** Whether rows are being decoded that are not in `decode`. Nearly every step decodes all sequences that are open. */
  #liveBeside(decode: readonly Sequence[]): boolean {
    if (this.#sequences.size === decode.length) return false;
    let live = 0;
    for (const sequence of this.#sequences) if (sequence.live) live += 1;
    return live > decode.length;
  }

  /** Makes rows padding that are being decoded and do not stay in the batch. */
  #park(stays: ReadonlySet<Sequence>): void {
    for (const sequence of this.#sequences) {
      if (!sequence.live || stays.has(sequence)) continue;
      parkRow(this.#machine, sequence.row);
      sequence.live = false;
    }
  }

  #decode(bucket: number, features: SamplingFeatures): void {
    if (this.#captures) {
      this.#graph(bucket, features).replay();
      return;
    }
    const views = new Views();
    try {
      decodePass(this.#machine, views, bucket, features);
    } finally {
      views.dispose();
    }
  }

  /** The captured decode step of a bucket with these features; made when it is first needed. */
  #graph(bucket: number, features: SamplingFeatures): Graph {
    const key = bucket * (ALL_FEATURES + 1) + features;
    const known = this.#graphs.get(key);
    if (known !== undefined) return known.graph;
    const views = new Views();
    try {
      const graph = this.#machine.stream.capture(() => decodePass(this.#machine, views, bucket, features));
      this.#graphs.set(key, { graph, views });
      return graph;
    } catch (error) {
      views.dispose();
      throw error;
    }
  }

  /**
   * A decode step of the rows 0 to `rows`, captured through what `wrap` makes of the model's stream, to be measured.
   * `sampled` reads the tokens that the last replay gave these rows. The caller disposes of it before the model.
   */
  captureDecode(
    rows: number,
    wrap: (stream: Stream) => Stream,
  ): {
    stream: Stream;
    graph: Graph;
    sampled: () => Promise<Pick<StepResult, 'token' | 'logprob'>[]>;
    dispose: () => void;
  } {
    const { stream, rows: state } = this.#machine;
    const views = new Views();
    const bucket = bucketOf(rows, this.maxSequences);
    try {
      const machine = { ...this.#machine, stream: wrap(stream) };
      const graph = stream.capture(() => decodePass(machine, views, bucket, featuresOf([])));
      const dispose = () => {
        graph.dispose();
        views.dispose();
      };
      const sampled = async () => {
        const [tokens, logprobs] = await Promise.all([stream.read(state.sampled), stream.read(state.logprobs)]);
        const of = new Float32Array(logprobs);
        return Array.from(new Int32Array(tokens, 0, rows), (token, row) => ({ token, logprob: of[row] as number }));
      };
      return { stream, graph, sampled, dispose };
    } catch (error) {
      views.dispose();
      throw error;
    }
  }

  #results(expected: Expected): Promise<StepResult[]> {
    const { stream, rows } = this.#machine;
    const results = this.#resultReaders.pop() ?? this.#makeReader();
    const read = results.reader.read();
    const reads = expected.mostTop > 0 ? [read, stream.read(rows.topIds), stream.read(rows.topLogprobs)] : [read];
    // Not an async function: a step has few turns to lose.
    return new Promise((resolve, reject) => {
      const failed = (error: unknown) => {
        results.reader.dispose(); // where the device hangs it never finishes
        reject(this.#failed(expected.sequences, error));
      };
      const done = ([, ...tops]: ArrayBufferLike[]) => {
        try {
          resolve(this.#take(expected, results, tops));
        } catch (error) {
          failed(error);
        }
      };
      this.#watchdog.tell(reads, done, failed);
    });
  }

  #makeReader(): ResultReader {
    const reader = this.#machine.stream.reader(this.#machine.rows.results);
    return { reader, ids: new Int32Array(reader.bytes), logprobs: new Float32Array(reader.bytes) };
  }

  /** What a step has brought, out of the memory that it was read into. */
  #take({ sequences, lengths, top }: Expected, read: ResultReader, tops: readonly ArrayBufferLike[]): StepResult[] {
    const { ids, logprobs } = read;
    const B = this.maxSequences;
    const { maxTop } = this.#machine.limits;
    const results = new Array<StepResult>(sequences.length);
    for (let i = 0; i < sequences.length; i++) {
      const sequence = sequences[i] as Sequence;
      const { row, text } = sequence;
      const likeliest = top[i] as number;
      const token = likeliest >= 0 ? (ids[row] as number) : -1;
      const end = token < 0 ? 0 : ids[B + row];
      // the device has made the row padding by itself; it need not be parked
      if (end !== 0) sequence.live = false;
      if (!sequence.disposed && (token >= 0 || likeliest < 0)) {
        text.confirm(lengths[i] as number, token < 0 ? null : token);
        sequence.publish();
      }
      results[i] = {
        token,
        logprob: token < 0 ? Number.NaN : (logprobs[2 * B + row] as number),
        top: token < 0 || likeliest === 0 ? NO_TOP : topOf(row, likeliest, maxTop, tops),
        finished: end === 1 ? 'stop' : end === 2 ? 'length' : null,
      };
    }
    this.#resultReaders.push(read);
    return results;
  }

  /** What a step fails with. */
  #failed(sequences: readonly Sequence[], error: unknown): unknown {
    try {
      this.#fail(sequences);
      return error;
    } catch (lost) {
      return lost;
    }
  }

  /** After a failed step nobody knows what the device did with these rows. */
  #fail(sequences: readonly Sequence[]): void {
    for (const sequence of sequences) {
      sequence.failed = true;
      sequence.live = false;
    }
    if (this.#disposed !== null) return;
    for (const sequence of this.#sequences) {
      if (sequence.live) sequence.failed = true;
      sequence.live = false;
    }
    this.#index?.clear();
    clearRows(this.#machine.stream, this.#machine.rows, this.#machine.limits);
    clearSampling(this.#machine);
  }
}

function giveUp(device: Device, ms: number): void {
  try {
    device.abandon(ms);
  } catch {
    // lost already, by another model on the same GPU
  }
}

/** @throws ERR_INVALID_ARG: only one form gives a token the same bits however many are new */
function checkForm({ attention, deterministic }: LatentModelOptions): void {
  if (deterministic && attention === 'expanded')
    throw invalidArg('attention', "'auto' or 'absorbed' where deterministic is true", attention);
}

/** Reads the results of a step (rows.results), which are two kinds of numbers. */
interface ResultReader {
  reader: Reader;
  ids: Int32Array;
  logprobs: Float32Array;
}

const NO_TOP: readonly TopToken[] = Object.freeze([]);

/** The first `count` of a row's likeliest ids, out of tables [maxSequences, maxTop]. */
function topOf(row: number, count: number, maxTop: number, tables: readonly ArrayBufferLike[]): TopToken[] {
  const [ids, logprobs] = tables as [ArrayBufferLike, ArrayBufferLike];
  const rowIds = new Int32Array(ids, row * maxTop * 4, count);
  const rowLogprobs = new Float32Array(logprobs, row * maxTop * 4, count);
  return Array.from(rowIds, (id, i) => ({ id, logprob: rowLogprobs[i] as number }));
}
