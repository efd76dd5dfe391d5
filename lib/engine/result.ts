// engine/result.ts - what a generation gives: chunks on the way, one Result at the end, and the clock behind its timings.
import type { UsedSettings } from './options';

/** A piece of a generation. All texts joined are the Result's text, all tokens joined its tokens. */
export interface Chunk {
  /** whole characters; '' where the model has no tokenizer, or for the end-of-text token */
  readonly text: string;
  /** the new token ids: usually one, more where only together they make a character */
  readonly tokens: readonly number[];
  /** logprobs[i]: log-probability of tokens[i] under the model's own distribution (before temperature and the like) */
  readonly logprobs: readonly number[];
}

/** Why a generation ended: 'stop' at an end-of-text or stop token, 'length' at maxTokens. */
export type FinishReason = 'stop' | 'length';

/** Token counts. */
export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
}

/** Durations in milliseconds and rates in tokens per second; a rate is null where nothing was measured. */
export interface Timings {
  /** loading the model */
  readonly loadMs: number;
  /** from the first prompt token on the device to the first new token */
  readonly prefillMs: number;
  /** from the first new token to the last */
  readonly decodeMs: number;
  /** from the start of the generation (encoding and waiting for a place included) to the first new token */
  readonly ttftMs: number;
  /** prompt tokens / prefillMs */
  readonly prefillTokensPerSecond: number | null;
  /** new tokens after the first / decodeMs; null when there is only one */
  readonly decodeTokensPerSecond: number | null;
}

/** A finished generation. */
export interface Result {
  /** without the end-of-text token, and '' where the model has no tokenizer */
  readonly text: string;
  /** the new token ids, with the one that ended the text */
  readonly tokens: readonly number[];
  /** logprobs[i]: log-probability of tokens[i] under the model's own distribution */
  readonly logprobs: readonly number[];
  readonly finishReason: FinishReason;
  readonly usage: Usage;
  readonly timings: Timings;
  /** the settings that were used, defaults filled in */
  readonly settings: UsedSettings;
}

/** One likely token. */
export interface TopToken {
  readonly id: number;
  readonly logprob: number;
}

/** Log-probabilities of a text. */
export interface Score {
  /** the tokens that were scored */
  readonly tokens: readonly number[];
  /** logprobs[i] belongs to tokens[i] given the ones before; the first is null */
  readonly logprobs: readonly (number | null)[];
  /** the likeliest tokens in the place of tokens[i], likeliest first; the first entry is null */
  readonly top: readonly (readonly TopToken[] | null)[];
  /** logits after the last token [vocab_size], when asked for */
  readonly logits: Float32Array | null;
}

/** Notes when things happened, in milliseconds of `performance.now()`. */
export class Clock {
  private readonly began = performance.now();
  private prefillBegan = 0;
  private firstToken = 0;
  private lastToken = 0;

  prefill(): void {
    this.prefillBegan = performance.now();
  }

  token(): void {
    this.lastToken = performance.now();
    if (this.firstToken === 0) this.firstToken = this.lastToken;
  }

  timings(loadMs: number, { promptTokens, completionTokens }: Usage): Timings {
    const prefillMs = this.firstToken - this.prefillBegan;
    const decodeMs = this.lastToken - this.firstToken;
    return {
      loadMs,
      prefillMs,
      decodeMs,
      ttftMs: this.firstToken - this.began,
      prefillTokensPerSecond: perSecond(promptTokens, prefillMs),
      decodeTokensPerSecond: perSecond(completionTokens - 1, decodeMs),
    };
  }
}

function perSecond(tokens: number, ms: number): number | null {
  return tokens > 0 && ms > 0 ? (tokens / ms) * 1000 : null;
}
