// engine/engine.ts - who is in the batch. Every step combines all running sequences: one token for each that decodes,
// and prompt tokens, in chunks, for those that do not yet. Two steps are kept in flight, so the device never waits for
// the host: what a step sampled is read while the next one runs.
//
// Policy: admission in order of arrival; prompts share a token budget per step, first come first served; a request
// whose consumer is far behind is left out. When pages run out the youngest sequence gives its pages back and later
// starts again from the tokens it has; so does a sequence that a failed step of others may have spoiled (the same seed
// at the same position draws the same token).

import { MlaError } from '../errors';
import { onAbort } from './abort-listeners';
import type { EngineStats } from './result';
import type { SamplingSettings, SequenceHandle, StepEntry, StepModel, StepResult } from './step-model';

/** Steps in flight at most: the running one and its successor. */
const STEPS_IN_FLIGHT = 2;
/** Prompt tokens per step, over all sequences, unless the model is loaded with another prefillChunk. */
export const DEFAULT_PREFILL_CHUNK = 512;

/** What the engine asks of whoever wants tokens. None of the callbacks may call back into the engine. */
export interface EngineRequest {
  readonly prompt: readonly number[];
  readonly sampling: SamplingSettings;
  /** true while the consumer is far behind; call {@link Engine.wake} when it ends */
  readonly paused: boolean;
  /** the first part of the prompt goes to the device */
  onStart(): void;
  /** one sampled token; `finished` is not null for the last one. Returns whether more are wanted. */
  onToken(result: StepResult): boolean;
  /** the end of a request that gets no further tokens */
  onError(error: unknown): void;
}

/** A request in the engine's hands. */
export interface Ticket {
  /** Takes the request out and gives its pages back; no callback follows. Idempotent. */
  cancel(): void;
}

interface Task {
  readonly request: EngineRequest;
  sequence: SequenceHandle | null;
  /** what the cache must hold before the next token can be sampled: the prompt, after an eviction tokens too */
  input: readonly number[];
  /** how much of `input` has been enqueued */
  fed: number;
  /** tokens received */
  tokens: number[];
  /** tokens that steps in flight will bring */
  pending: number;
  /** whether the device holds its next token: it was sampled for in the step enqueued last */
  live: boolean;
  started: boolean;
  ended: boolean;
}

/** A place among the sequences for work beside the steps (scoring). */
interface Claim {
  grant(): void;
  refuse(error: unknown): void;
}

/** How a request ended. */
type Ending = 'completed' | 'aborted' | 'failed';

interface PlannedEntry {
  task: Task;
  entry: StepEntry;
  /** whether the step samples a token for it */
  samples: boolean;
}

/** Runs requests on one model. */
export class Engine {
  /** in order of arrival */
  private readonly waiting: (Task | Claim)[] = [];
  /** in order of admission */
  private readonly running: Task[] = [];
  private claimed = 0;
  private inFlight = 0;
  /** No admission until a sequence has gone: somebody was evicted for lack of pages. */
  private full = false;
  private scheduled = false;
  private closed: { reason: unknown } | null = null;
  private readonly idleWaiters: (() => void)[] = [];
  private readonly counts = {
    accepted: 0,
    completed: 0,
    aborted: 0,
    failed: 0,
    preemptions: 0,
    steps: 0,
    promptTokens: 0,
    cachedTokens: 0,
    completionTokens: 0,
  };

  constructor(
    private readonly model: StepModel,
    private readonly prefillChunk: number = DEFAULT_PREFILL_CHUNK,
  ) {}

  /** What runs and waits, work beside the steps included; what has been done; and the pages of the cache. */
  stats(): EngineStats {
    return {
      running: this.running.length + this.claimed,
      waiting: this.waiting.length,
      stepsInFlight: this.inFlight,
      ...this.counts,
      pages: this.model.pages(),
    };
  }

  /** Takes a request in. Its callbacks come later, never from within this call. */
  submit(request: EngineRequest): Ticket {
    if (this.closed !== null) throw this.closed.reason;
    const task: Task = {
      request,
      sequence: null,
      input: request.prompt,
      fed: 0,
      tokens: [],
      pending: 0,
      live: false,
      started: false,
      ended: false,
    };
    this.waiting.push(task);
    this.counts.accepted++;
    this.wake();
    return { cancel: () => this.remove(task, 'aborted') };
  }

