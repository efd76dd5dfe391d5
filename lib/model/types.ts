// model/types.ts - what the layer above (lib/engine) sees of the model class.

import type { KeptPages } from '../cache';

/** How far loading has come. */
export interface LoadProgress {
  phase: 'open' | 'weights' | 'ready';
  /** bytes of weights read so far, and in all */
  loadedBytes: number;
  totalBytes: number;
}

/** Options of {@link LatentModel.load}; every one has a default. */
export interface LatentModelOptions {
  /** 'auto' takes the GPU when there is one, else the CPU. Default 'auto'. */
  device?: 'auto' | 'cpu' | `cuda:${number}` | undefined;
  /** Element type of the weights: 'auto' keeps the checkpoint's, 'fp8' quantises at load. Default 'auto'. */
  dtype?: 'auto' | 'f32' | 'bf16' | 'fp8' | undefined;
  /**
   * Element type of the latent cache: 'auto' is f32 on the CPU and bf16 on CUDA; 'fp8' takes little more than half of
   * the bytes of bf16 (docs/cache.md).
   */
  cacheDtype?: 'auto' | 'f32' | 'bf16' | 'fp8' | undefined;
  /**
   * Element type of activations: 'auto' is f32 on the CPU and bf16 on CUDA. 'fp8': bf16, and e4m3 where they meet weights
   * in fp8, with a scale for each row and 128 columns (docs/numerics.md).
   */
  activationDtype?: 'auto' | 'f32' | 'bf16' | 'fp8' | undefined;
  /** Tokens a sequence may have in all; default the smaller of the model's limit and 4096. */
  context?: number | undefined;
  /** Sequences that can be open at once. Default 8. */
  maxSequences?: number | undefined;
  /** Pages of 64 tokens in the latent cache; default: enough for all sequences at full context. */
  pages?: number | undefined;
  /** New tokens per prefill pass; longer prompts go in chunks. Default 512. */
  prefillChunk?: number | undefined;
  /** Whether prompts take over what earlier texts left in the cache. Default true. */
  prefixCache?: boolean | undefined;
  /**
   * Which form attention takes over new tokens: 'auto' decides by their number; the others force one, for tests and
   * measurements.
   */
  attention?: 'auto' | 'absorbed' | 'expanded' | undefined;
  /** Whether a decode step is captured once and replayed; false issues its operations anew, for tests. Default true. */
  graphs?: boolean | undefined;
  /**
   * Whether what a sequence gets depends on nothing but its own tokens and settings, bit for bit: not on its neighbours
   * in a step, on the chunks that its prompt came in, or on what the cache had of it. docs/numerics.md says how, and
   * what it costs. Default false.
   */
  deterministic?: boolean | undefined;
  /**
   * Milliseconds after which a step that has not ended is taken for a hang: all that is open rejects with
   * ERR_DEVICE_LOST, and the process should be replaced. 0: never. Default 120000 on a GPU, 0 on the CPU.
   */
  stepTimeout?: number | undefined;
  /** Epsilon of the latent norms; default the config's rms_norm_eps. Some implementations use 1e-6 whatever it says. */
  latentNormEps?: number | undefined;
  /** CPU threads; 0 is one per physical core. */
  threads?: number | undefined;
  onProgress?: ((progress: LoadProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Sampling settings of one sequence. */
export interface SamplingSettings {
  /** 0 is greedy */
  temperature: number;
  /** 0 is all */
  topK: number;
  /** 1 is all; in (0, 1] */
  topP: number;
  /** 0 is all; in [0, 1] */
  minP: number;
  /** 53-bit non-negative integer; the same seed at the same position draws the same noise */
  seed: number;
  /** ids that end the sequence (at most 16); they are returned, and nothing follows them */
  stopIds: readonly number[];
  /** tokens the sequence may have in all, prompt included; at most the context */
  maxLength: number;
  /** tokens it must have before one of stopIds may be sampled. Default 0. */
  minLength?: number | undefined;
  /** Divides positive logits of ids in the text so far, multiplies negative ones; above 0. Default 1: changes nothing. */
  repetitionPenalty?: number | undefined;
  /** Taken from the logits of ids that stand behind the first promptLength tokens. Default 0. */
  presencePenalty?: number | undefined;
  /** As presencePenalty, for each time. Default 0. */
  frequencyPenalty?: number | undefined;
  /** Which tokens are the prompt, for the two penalties above. Default 0: none. */
  promptLength?: number | undefined;
  /** Added to the logits of these ids. */
  logitBias?: Readonly<Record<number, number>> | undefined;
  /** Likeliest ids to return with each sampled one, 0 to 20. Default 0. */
  top?: number | undefined;
}

/** One likely token. */
export interface TopToken {
  readonly id: number;
  readonly logprob: number;
}

/**
 * What one sequence contributes to a step. A sequence that is being decoded and is left out of a step is parked: it
 * goes on with its last token given as `tokens`.
 */
export interface StepEntry {
  sequence: SequenceHandle;
  /** New tokens to append (a prompt, or a part of one). Absent: continue from the token sampled last. */
  tokens?: readonly number[] | Int32Array | undefined;
  /**
   * With `tokens`: sample a token after the last of them (default true). Intermediate chunks of a long prompt say
   * false.
   */
  sample?: boolean | undefined;
}

/** What a step gave one sequence. */
export interface StepResult {
  /** the sampled id, or -1 when nothing was sampled (sample: false, or the sequence had already finished) */
  token: number;
  /** log-probability of that id under the model's own distribution; NaN when nothing was sampled */
  logprob: number;
  /** the `top` likeliest ids in its place, likeliest first */
  top: readonly TopToken[];
  /** 'stop': the id is one of stopIds; 'length': maxLength has been reached */
  finished: null | 'stop' | 'length';
}

/** An open sequence: its pages in the latent cache and its row on the device. */
export interface SequenceHandle {
  readonly id: number;
  /** tokens in the cache, those of enqueued steps included */
  readonly length: number;
  readonly disposed: boolean;
  /** @throws ERR_INVALID_ARG, ERR_STATE while it is being decoded */
  setSampling(settings: SamplingSettings): void;
  /**
   * Begins an empty sequence with what the cache already has of `tokens`: rows that are kept, or rows of earlier texts
   * with the same salt, whichever are more. Never the row of the last token: something must be computed to sample from.
   * @returns how many of the tokens need not be given any more
   */
  begin(tokens: readonly number[], kept: KeptPages | null, salt: string): number;
  /** Keeps the rows whose steps have succeeded: another sequence may begin with them. Dispose them some time. */
  keep(): KeptPages;
  /** Gives its pages back, in stream order. Idempotent. */
  dispose(): void;
}

/** Per-token log-probabilities of a text. */
export interface ScoreResult {
  /** logprobs[i] belongs to tokens[i] given the ones before; index 0 is NaN */
  logprobs: Float32Array;
  /** the `top` most likely ids per position (of the token at that position), likeliest first; row 0 is empty */
  top: TopToken[][];
  /** logits after the last token [vocab_size], when asked for */
  logits: Float32Array | null;
}
