// engine/options.ts - what callers may ask for. settings.ts checks it and fills in defaults.

/** Options of `Model.generate`; every one has a default. */
export interface GenerateOptions {
  /**
   * New tokens at most. Default 256, or less where the context ends before that; a number that does not fit the context
   * is refused with ERR_CONTEXT_LENGTH.
   */
  maxTokens?: number | undefined;
  /**
   * 0 always takes the likeliest token; up to 100. Default: as generation_config.json says, else 0. Where it is 0, topK,
   * topP, minP and seed change nothing.
   */
  temperature?: number | undefined;
  /** Sample from this many of the likeliest tokens only; 0 is all. Default: as generation_config.json says, else 0. */
  topK?: number | undefined;
  /** Sample from the likeliest tokens that make up this probability; above 0, up to 1. Default as topK's, else 1. */
  topP?: number | undefined;
  /** Leave out tokens less likely than this share of the likeliest one's probability; 0 to 1. Default as topK's, else 0. */
  minP?: number | undefined;
  /** Non-negative integer up to 2^53 - 1: the same seed gives the same text. Default: random; the Result says which. */
  seed?: number | undefined;
  /** Token ids that end the text besides the model's own; at most 16 in all. */
  stopTokens?: readonly number[] | undefined;
  /** Strings that end the text, at most 16 of 1 to 1000 characters each; the text ends before them. */
  stop?: string | readonly string[] | undefined;
  /** New tokens before anything but maxTokens may end the text. Default 0. */
  minTokens?: number | undefined;
  /**
   * Divides the positive logits of tokens that stand in the prompt or in the new text, and multiplies the negative ones;
   * above 0, up to 100. Default: as generation_config.json says, else 1, which changes nothing.
   */
  repetitionPenalty?: number | undefined;
  /** Taken from the logit of a token that stands in the new text; -100 to 100. Default 0. */
  presencePenalty?: number | undefined;
  /** Taken from the logit of a token for each time it stands in the new text; -100 to 100. Default 0. */
  frequencyPenalty?: number | undefined;
  /** Added to the logits of these token ids, -1000 to 1000 each, at most 1024 of them. Default: none. */
  logitBias?: Readonly<Record<number, number>> | undefined;
  /** For each new token, this many of the likeliest tokens, 0 to 20. Default 0. */
  topLogprobs?: number | undefined;
  /**
   * Who goes first when places, pages or a step's prompt tokens are short; an integer from -100 to 100. Per unit, a
   * request overtakes up to 64 that came before it, so that nobody waits for ever. Default 0: in order of arrival.
   */
  priority?: number | undefined;
  /**
   * Prompts find each other's cached beginnings only if they have the same salt; up to 256 characters. For requests of
   * users who should not learn from timings what others ask. Default ''.
   */
  cacheSalt?: string | undefined;
  /** Go on where the model ends its text. Default false. */
  ignoreEos?: boolean | undefined;
  /** Ends the generation; everything then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** Options of `Model.complete`. */
export interface CompleteOptions extends GenerateOptions {
  /** Continuations of the prompt, 1 to 64. Default 1. */
  n?: number | undefined;
}

/** Options of `Model.score`. */
export interface ScoreOptions {
  /** For each position, this many of the likeliest tokens, 0 to 20. Default 0. */
  top?: number | undefined;
  /** Whether to return the logits after the last token. Default false. */
  logits?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

/** The settings a generation ran with. */
export interface UsedSettings {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly seed: number;
  readonly maxTokens: number;
  readonly minTokens: number;
  /** the model's own end-of-text ids (unless they were ignored) and `stopTokens` */
  readonly stopTokens: readonly number[];
  readonly stop: readonly string[];
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly logitBias: Readonly<Record<number, number>>;
  readonly topLogprobs: number;
  readonly priority: number;
}