  /**
   * Runs `work` while holding one of the model's sequences, in turn with the requests.
   * Rejects with the signal's reason when it aborts before its turn; later, `work` has to watch the signal.
   */
  async withSequence<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (this.closed !== null) throw this.closed.reason;
    signal?.throwIfAborted();
    await new Promise<void>((grant, refuse) => {
      const claim: Claim = {
        grant: () => {
          stopListening();
          grant();
        },
        refuse: (error) => {
          stopListening();
          refuse(error);
        },
      };
      const stopListening = onAbort(signal, () => {
        const at = this.waiting.indexOf(claim);
        if (at < 0) return;
        this.waiting.splice(at, 1);
        refuse(signal?.reason);
        this.wake();
      });
      this.waiting.push(claim);
      this.wake();
    });
    try {
      return await work();
    } finally {
      this.claimed--;
      this.full = false;
      this.wake();
      this.reportIdle();
    }
  }

  /** Looks for work again, soon: a consumer has caught up, a place has become free. */
  wake(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    // Not at once: requests that come in together then share their first step.
    queueMicrotask(() => {
      this.scheduled = false;
      this.pump();
    });
  }

  /** Ends all requests with `reason`, refuses new ones with it, and waits for what is in flight. */
  async close(reason: unknown): Promise<void> {
    this.closed ??= { reason };
    for (const one of this.waiting.splice(0)) {
      if (isTask(one)) this.fail(one, reason);
      else one.refuse(reason);
    }
    for (const task of [...this.running]) this.fail(task, reason);
    if (this.inFlight + this.claimed > 0) await new Promise<void>((resolve) => this.idleWaiters.push(resolve));
  }

  private pump(): void {
    while (this.closed === null && this.inFlight < STEPS_IN_FLIGHT && this.enqueueStep()) {}
  }

  /** @returns whether it is worth trying to enqueue another one */
  private enqueueStep(): boolean {
    this.admit();
    const plan = this.compose();
    if (plan.length === 0) return false;
    let results: Promise<StepResult[]>;
    try {
      results = this.model.step(plan.map(({ entry }) => entry));
    } catch (error) {
      return this.refused(plan, error);
    }
    this.inFlight++;
    this.counts.steps++;
    for (const task of this.running) task.live = false; // the device parks who is not in a step
    for (const { task, entry, samples } of plan) {
      if (task.fed < task.input.length) {
        task.fed += entry.tokens?.length ?? 0;
        this.counts.promptTokens += entry.tokens?.length ?? 0;
      }
      if (samples) task.pending++;
      task.live = samples;
      if (!task.started) {
        task.started = true;
        task.request.onStart();
      }
    }
    results.then(
      (values) =>
        this.settle(() => {
          for (const [i, one] of plan.entries()) this.accept(one, values[i]);
        }),
      (error) => this.settle(() => this.stepFailed(plan, error)),
    );
    return true;
  }

  private admit(): void {
    while (this.waiting.length > 0) {
      if (this.full || this.running.length + this.claimed >= this.model.maxSequences) {
        if (!this.park()) return;
        this.full = false;
      }
      const next = this.waiting[0] as Task | Claim;
      if (!isTask(next)) {
        this.waiting.shift();
        this.claimed++;
        next.grant();
        continue;
      }
      if (next.request.paused && this.waiting.some((other) => !isTask(other) || !other.request.paused)) {
        // Parked and still not read: others first.
        this.waiting.push(this.waiting.shift() as Task);
        continue;
      }
      if (next.request.paused) return;
      try {
        next.sequence = this.model.openSequence();
        next.sequence.setSampling(next.request.sampling);
      } catch (error) {
        next.sequence?.dispose();
        next.sequence = null;
        // A place that is only about to become free is waited for; without anything to wait for it is a failure.
        if (codeOf(error) === 'ERR_STATE' && this.running.length + this.claimed + this.inFlight > 0) return;
        this.fail(next, error);
        continue;
      }
      this.waiting.shift();
      this.running.push(next);
    }
  }

  private compose(): PlannedEntry[] {
    const plan: PlannedEntry[] = [];
    let budget = this.prefillChunk;
    for (const task of this.running) {
      const sequence = task.sequence as SequenceHandle;
      if (task.request.paused) continue;
      if (task.fed < task.input.length) {
        if (budget === 0) continue;
        const tokens = task.input.slice(task.fed, task.fed + budget);
        budget -= tokens.length;
        const samples = task.fed + tokens.length === task.input.length;
        plan.push({ task, samples, entry: { sequence, tokens, sample: samples } });
        continue;
      }
      const length = task.request.prompt.length + task.tokens.length + task.pending;
      if (length >= task.request.sampling.maxLength) continue; // all it may have is in flight
      if (task.live) plan.push({ task, samples: true, entry: { sequence } });
      // It was left out of a step, so the device has forgotten its last token; the host soon knows it.
      else if (task.pending === 0)
        plan.push({ task, samples: true, entry: { sequence, tokens: task.tokens.slice(-1) } });
    }
    return plan;
  }

  /** The model took nothing of the plan. @returns whether to try again at once */
  private refused(plan: PlannedEntry[], error: unknown): boolean {
    if (codeOf(error) === 'ERR_NO_PAGES') {
      if (this.inFlight > 0) return false; // a sequence may end there; its results bring us back here
      if (this.running.length > 1) {
        const paused = this.running.find(({ request }) => request.paused);
        this.evict(paused ?? (this.running[this.running.length - 1] as Task), paused ? 'last' : 'first');
        this.full = true;
        return true;
      }
      if (this.claimed > 0) return false; // the end of that work brings us back here
    }
    this.stepFailed(plan, error);
    return true;
  }

  /** Nobody knows what a failed step did to the device's rows: its requests fail, the others start again. */
  private stepFailed(plan: PlannedEntry[], error: unknown): void {
    for (const one of plan) if (isCurrent(one)) this.fail(one.task, error);
    for (const task of [...this.running].reverse()) if (task.fed > 0) this.evict(task, 'first');
  }

  /** Makes room by taking out a sequence whose consumer is far behind. */
  private park(): boolean {
    const wanted = this.waiting.some((one) => !isTask(one) || !one.request.paused);
    const task = wanted ? this.running.find(({ request }) => request.paused) : undefined;
    if (task === undefined) return false;
    this.evict(task, 'last');
    return true;
  }

  /** Takes back the sequence of a task, which starts again from the tokens it has; what is in flight for it is lost. */
  private evict(task: Task, place: 'first' | 'last'): void {
    this.running.splice(this.running.indexOf(task), 1);
    this.counts.preemptions++;
    task.sequence?.dispose();
    task.sequence = null;
    task.input = [...task.request.prompt, ...task.tokens];
    task.fed = 0;
    task.pending = 0;
    task.live = false;
    if (place === 'first') this.waiting.unshift(task);
    else this.waiting.push(task);
  }

  private settle(read: () => void): void {
    this.inFlight--;
    read();
    // Not at once: the next step's results may have come together with these, and end a sequence that would be planned.
    this.wake();
    this.reportIdle();
  }

  private accept(one: PlannedEntry, result: StepResult | undefined): void {
    if (!one.samples || !isCurrent(one)) return;
    const { task } = one;
    task.pending--;
    if (result === undefined || result.token < 0) {
      this.fail(task, new MlaError('ERR_INTERNAL', 'A step gave no token for a sequence that has not finished.'));
      return;
    }
    task.tokens.push(result.token);
    this.counts.completionTokens++;
    try {
      if (result.finished !== null) this.end(task, 'completed', () => task.request.onToken(result));
      else if (!task.request.onToken(result)) this.remove(task, 'completed');
    } catch (error) {
      this.fail(task, error);
    }
  }

  private fail(task: Task, error: unknown): void {
    this.end(task, 'failed', () => task.request.onError(error));
  }

  private remove(task: Task, how: Ending): void {
    this.end(task, how, () => {});
    this.wake();
  }

  /** Takes a task out, wherever it is, and then says so. */
  private end(task: Task, how: Ending, say: () => void): void {
    if (!task.ended) {
      task.ended = true;
      this.counts[how]++;
      for (const list of [this.waiting, this.running] as (Task | Claim)[][]) {
        const at = list.indexOf(task);
        if (at >= 0) list.splice(at, 1);
      }
      task.sequence?.dispose();
      task.sequence = null;
      this.full = false;
    }
    say();
  }

  private reportIdle(): void {
    if (this.inFlight + this.claimed === 0) for (const resolve of this.idleWaiters.splice(0)) resolve();
  }
}

function isTask(one: Task | Claim): one is Task {
  return 'request' in one;
}

/** Whether a result still counts: its request has neither ended nor given its sequence back since. */
function isCurrent({ task, entry }: PlannedEntry): boolean {
  return task.sequence === entry.sequence;
}

function codeOf(error: unknown): unknown {
  return error instanceof MlaError ? error.code : undefined;
}
