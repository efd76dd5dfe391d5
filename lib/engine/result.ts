// engine/result.ts - what a generation gives: chunks on the way, one Result at the end, and the clock behind its timings.
import type { PageStats } from '../cache';
import type { TopToken } from '../model/types';
import type { UsedSettings } from './options';

/** A piece of a generation. All texts joined are the Result's text, all tokens joined its tokens. */
export interface Chunk {
  /** whole characters; '' where the model has no tokenizer, or for the end-of-text token */
  readonly text: string;
  /** the new token ids: usually one, more where only together they make a character */
  readonly tokens: readonly number[];
  /** logprobs[i]: log-probability of tokens[i] under the model's own distribution (before temperature and the like) */
  readonly logprobs: readonly number[];
  /** top[i]: the likeliest tokens in the place of tokens[i], likeliest first; empty unless topLogprobs asked for them */
  readonly top: readonly (readonly TopToken[])[];
}

/** Why a generation ended: 'stop' at an end-of-text token, a stop token or a stop string, 'length' at maxTokens. */
export type FinishReason = 'stop' | 'length';

/** Token counts. */
export interface Usage {
  readonly promptTokens: number;
  /** how many of the prompt's tokens were in the cache already */
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

/** Durations in milliseconds and rates in tokens per second; a rate is null where nothing was measured. */
export interface Timings {
  /** loading the model */
  readonly loadMs: number;
  /** from the start of the generation (encoding included) to the first prompt token on the device */
  readonly queueMs: number;
  /** from the first prompt token on the device to the first new token */
  readonly prefillMs: number;
  /** from the first new token to the last */
  readonly decodeMs: number;
  /** from the start of the generation (encoding and waiting for a place included) to the first new token */
  readonly ttftMs: number;
  /** prompt tokens that were not in the cache / prefillMs */
  readonly prefillTokensPerSecond: number | null;
  /** new tokens after the first / decodeMs; null when there is only one */
  readonly decodeTokensPerSecond: number | null;
}

/** A finished generation. */
export interface Result {
  /** without the end-of-text token or the stop string, and '' where the model has no tokenizer */
  readonly text: string;
  /** the new token ids, with the one that ended the text */
  readonly tokens: readonly number[];
  /** logprobs[i]: log-probability of tokens[i] under the model's own distribution */
  readonly logprobs: readonly number[];
  /** top[i] belongs to tokens[i]; empty unless topLogprobs asked for it */
  readonly top: readonly (readonly TopToken[])[];
  readonly finishReason: FinishReason;
  /** the token id or the stop string that ended the text; null at maxTokens */
  readonly stoppedBy: number | string | null;
  readonly usage: Usage;
  readonly timings: Timings;
  /** the settings that were used, defaults filled in */
  readonly settings: UsedSettings;
}

/** What the engine is doing and has done. Every accepted request ends once: as completed, aborted or failed. */
export interface EngineStats {
  /** requests that have a place in the batch */
  readonly running: number;
  readonly waiting: number;
  readonly stepsInFlight: number;
  /** requests so far, by their end */
  readonly accepted: number;
  readonly completed: number;
  readonly aborted: number;
  readonly failed: number;
  /** how often a request gave its pages back to others and started again */
  readonly preemptions: number;
  /** steps that were enqueued */
  readonly steps: number;
  /** tokens of prompts that were computed, and that the cache had already */
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** tokens that were sampled and used */
  readonly completionTokens: number;
  /** pages of the latent cache: free + cached + held = total */
  readonly pages: PageStats;
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

  /** The first new token is there. */
  first(): void {
    this.firstToken = performance.now();
  }

  /** The last one is. */
  last(): void {
    this.lastToken = performance.now();
  }

  timings(loadMs: number, { promptTokens, cachedTokens, completionTokens }: Usage): Timings {
    const prefillMs = this.firstToken - this.prefillBegan;
    const decodeMs = this.lastToken - this.firstToken;
    return {
      loadMs,
      queueMs: this.prefillBegan - this.began,
      prefillMs,
      decodeMs,
      ttftMs: this.firstToken - this.began,
      prefillTokensPerSecond: perSecond(promptTokens - cachedTokens, prefillMs),
      decodeTokensPerSecond: perSecond(completionTokens - 1, decodeMs),
    };
  }
}

function perSecond(tokens: number, ms: number): number | null {
  return tokens > 0 && ms > 0 ? (tokens / ms) * 1000 : null;
}
