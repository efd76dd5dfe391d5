// engine/engine.ts - who is in the batch. Every step combines all running sequences: one token for each that decodes,
// and prompt tokens, in chunks, for those that do not yet. Two steps are kept in flight, so the device never waits for
// the host: what a step sampled is read while the next one runs.
//
// Policy: admission in order of arrival; prompts share a token budget per step, first come first served; a request
// whose consumer is far behind is left out. Each unit of priority moves a request ahead of 64 that came before it, and
// no further, so nobody waits for ever. When pages run out the last in this order gives its pages back and later starts
// again from the tokens it has; so does a sequence that a failed step of others may have spoiled (the same seed at the
// same position draws the same token). What the cache still has of a prompt is looked up when its first tokens are due,
// so that of several that begin the same only the first is computed.

import { MlaError } from '../errors';
import { onAbort } from './abort-listeners';
import type { EngineStats } from './result';
import type { KeptPages, SamplingSettings, SequenceHandle, StepEntry, StepModel, StepResult } from './step-model';

/** Steps in flight at most: the running one and its successor. */
const STEPS_IN_FLIGHT = 2;
/** Prompt tokens per step, over all sequences, unless the model is loaded with another prefillChunk. */
export const DEFAULT_PREFILL_CHUNK = 512;

/** Earlier requests that one of priority 1 overtakes. */
const OVERTAKEN_PER_PRIORITY = 64;

/** What the engine asks of whoever wants tokens. None of the callbacks may call back into the engine. */
export interface EngineRequest {
  readonly prompt: readonly number[];
  /** null: the prompt is brought into the cache, and nothing is sampled */
  readonly sampling: SamplingSettings | null;
  /** -100 to 100; 0 for most */
  readonly priority: number;
  /** rows to begin with, if they are more than the cache knows by itself; they stay the caller's */
  readonly kept: KeptPages | null;
  /** only prompts of the same salt share what the cache has */
  readonly salt: string;
  /** true while the consumer is far behind; call {@link Engine.wake} when it ends */
  readonly paused: boolean;
  /** the first part of the prompt goes to the device; `cachedTokens` of it were in the cache already */
  onStart(cachedTokens: number): void;
  /** one sampled token; `finished` is not null for the last one. Returns whether more are wanted. */
  onToken(result: StepResult): boolean;
  /** all has succeeded; called at once after the last onToken, with the rows that the cache has of the text */
  onKept?(kept: KeptPages): void;
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
  /** smaller goes first */
  order: number;
  sequence: SequenceHandle | null;
  /** its part of a step that decodes `sequence`, once there was one */
  decodes: PlannedEntry | null;
  /** what the cache must hold before the next token can be sampled: the prompt, after an eviction tokens too */
  input: readonly number[];
  /** whether the cache has been searched for the beginning of `input` */
  begun: boolean;
  /** how much of `input` has been enqueued, or was in the cache */
  fed: number;
  /** how much of it was in the cache */
  cached: number;
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
  readonly order: number;
  grant(): void;
  refuse(error: unknown): void;
}

/** How a request ended. */
type Ending = 'completed' | 'aborted' | 'failed';

interface PlannedEntry {
  readonly task: Task;
  readonly entry: StepEntry;
  /** whether the step samples a token for it */
  readonly samples: boolean;
  /** whether this ends a request that samples nothing */
  readonly completes: boolean;
}

