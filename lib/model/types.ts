// model/types.ts - what the layer above (lib/engine) sees of the model class.

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
  /** Element type of the weights: 'auto' keeps the checkpoint's. Default 'auto'. */
  dtype?: 'auto' | 'f32' | 'bf16' | 'fp8' | undefined;
  /** Element type of the latent cache: 'auto' is f32 on the CPU and bf16 on CUDA. */
  cacheDtype?: 'auto' | 'f32' | 'bf16' | 'fp8' | undefined;
  /** Element type of activations: 'auto' is f32 on the CPU and bf16 on CUDA. */
  activationDtype?: 'auto' | 'f32' | 'bf16' | undefined;
  /** Tokens a sequence may have in all; default the smaller of the model's limit and 4096. */
  context?: number | undefined;
  /** Sequences that can be open at once. Default 8. */
  maxSequences?: number | undefined;
  /** Pages of 64 tokens in the latent cache; default: enough for all sequences at full context. */
  pages?: number | undefined;
  /** New tokens per prefill pass; longer prompts go in chunks. Default 512. */
  prefillChunk?: number | undefined;
  /**
   * Which form attention takes over new tokens: 'auto' decides by their number; the others force one, for tests and
   * measurements.
   */
  attention?: 'auto' | 'absorbed' | 'expanded' | undefined;
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
  /** 'stop': the id is one of stopIds; 'length': maxLength has been reached */
  finished: null | 'stop' | 'length';
}

/** An open sequence: its pages in the latent cache and its row on the device. */
export interface SequenceHandle {
  readonly id: number;
  /** tokens in the cache, those of enqueued steps included */
  readonly length: number;
  readonly disposed: boolean;
  setSampling(settings: SamplingSettings): void;
  /** Gives its pages back, in stream order. Idempotent. */
  dispose(): void;
}

/** Per-token log-probabilities of a text. */
export interface ScoreResult {
  /** logprobs[i] belongs to tokens[i] given the ones before; index 0 is NaN */
  logprobs: Float32Array;
  /** the `top` most likely ids per position (of the token at that position), likeliest first; row 0 is empty */
  top: { id: number; logprob: number }[][];
  /** logits after the last token [vocab_size], when asked for */
  logits: Float32Array | null;
}
