// A Hub on this machine: the list of files, HEAD and ranged GET as huggingface.co answers them, large files by a
// redirect to another host. It can be told to misbehave.
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export const COMMIT = 'c'.repeat(40);

/** What goes wrong; each function is asked for every GET of content. */
export interface Mischief {
  /** bytes after which the connection breaks; null: never */
  cutAfter?: (file: string, start: number) => number | null;
  /** what is sent instead of the content */
  replace?: (file: string, content: Buffer) => Buffer;
  /** a status instead of an answer, for any request */
  status?: (file: string, method: string) => number | null;
  /** ranges are ignored */
  noRanges?: boolean;
  /** content is never sent */
  silent?: boolean;
}

export interface Asked {
  method: string;
  path: string;
  range: string | undefined;
  authorization: string | undefined;
  /** whether the host for large files was asked */
  cdn: boolean;
}

const LARGE = /\.safetensors$/;

/** SHA-256 for large files, git's blob hash for others, as the Hub does. */
export function etagOf(name: string, content: Buffer): string {
  if (LARGE.test(name)) return createHash('sha256').update(content).digest('hex');
  return createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex');
}

export class FakeHub {
  readonly asked: Asked[] = [];
  mischief: Mischief = {};
  #hub: Server;
  #cdn: Server;

  /** `files`: name to content, of "org/name" at main and at {@link COMMIT}. */
  constructor(
    readonly files: Map<string, Buffer>,
    readonly token: string | null = null,
  ) {
    this.#hub = createServer((request, response) => this.#answer(request, response, false));
    this.#cdn = createServer((request, response) => this.#answer(request, response, true));
  }

  async start(): Promise<string> {
    for (const server of [this.#hub, this.#cdn])
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return this.#address(this.#hub);
  }

  async stop(): Promise<void> {
    for (const server of [this.#hub, this.#cdn]) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  #address(server: Server): string {
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  #answer(request: IncomingMessage, response: ServerResponse, cdn: boolean): void {
    const { method = 'GET', headers } = request;
    const path = decodeURIComponent(request.url ?? '');
    const { range, authorization } = headers;
    this.asked.push({ method, path, range, authorization, cdn });
    const end = (status: number, more: Record<string, string> = {}) => response.writeHead(status, more).end();
    const name = path.split('/').at(-1) as string;
    const bad = this.mischief.status?.(name, method) ?? null;
    if (bad !== null) return void end(bad);
    if (!cdn && this.token !== null && authorization !== `Bearer ${this.token}`) return void end(401);
    const list = /^\/api\/models\/org\/name\/revision\/(main|c{40})$/.exec(path);
    if (list !== null) {
      const siblings = [...this.files.keys()].map((rfilename) => ({ rfilename }));
      return void response.end(JSON.stringify({ sha: COMMIT, siblings }));
    }
    if (!/^\/org\/name\/resolve\/(main|c{40})\/[^/]+$/.test(path))
      return void end(404, { 'x-error-code': 'RepoNotFound' });
    const content = this.files.get(name);
    if (content === undefined) return void end(404, { 'x-error-code': 'EntryNotFound' });
    const etag = etagOf(name, content);
    if (LARGE.test(name) && !cdn) {
      const identity = {
        'x-linked-etag': `"${etag}"`,
        'x-linked-size': String(content.length),
        etag: '"of the pointer"',
      };
      return void end(302, { location: this.#address(this.#cdn) + path, ...identity });
    }
    if (method === 'HEAD') return void end(200, { etag: `"${etag}"`, 'content-length': String(content.length) });
    this.#send(response, name, content, range);
  }

  #send(response: ServerResponse, name: string, content: Buffer, range: string | undefined): void {
    const { cutAfter, replace, noRanges, silent } = this.mischief;
    const sent = replace?.(name, content) ?? content;
    const asked = noRanges ? null : /^bytes=(\d+)-(\d*)$/.exec(range ?? '');
    const start = Number(asked?.[1] ?? 0);
    const end = asked?.[2] ? Math.min(Number(asked[2]) + 1, sent.length) : sent.length;
    if (start >= sent.length && sent.length > 0) return void response.writeHead(416).end();
    const headers: Record<string, string> = { 'content-length': String(end - start) };
    if (asked) headers['content-range'] = `bytes ${start}-${end - 1}/${sent.length}`;
    response.writeHead(asked ? 206 : 200, headers);
    if (silent) return void response.flushHeaders();
    const cut = cutAfter?.(name, start) ?? null;
    if (cut === null || cut >= end - start) return void response.end(sent.subarray(start, end));
    response.write(sent.subarray(start, start + cut), () => setTimeout(() => response.destroy(), 20));
  }
}
