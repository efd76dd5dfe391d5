// template-renderer.ts - renders chat templates in a child process. A template comes with a checkpoint, so it is a program from
// a stranger: it may loop or eat memory. A worker thread would not do: V8's limit for a thread holds only against many small
// allocations; a single large one (`range(10**9)` is enough) ends the whole process. A child of its own can only end itself.
import { type ChildProcess, fork } from 'node:child_process';
import { describe, MlaError } from '../errors';
import { entryFile } from './entry-file';
import { RENDERER_START_MS, TEMPLATE_GRACE_MS, TEMPLATE_HEAP_MB, TEMPLATE_MS } from './limits';

export interface RenderRequest {
  template: string;
  /** Plain data. */
  variables: Record<string, unknown>;
}

export type RenderReply = 'ready' | { text: string } | { problem: string };

/** No addons, no code from strings, and a heap that ends this process when a template fills it. */
const NODE_OPTIONS = [
  `--max-old-space-size=${TEMPLATE_HEAP_MB}`,
  '--max-semi-space-size=8',
  '--disallow-code-generation-from-strings',
  '--disable-proto=delete',
  '--no-addons',
];

/** Renders one template after the other in a child process, which is started when needed and kept; it never holds this process. */
export class TemplateRenderer {
  private child: ChildProcess | null = null;
  private last: Promise<unknown> = Promise.resolve();

  /**
   * Starts the child now, so that the first `render` need not wait. Starting a process takes longer the more memory this one
   * uses, so the best time is before weights are loaded.
   * @throws ERR_TEMPLATE when no child can be started
   */
  warm(): Promise<void> {
    return this.inTurn(async () => {
      await this.running();
    });
  }

  /** @throws ERR_TEMPLATE when the template fails or breaks a limit of time, memory or size */
  render(request: RenderRequest): Promise<string> {
    return this.inTurn(async () => {
      const child = await this.running();
      const reply = await this.ask(child, TEMPLATE_MS + TEMPLATE_GRACE_MS, request);
      if (typeof reply === 'object' && 'text' in reply) return reply.text;
      const problem = typeof reply === 'object' ? reply.problem : 'its process answered out of turn';
      throw new MlaError('ERR_TEMPLATE', `The chat template cannot be used: ${problem}.`);
    });
  }

  /** Ends the child after the template it works on. Rendering again starts another. */
  dispose(): Promise<void> {
    return this.inTurn(async () => {
      this.child?.kill('SIGKILL');
      this.child = null;
    });
  }

  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.last.then(work);
    this.last = turn.catch(() => undefined);
    return turn;
  }

  private async running(): Promise<ChildProcess> {
    if (this.child?.connected) return this.child;
    const child = start();
    child.on('error', () => undefined); // reported by ask(); an unheard 'error' would end this process
    this.child = child;
    await this.ask(child, RENDERER_START_MS, null);
    return child;
  }

  /** Sends a request (null: none) and waits for the next message; whatever else happens first ends the child and rejects. */
  private ask(child: ChildProcess, milliseconds: number, request: RenderRequest | null): Promise<RenderReply> {
    return new Promise((resolve, reject) => {
      const lost = (problem: string, cause?: unknown) => {
        leave();
        if (this.child === child) this.child = null;
        child.kill('SIGKILL');
        const what =
          request === null
            ? 'The process that renders chat templates did not start'
            : 'The chat template cannot be used';
        reject(new MlaError('ERR_TEMPLATE', `${what}: ${problem}.`, { cause }));
      };
      const onMessage = (reply: RenderReply) => {
        leave();
        resolve(reply);
      };
      const onError = (cause: unknown) => lost('its process failed', cause);
      const onExit = (code: number | null, signal: string | null) =>
        lost(
          request === null
            ? `it ended (${signal ?? code})`
            : `its process ended (${signal ?? code}), most likely for more than ${TEMPLATE_HEAP_MB} MB of memory`,
        );
      const timer = setTimeout(() => lost(`it ran for more than ${milliseconds} ms`), milliseconds);
      const leave = () => {
        clearTimeout(timer);
        child.off('message', onMessage).off('error', onError).off('exit', onExit);
        child.unref();
        child.channel?.unref();
      };
      child.ref();
      child.channel?.ref();
      child.on('message', onMessage).on('error', onError).on('exit', onExit);
      if (request !== null) child.send(request, (error) => error !== null && onError(error));
    });
  }
}

/** The one renderer of this process: templates of all models share it. */
export const sharedRenderer = new TemplateRenderer();

function start(): ChildProcess {
  try {
    return fork(entryFile(__dirname, 'template-process'), [], {
      execArgv: NODE_OPTIONS,
      env: environment(),
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    });
  } catch (cause) {
    throw new MlaError('ERR_TEMPLATE', `The process that renders chat templates did not start: ${describe(cause)}.`, {
      cause,
    });
  }
}

/** Only what finding shared libraries and telling the date need; nothing of the user's secrets or NODE_OPTIONS. */
function environment(): NodeJS.ProcessEnv {
  const kept: NodeJS.ProcessEnv = {};
  for (const name of ['LD_LIBRARY_PATH', 'TZ', 'LANG', 'LC_ALL', 'ELECTRON_RUN_AS_NODE']) {
    if (process.env[name] !== undefined) kept[name] = process.env[name];
  }
  return kept;
}
