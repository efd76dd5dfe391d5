// engine/model.ts - the public model, in the thread that loaded it.
import { invalidArg, MlaError } from '../errors';
import type { ChatMessage, RenderChatOptions } from '../text';
import type { ChatOptions, Generation, Model, ModelInfo, Sequence, SignalOptions, TemplateOptions } from './api';
import { Engine } from './engine';
import { LocalGeneration } from './generation';
import type { CompleteOptions, GenerateOptions, ScoreOptions } from './options';
import type { EngineStats, Result, Score } from './result';
import {
  COMPLETE_OPTIONS,
  completions,
  GENERATE_OPTIONS,
  type PlannedSettings,
  planSettings,
  readOptions,
  readScoreOptions,
  tokenIds,
} from './settings';
import type { EngineModel, TextStream } from './step-model';

const TEMPLATE_OPTIONS = ['tools', 'thinking', 'template'] as const;
export const CHAT_OPTIONS = [...GENERATE_OPTIONS, ...TEMPLATE_OPTIONS] as const;

/** The text side of a model, as the engine uses it. */
export interface ModelText {
  /** ids of a text to be continued, BOS as tokenizer_config.json says */
  encodePrompt(text: string): Promise<readonly number[]>;
  /** ids of a conversation, up to where the answer begins */
  encodeChat(messages: readonly ChatMessage[], options: RenderChatOptions): Promise<readonly number[]>;
  stream(): TextStream;
  dispose(): Promise<void>;
}

/** What a model is made from. */
export interface ModelParts {
  readonly model: EngineModel;
  readonly text: ModelText | null;
  readonly info: ModelInfo;
  readonly prefillChunk?: number | undefined;
}

/** A {@link Model} in this thread: checks what is asked for, and hands it to the engine. */
export class LocalModel implements Model {
  private readonly model: EngineModel;
  private readonly engine: Engine;
  private readonly text: ModelText | null;
  readonly info: ModelInfo;
  private readonly disposing = new AbortController();
  private disposed: Promise<void> | null = null;

  constructor({ model, text, info, prefillChunk }: ModelParts) {
    this.model = model;
    this.engine = new Engine(model, prefillChunk);
    this.text = text;
    this.info = info;
  }

  generate(prompt: string | readonly number[], options?: GenerateOptions): Generation {
    this.checkAlive();
    const settings = this.plan(readOptions(options, GENERATE_OPTIONS));
    return this.start(settings, this.encoder(prompt));
  }

  chat(messages: readonly ChatMessage[], options?: ChatOptions): Generation {
    this.checkAlive();
    const { tools, thinking, template, ...given } = readOptions(options, CHAT_OPTIONS);
    const settings = this.plan(given);
    return this.start(settings, this.chatEncoder(messages, { tools, thinking, template }));
  }

  async complete(prompt: string | readonly number[], options?: CompleteOptions): Promise<Result[]> {
    this.checkAlive();
    const { n, ...given } = readOptions(options, COMPLETE_OPTIONS);
    const count = completions(n);
    if (count > 1) throw unsupported('n above 1');
    return [await this.start(this.plan(given), this.encoder(prompt)).result];
  }

  createSequence(): Promise<Sequence> {
    return Promise.reject(unsupported('createSequence'));
  }

  restore(_path: string, _options?: SignalOptions): Promise<Sequence> {
    return Promise.reject(unsupported('restore'));
  }

  async score(prompt: string | readonly number[], options?: ScoreOptions): Promise<Score> {
    this.checkAlive();
    const { top, logits, signal: given } = readScoreOptions(options);
    const signal = given === undefined ? this.disposing.signal : AbortSignal.any([given, this.disposing.signal]);
    const encode = this.encoder(prompt);
    signal.throwIfAborted();
    const tokens = await encode();
    const { context } = this.info;
    if (tokens.length === 0) throw invalidArg('prompt', 'at least one token', tokens);
    if (tokens.length > context) {
      throw new MlaError(
        'ERR_CONTEXT_LENGTH',
        `The text has ${tokens.length} tokens; expected at most the context of ${context}.`,
      );
    }
    const scored = await this.engine.withSequence(() => this.model.score(tokens, { top, logits, signal }), signal);
    return {
      tokens,
      logprobs: Array.from(scored.logprobs, (value, i) => (i === 0 ? null : value)),
      top: tokens.map((_, i) => (i === 0 ? null : (scored.top[i] ?? []))),
      logits: scored.logits,
    };
  }