/** Runs requests on one model. */
export class Engine {
  /** by order */
  private readonly waiting: (Task | Claim)[] = [];
  /** by order */
  private readonly running: Task[] = [];
  private arrivals = 0;
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
      order: this.arrivals++ - OVERTAKEN_PER_PRIORITY * request.priority,
      sequence: null,
      decodes: null,
      input: request.prompt,
      begun: false,
      fed: 0,
      cached: 0,
      tokens: [],
      pending: 0,
      live: false,
      started: false,
      ended: false,
    };
    insert(this.waiting, task);
    this.counts.accepted++;
    this.wake();
    return { cancel: () => this.cancel(task) };
  }

  /**
   * Runs `work` while holding one of the model's sequences, in turn with the requests.
   * Rejects with the signal's reason when it aborts before its turn; later, `work` has to watch the signal.
   */
  async withSequence<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted();
    const order = this.arrivals++;
    for (;;) {
      await this.claim(order, signal);
      let again = false;
      try {
        return await work();
      } catch (error) {
        if (codeOf(error) !== 'ERR_NO_PAGES' || this.running.length + this.claimed === 1) throw error;
        again = true;
      } finally {
        this.claimed--;
        this.full = again; // whoever ends next makes room for another try
        this.wake();
        this.reportIdle();
      }
    }
  }

  private async claim(order: number, signal: AbortSignal | undefined): Promise<void> {
    if (this.closed !== null) throw this.closed.reason;
    await new Promise<void>((grant, refuse) => {
      const claim: Claim = {
        order,
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
      insert(this.waiting, claim);
      this.wake();
    });
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
        task.request.onStart(task.cached);
      }
    }
    results.then(
      (values) =>
        this.settle(() => {
          for (let i = 0; i < plan.length; i++) this.accept(plan[i] as PlannedEntry, values[i]);
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
        this.waiting.shift();
        this.queueLast(next);
        continue;
      }
      if (next.request.paused) return;
      try {
        next.sequence = this.model.openSequence();
        if (next.request.sampling !== null) next.sequence.setSampling(next.request.sampling);
      } catch (error) {
        next.sequence?.dispose();
        next.sequence = null;
        // A place that is only about to become free is waited for; without anything to wait for it is a failure.
        if (codeOf(error) === 'ERR_STATE' && this.running.length + this.claimed + this.inFlight > 0) return;
        this.fail(next, error);
        continue;
      }
      this.waiting.shift();
      insert(this.running, next);
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
        if (!task.begun) this.begin(task, sequence);
        const tokens = task.input.slice(task.fed, task.fed + budget);
        budget -= tokens.length;
        const last = task.fed + tokens.length === task.input.length;
        const samples = last && task.request.sampling !== null;
        plan.push({ task, samples, completes: last && !samples, entry: { sequence, tokens, sample: samples } });
        continue;
      }
      const length = task.request.prompt.length + task.tokens.length + task.pending;
      if (length >= (task.request.sampling?.maxLength ?? 0)) continue; // all it may have is in flight
      if (task.live) {
        // The same object in all steps of a sequence: they consist of little else.
        task.decodes ??= decoding(task, { sequence });
        plan.push(task.decodes);
      } else if (task.pending === 0) {
        // It was left out of a step, so the device has forgotten its last token; the host soon knows it.
        plan.push(decoding(task, { sequence, tokens: task.tokens.slice(-1) }));
      }
    }
    return plan;
  }

  /** What the cache has of a task's input need not be computed. */
  private begin(task: Task, sequence: SequenceHandle): void {
    const { kept, salt } = task.request;
    task.begun = true;
    task.fed = sequence.begin(task.input, kept, salt);
    if (!task.started) task.cached = Math.min(task.fed, task.request.prompt.length);
    this.counts.cachedTokens += task.fed;
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
    for (const task of [...this.running]) if (task.begun) this.evict(task, 'first');
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
    task.decodes = null;
    task.input = [...task.request.prompt, ...task.tokens];
    task.begun = false;
    task.fed = 0;
    task.pending = 0;
    task.live = false;
    if (place === 'first') insert(this.waiting, task);
    else this.queueLast(task);
  }

  private queueLast(task: Task): void {
    task.order = Math.max(this.arrivals++, this.waiting.at(-1)?.order ?? 0);
    this.waiting.push(task);
  }

  private settle(read: () => void): void {
    this.inFlight--;
    read();
    // Not at once: the next step's results may have come together with these, and end a sequence that would be planned.
    this.wake();
    this.reportIdle();
  }

  private accept(one: PlannedEntry, result: StepResult | undefined): void {
    if (!isCurrent(one)) return;
    const { task } = one;
    if (one.completes) this.complete(task, () => {});
    if (!one.samples) return;
    task.pending--;
    if (result === undefined || result.token < 0) {
      this.fail(task, new MlaError('ERR_INTERNAL', 'A step gave no token for a sequence that has not finished.'));
      return;
    }
    task.tokens.push(result.token);
    this.counts.completionTokens++;
    try {
      if (result.finished !== null) this.complete(task, () => task.request.onToken(result));
      else if (!task.request.onToken(result)) this.complete(task, () => {});
    } catch (error) {
      this.fail(task, error);
    }
  }

  private fail(task: Task, error: unknown): void {
    this.end(task, 'failed', () => task.request.onError(error));
  }

  private complete(task: Task, say: () => void): void {
    const kept = task.request.onKept === undefined ? undefined : task.sequence?.keep();
    try {
      this.end(task, 'completed', say);
    } catch (error) {
      kept?.dispose();
      throw error;
    }
    if (kept !== undefined) task.request.onKept?.(kept);
  }

  private cancel(task: Task): void {
    this.end(task, 'aborted', () => {});
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

function decoding(task: Task, entry: StepEntry): PlannedEntry {
  return { task, entry, samples: true, completes: false };
}

/** Puts one where it belongs by its order, behind its equals. */
function insert<T extends { order: number }>(list: T[], one: T): void {
  let at = list.length;
  while (at > 0 && (list[at - 1] as T).order > one.order) at--;
  list.splice(at, 0, one);
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
