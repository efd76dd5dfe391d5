// engine/text.ts - the text side of a checkpoint folder: tokenizer and chat template, or nothing.
import { join } from 'node:path';
import { stat } from '../files';
import { type ChatMessage, ChatTemplate, Detokenizer, type RenderChatOptions, Tokenizer } from '../text';
import type { ModelText } from './model';
import type { TextStream } from './step-model';

/** Tokenizer and chat template of one checkpoint. */
export class CheckpointText implements ModelText {
  private constructor(
    private readonly tokenizer: Tokenizer,
    private readonly template: ChatTemplate,
  ) {}

  /**
   * Reads the tokenizer and the chat template of a folder.
   * @returns null when the folder has no tokenizer.json: such a model works with token ids alone
   * @throws ERR_TOKENIZER or ERR_TEMPLATE for files that are there and broken
   */
  static async load(dir: string): Promise<CheckpointText | null> {
    if (!(await exists(join(dir, 'tokenizer.json')))) return null;
    const tokenizer = await Tokenizer.load(dir);
    try {
      return new CheckpointText(tokenizer, await ChatTemplate.load(dir, tokenizer));
    } catch (error) {
      await tokenizer.dispose();
      throw error;
    }
  }

  /** Whether the checkpoint has a chat template. */
  get hasChatTemplate(): boolean {
    return this.template.origin !== null;
  }

  /** Ids that end a text, as tokenizer_config.json says. */
  get eosIds(): readonly number[] {
    return this.tokenizer.eosIds;
  }

  encodePrompt(text: string): Promise<readonly number[]> {
    return this.tokenizer.encodePrompt(text);
  }

  encodeMore(text: string): Promise<readonly number[]> {
    return this.tokenizer.encodeAsync(text);
  }

  encodeChat(messages: readonly ChatMessage[], options: RenderChatOptions): Promise<readonly number[]> {
    return this.template.renderChat(messages, options);
  }

  stream(): TextStream {
    return new Detokenizer(this.tokenizer);
  }

  dispose(): Promise<void> {
    return this.tokenizer.dispose();
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ENOENT'; // what is there and unreadable is for the tokenizer to refuse
  }
}