  async encode(text: string): Promise<readonly number[]> {
    this.checkAlive();
    if (typeof text !== 'string') throw invalidArg('text', 'a string', text);
    return this.needText().encodePrompt(text);
  }

  async encodeChat(messages: readonly ChatMessage[], options?: TemplateOptions): Promise<readonly number[]> {
    this.checkAlive();
    return this.chatEncoder(messages, readOptions(options, TEMPLATE_OPTIONS))();
  }

  async decode(ids: readonly number[]): Promise<string> {
    this.checkAlive();
    const stream = this.needText().stream();
    const pieces = tokenIds('ids', ids, this.info.vocabSize).map((id) => stream.push(id));
    return pieces.join('') + stream.end();
  }

  async stats(): Promise<EngineStats> {
    this.checkAlive();
    return this.engine.stats();
  }

  dispose(): Promise<void> {
    this.disposed ??= this.disposeOnce();
    return this.disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  private async disposeOnce(): Promise<void> {
    const reason = disposedError();
    this.disposing.abort(reason);
    await this.engine.close(reason);
    await Promise.all([this.model.dispose(), this.text?.dispose()]);
  }

  private plan(given: Parameters<typeof planSettings>[0]): PlannedSettings {
    const { config, generationDefaults: defaults } = this.model;
    const settings = planSettings(given, { vocabSize: config.vocab_size, eosIds: this.info.eosIds, defaults });
    refuseUnsupported(settings);
    return settings;
  }

  private start(settings: PlannedSettings, encode: () => Promise<readonly number[]>): Generation {
    return new LocalGeneration({
      engine: this.engine,
      context: this.info.context,
      loadMs: this.info.loadMs,
      settings,
      text: this.text?.stream() ?? null,
      encode: async () => {
        this.checkAlive();
        return encode();
      },
    });
  }

  private chatEncoder(messages: unknown, options: Record<string, unknown>): () => Promise<readonly number[]> {
    if (!Array.isArray(messages)) throw invalidArg('messages', 'an array of messages', messages);
    const text = this.needText();
    // The template's own options are checked, like the messages, where they are read.
    const chosen = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    return () => text.encodeChat(messages, chosen);
  }

  /** Checks a prompt now; the ids come later. */
  private encoder(prompt: unknown): () => Promise<readonly number[]> {
    if (typeof prompt === 'string') {
      const text = this.needText();
      return () => text.encodePrompt(prompt);
    }
    if (!Array.isArray(prompt)) throw invalidArg('prompt', 'a string or an array of token ids', prompt);
    const { context } = this.info;
    // An array that cannot fit is not looked through.
    const { length } = prompt;
    if (length > context) {
      return async () => {
        throw new MlaError(
          'ERR_CONTEXT_LENGTH',
          `The prompt has ${length} tokens; expected fewer than the context of ${context}.`,
        );
      };
    }
    const ids = tokenIds('prompt', prompt, this.model.config.vocab_size);
    return async () => ids;
  }

  private needText(): ModelText {
    if (this.text !== null) return this.text;
    throw new MlaError(
      'ERR_TOKENIZER',
      `${this.info.directory} has no tokenizer.json, so texts do not work. Pass an array of token ids as the prompt (--tokens on the command line).`,
    );
  }

  private checkAlive(): void {
    if (this.disposed !== null) throw disposedError();
  }
}

function disposedError(): MlaError {
  return new MlaError('ERR_DISPOSED', 'The model has been disposed.');
}

function unsupported(what: string): MlaError {
  return new MlaError('ERR_UNSUPPORTED', `${what} is not available yet.`);
}

function refuseUnsupported(settings: PlannedSettings): void {
  if (settings.minTokens > 0) throw unsupported('minTokens');
  if (settings.repetitionPenalty !== 1) throw unsupported('repetitionPenalty');
  if (settings.presencePenalty !== 0) throw unsupported('presencePenalty');
  if (settings.frequencyPenalty !== 0) throw unsupported('frequencyPenalty');
  if (Object.keys(settings.logitBias).length > 0) throw unsupported('logitBias');
  if (settings.topLogprobs > 0) throw unsupported('topLogprobs');
  if (settings.priority !== 0) throw unsupported('priority');
  if (settings.cacheSalt !== '') throw unsupported('cacheSalt');
}
