// cli/chat.ts - mla chat: a conversation, at a terminal or through a pipe.
import type { Command } from 'commander';
import { Option } from 'commander';
import type { Model } from '../engine';
import { MlaError } from '../errors';
import { BUILT_IN_TEMPLATES, type BuiltInTemplate, endsInThought } from '../text';
import { ChatCommands } from './chat-commands';
import { Conversation } from './conversation';
import { ClosedPipe, Interrupted, lineOf, UsageError } from './failure';
import {
  addJsonFlag,
  addModelFlags,
  addSamplingFlags,
  type JsonFlag,
  type ModelFlags,
  type SamplingFlags,
  samplingOf,
} from './flags';
import { summaryOf } from './generate';
import type { Interrupts } from './interrupts';
import { messageReader } from './message-reader';
import { complain, note, print } from './output';
import { type Reply, receive, thoughtDisplay } from './reply';
import { runWithModel } from './run-with-model';

interface ChatFlags extends ModelFlags, SamplingFlags, JsonFlag {
  system?: string;
  template?: BuiltInTemplate;
  think?: boolean;
}

/** Nobody reads this: the reply is kept as far as it came. */
const STOPPED = new Error('The reply was stopped.');

/** Adds the command. */
export function addChat(program: Command, interrupts: Interrupts): void {
  const command = program
    .command('chat')
    .description(
      'A conversation. Replies go to stdout, everything else to stderr; without a terminal each line of stdin is a message.',
    )
    .option('--system <text>', 'system message')
    .option('--think', 'ask a model that can do both to reason first; thoughts are shown dimmed')
    .option('--no-think', 'ask it not to; thoughts of a model that reasons all the same are not shown')
    .addOption(
      new Option('--template <name>', "built-in format instead of the checkpoint's template").choices(
        BUILT_IN_TEMPLATES,
      ),
    );
  addJsonFlag(addModelFlags(addSamplingFlags(command))).action((flags: ChatFlags) => chat(flags, interrupts));
}

async function chat(flags: ChatFlags, interrupts: Interrupts): Promise<void> {
  await runWithModel(flags, interrupts.signal, async (model) => {
    const session = new Session(model, flags, interrupts);
    await session.prepare();
    const reader = messageReader(ChatCommands.names);
    if (reader.interactive) note(greeting(model));
    for (;;) {
      if (reader.interactive) process.stderr.write('\n');
      const message = await reader.next(interrupts.signal);
      if (message === null) return;
      try {
        if (message.plain && message.text.startsWith('/') && !message.text.startsWith('//')) {
          if ((await session.commands.run(message.text)) === 'leave') return;
        } else {
          await session.answer(message.plain ? message.text.replace(/^\/\//, '/') : message.text);
        }
      } catch (error) {
        if (endsChat(error) || !reader.interactive) throw error;
        complain(error instanceof UsageError ? error.message : (lineOf(error) ?? String(error)));
      }
    }
  });
}

/** Whether nothing more can be said after an error. */
function endsChat(error: unknown): boolean {
  if (error instanceof Interrupted || error instanceof ClosedPipe) return true;
  return error instanceof MlaError && ['ERR_DEVICE_LOST', 'ERR_WORKER_LOST', 'ERR_DISPOSED'].includes(error.code);
}

function greeting({ info }: Model): string {
  const name = info.directory.split(/[\\/]/).filter(Boolean).pop();
  return [
    `${name}: ${info.modelType}, ${info.layers} layers, context ${info.context}`,
    `on ${info.device.name} (${info.device.path})`,
    '/help lists the commands; Ctrl+C stops a reply, Ctrl+D leaves',
  ].join('\n');
}

/** One model in one conversation. */
class Session {
  readonly conversation: Conversation;
  readonly commands: ChatCommands;
  private readonly templateOptions: { thinking?: boolean; template?: BuiltInTemplate };

  constructor(
    private readonly model: Model,
    private readonly flags: ChatFlags,
    private readonly interrupts: Interrupts,
  ) {
    this.conversation = new Conversation(flags.system ?? null);
    this.commands = new ChatCommands(model, this.conversation);
    const { think, template } = flags;
    this.templateOptions = {
      // R1's format always reasons; asking for it would be refused as something that cannot be chosen.
      ...(think === undefined || (think && template === 'deepseek-r1') ? {} : { thinking: think }),
      ...(template === undefined ? {} : { template }),
    };
  }

  /** Finds out whether this model can chat at all, before anybody types. */
  async prepare(): Promise<void> {
    await this.model.encodeChat([{ role: 'user', content: 'Hello' }], this.templateOptions);
  }

  /** Answers a message; both stay in the conversation, unless nothing was answered. */
  async answer(message: string): Promise<void> {
    const { conversation } = this;
    conversation.add({ role: 'user', content: message });
    let reply: Reply;
    try {
      reply = await this.interrupts.during(STOPPED, (signal) => this.reply(signal));
    } catch (error) {
      conversation.takeBack();
      throw error;
    }
    const { thought, answer, result } = reply;
    if (result === null && answer === '') conversation.takeBack();
    else {
      const reasoning = thought === '' ? {} : { reasoning_content: thought };
      conversation.add({ role: 'assistant', content: answer, ...reasoning });
    }
    await this.tell(reply);
  }

  private async reply(signal: AbortSignal): Promise<Reply> {
    const { model, flags } = this;
    const prompt = await model.encodeChat(this.conversation.messages, this.templateOptions);
    const room = model.info.context - prompt.length;
    if (room < 1) {
      throw new MlaError(
        'ERR_CONTEXT_LENGTH',
        `The conversation has ${prompt.length} tokens; expected fewer than the context of ${model.info.context}. /reset begins a new one; --context sets a larger context.`,
      );
    }
    const maxTokens = Math.min(flags.maxTokens ?? room, room);
    const generation = model.generate(prompt, { ...samplingOf(flags), maxTokens, signal });
    return receive(generation, {
      inThought: endsInThought(await model.decode(prompt.slice(-8))),
      show: flags.json ? null : thoughtDisplay(flags.think),
      stopped: STOPPED,
    });
  }

  private async tell({ thought, answer, result }: Reply): Promise<void> {
    if (this.flags.json) {
      const { finishReason, usage, timings } = result ?? { finishReason: 'aborted', usage: null, timings: null };
      await print(`${JSON.stringify({ text: answer, thought, finishReason, usage, timings })}\n`);
      return;
    }
    if (result === null) {
      note(answer === '' ? 'stopped; the message is taken back' : 'stopped');
      return;
    }
    this.commands.count(result);
    const { promptTokens, completionTokens } = result.usage;
    const length = `context ${promptTokens + completionTokens}/${this.model.info.context}`;
    const cut = result.finishReason === 'length' ? ' | cut off: no room for more' : '';
    note(`${summaryOf(result.usage, result.timings)} | ${length}${cut}`);
  }
}
