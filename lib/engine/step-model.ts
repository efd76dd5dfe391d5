// engine/step-model.ts - the two things the engine works with, as it sees them. lib/model and lib/text provide the real
// ones; a fake stands in where only scheduling is tested.
import type { KeptPages, PageStats } from '../cache';
import type { SamplingSettings, ScoreResult, SequenceHandle, StepEntry, StepResult } from '../model/types';

/** What scheduling needs of a model. */
export interface StepModel {
  /** tokens one sequence may have in all */
  readonly context: number;
  /** sequences that can be open at once */
  readonly maxSequences: number;
  /** the pages of the latent cache, by use */
  pages(): PageStats;
  /** @throws ERR_STATE when maxSequences are open */
  openSequence(): SequenceHandle;
  /**
   * Enqueues one step and returns at once. Results come in the order of the calls.
   * @throws ERR_NO_PAGES (synchronously), nothing enqueued then
   */
  step(entries: StepEntry[]): Promise<StepResult[]>;
}

/** The sampling part of generation_config.json, in its own names. */
export interface GenerationDefaults {
  readonly do_sample?: boolean | undefined;
  readonly temperature?: number | undefined;
  readonly top_k?: number | undefined;
  readonly top_p?: number | undefined;
  readonly min_p?: number | undefined;
  readonly repetition_penalty?: number | undefined;
}

/** What the public Model needs of lib/model's LatentModel, devices and memory aside. */
export interface EngineModel extends StepModel {
  readonly config: { readonly vocab_size: number };
  readonly loadMs: number;
  readonly generationDefaults: GenerationDefaults;
  score(
    tokens: readonly number[],
    options?: { top?: number; logits?: boolean; signal?: AbortSignal | undefined },
  ): Promise<ScoreResult>;
  /** Writes tokens, and the rows that are kept of them, to a file that `restore` reads. */
  save(path: string, tokens: readonly number[], kept: KeptPages | null, signal: AbortSignal): Promise<void>;
  restore(path: string, signal: AbortSignal): Promise<{ tokens: readonly number[]; kept: KeptPages | null }>;
  dispose(): Promise<void>;
}

/** Text of one sequence, token by token; never half a character. */
export interface TextStream {
  push(id: number): string;
  end(): string;
}

export type { KeptPages, SamplingSettings, ScoreResult, SequenceHandle, StepEntry, StepResult };
