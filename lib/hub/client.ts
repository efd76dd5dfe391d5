// hub/client.ts - what this package asks of the Hub, over HTTP: which files a revision has, what they are, and bytes.
//
// HF_ENDPOINT names another Hub, HF_TOKEN (or the file that `hf auth login` writes) the user. The token goes to the Hub
// alone: where it sends a download elsewhere, fetch drops the header.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { MlaError } from '../errors';
import { COMMIT, homeFolder } from './cache';
import type { Repository } from './repository';

/** What the Hub says of one file before it sends it. */
export interface HubFile {
  name: string;
  /** bytes */
  size: number;
  /** the blob's name in the cache: SHA-256 of a large file, else git's hash of the content */
  etag: string;
}

/** Some bytes of a file, as they arrive. */
export interface HubBody {
  /** where they begin */
  start: number;
  /** bytes of the whole file */
  size: number;
  chunks: AsyncIterable<Uint8Array>;
}

interface ClientOptions {
  endpoint?: string | undefined;
  token?: string | undefined;
  signal?: AbortSignal | undefined;
  /** Milliseconds without an answer, or without a byte, after which a request is given up. */
  patienceMs?: number | undefined;
}

const ENDPOINT = 'https://huggingface.co';
const PATIENCE_MS = 30_000;
const ATTEMPTS = 5;
const FIRST_PAUSE_MS = 500;
const MAX_LIST_BYTES = 32 << 20;

/** A failure after which another attempt may succeed. */
export class Passing extends MlaError {}

/** One Hub, one user. */
export class HubClient {
  readonly endpoint: string;
  readonly #token: string | undefined;
  readonly #signal: AbortSignal | undefined;
  readonly #patienceMs: number;

  /** @throws ERR_HUB when HF_HUB_OFFLINE forbids to ask, or HF_ENDPOINT is no URL */
  constructor({ endpoint = process.env.HF_ENDPOINT || ENDPOINT, token, signal, patienceMs }: ClientOptions = {}) {
    if (/^(1|on|yes|true)$/i.test(process.env.HF_HUB_OFFLINE ?? '')) {
      throw new MlaError('ERR_HUB', 'HF_HUB_OFFLINE is set, so the Hub is not asked; unset it to download.');
    }
    if (!/^https?:\/\/[^/]/.test(endpoint) || !URL.canParse(endpoint)) {
      throw new MlaError('ERR_HUB', `HF_ENDPOINT: expected a URL such as ${ENDPOINT}, got "${endpoint}".`);
    }
    this.endpoint = endpoint.replace(/\/+$/, '');
    this.#token = token ?? storedToken();
    this.#signal = signal;
    this.#patienceMs = patienceMs ?? PATIENCE_MS;
  }

  /** The commit of a revision and the names of its files. Rejects with ERR_HUB. */
  async list(repository: Repository): Promise<{ commit: string; files: string[] }> {
    const url = `${this.endpoint}/api/models/${repository.id}/revision/${encodeURIComponent(repository.revision)}`;
    const what = `${repository.id}@${repository.revision}`;
    const body = await this.retrying(async () => {
      const response = await this.#request(url, what);
      if (response === null) throw new MlaError('ERR_HUB', `${what}: the Hub knows no such model or revision.`);
      return firstBytes(this.#chunks(response, what), MAX_LIST_BYTES);
    });
    const wrong = () => new MlaError('ERR_HUB', `${this.endpoint}: the list of files of ${what} is not understood.`);
    let answer: { sha?: unknown; siblings?: unknown };
    try {
      answer = JSON.parse(body.toString('utf8'));
    } catch {
      throw wrong();
    }
    const { sha, siblings } = answer ?? {};
    if (typeof sha !== 'string' || !COMMIT.test(sha) || !Array.isArray(siblings)) throw wrong();
    const files = siblings.map((entry) => (entry as { rfilename?: unknown } | null)?.rfilename);
    if (!files.every((name) => typeof name === 'string')) throw wrong();
    return { commit: sha, files };
  }

  /** Size and identity of a file; null when the revision has none of that name. Rejects with ERR_HUB. */
  async describe(repository: Repository, name: string): Promise<HubFile | null> {
    return this.retrying(async () => {
      const what = `${repository.id}/${name}`;
      const response = await this.#head(this.#url(repository, name), what);
      if (response === null) return null;
      const { headers } = response;
      const etag = (headers.get('x-linked-etag') ?? headers.get('etag') ?? '').replace(/^W\//, '').replaceAll('"', '');
      const size = Number(headers.get('x-linked-size') ?? headers.get('content-length') ?? Number.NaN);
      if (!/^[0-9a-f]{40}$|^[0-9a-f]{64}$/.test(etag) || !Number.isSafeInteger(size) || size < 0) {
        const found = `etag "${etag.slice(0, 80)}" and size ${size}`;
        throw new MlaError('ERR_HUB', `${what}: the Hub gave ${found}, expected a hash and a number of bytes.`);
      }
      return { name, size, etag };
    });
  }

  /** Bytes of a file from `start` on, at most `length`. One attempt: the caller knows what it has. Rejects with ERR_HUB. */
  async open(repository: Repository, name: string, start: number, length?: number): Promise<HubBody | null> {
    const what = `${repository.id}/${name}`;
    const end = length === undefined ? '' : String(start + length - 1);
    const response = await this.#request(this.#url(repository, name), what, {
      headers: { range: `bytes=${start}-${end}`, 'accept-encoding': 'identity' },
    });
    if (response === null) return null;
    const range = /^bytes (\d+)-\d+\/(\d+)$/.exec(response.headers.get('content-range') ?? '');
    if (response.status === 206 && Number(range?.[1]) !== start) {
      await response.body?.cancel();
      throw new Passing('ERR_HUB', `${what}: bytes from ${start} on were asked for and others came.`);
    }
    // A server that knows no ranges sends everything.
    const size =
      response.status === 206 ? Number(range?.[2]) : Number(response.headers.get('content-length') ?? Number.NaN);
    const began = response.status === 206 ? start : 0;
    return { start: began, size, chunks: this.#chunks(response, what) };
  }

  /**
   * Runs `attempt` again after failures that may pass, with growing pauses. `progress` is a number that grows while
   * attempts achieve something; then the count begins anew.
   */
  async retrying<T>(attempt: () => Promise<T>, progress: () => number = () => 0): Promise<T> {
    let reached = progress();
    for (let i = 1; ; i++) {
      try {
        return await attempt();
      } catch (error) {
        this.#signal?.throwIfAborted();
        if (progress() > reached) i = 1;
        reached = progress();
        if (!(error instanceof Passing) || i === ATTEMPTS) throw error;
        await sleep(
          FIRST_PAUSE_MS * 2 ** (i - 1),
          undefined,
          this.#signal === undefined ? {} : { signal: this.#signal },
        );
      }
    }
  }

  /**
   * Redirects are followed within the Hub (a model that was renamed) and no further: the one that leads to where large
   * files lie has their identity, what it leads to may not.
   */
  async #head(url: string, what: string, redirects = 3): Promise<Response | null> {
    const headers = { 'accept-encoding': 'identity' };
    const response = await this.#request(url, what, { method: 'HEAD', redirect: 'manual', headers });
    const location = response?.headers.get('location') ?? null;
    if (location === null || redirects === 0) return response;
    const next = new URL(location, url);
    return next.origin === new URL(url).origin ? this.#head(next.href, what, redirects - 1) : response;
  }

  #url({ id, revision }: Repository, name: string): string {
    return `${this.endpoint}/${id}/resolve/${encodeURIComponent(revision)}/${encodeURIComponent(name)}`;
  }

  /** The response; null for 404 on a file. */
  async #request(url: string, what: string, init: RequestInit = {}): Promise<Response | null> {
    const headers: Record<string, string> = { ...(init.headers as Record<string, string>), 'user-agent': 'node-mla' };
    if (this.#token !== undefined) headers.authorization = `Bearer ${this.#token}`;
    const patience = new AbortController();
    const timer = setTimeout(() => patience.abort(), this.#patienceMs);
    let response: Response;
    try {
      const signals = this.#signal === undefined ? [patience.signal] : [patience.signal, this.#signal];
      response = await fetch(url, { ...init, headers, signal: AbortSignal.any(signals) });
    } catch (cause) {
      this.#signal?.throwIfAborted();
      const why = patience.signal.aborted ? `no answer within ${this.#patienceMs / 1000} s` : reasonOf(cause);
      throw new Passing('ERR_HUB', `${what}: ${this.endpoint} cannot be reached (${why}).`, { cause });
    } finally {
      clearTimeout(timer);
    }
    if (response.ok || (init.redirect === 'manual' && response.status >= 300 && response.status < 400)) return response;
    await response.body?.cancel();
    return this.#refused(response, what);
  }

  #refused({ status, headers }: Response, what: string): null {
    if (status === 404 && headers.get('x-error-code') === 'EntryNotFound') return null;
    const login = this.#token === undefined ? ' Set HF_TOKEN if it is private.' : '';
    const words: Record<number, string> = {
      401: `it does not exist, or needs a token.${login}`,
      403: `access is refused.${login} A gated model has to be accepted on its page first.`,
      404: `there is no such model, revision or file.${login}`,
    };
    const passing = status === 408 || status === 429 || status >= 500;
    const text = `${what}: ${this.endpoint} answered ${status}${words[status] === undefined ? '.' : `: ${words[status]}`}`;
    throw passing ? new Passing('ERR_HUB', text) : new MlaError('ERR_HUB', text);
  }

  async *#chunks(response: Response, what: string): AsyncGenerator<Uint8Array> {
    const reader = response.body?.getReader();
    if (reader === undefined) return;
    try {
      for (;;) {
        const { done, value } = await this.#withPatience(reader, what);
        if (done) return;
        yield value;
      }
    } finally {
      await reader.cancel().catch(() => {});
    }
  }

  async #withPatience(reader: ReadableStreamDefaultReader<Uint8Array>, what: string) {
    let timer: NodeJS.Timeout | undefined;
    const stalled = new Promise<never>((_, reject) => {
      const text = `${what}: no byte came for ${this.#patienceMs / 1000} s.`;
      timer = setTimeout(() => reject(new Passing('ERR_HUB', text)), this.#patienceMs);
    });
    try {
      return await Promise.race([reader.read(), stalled]);
    } catch (cause) {
      this.#signal?.throwIfAborted();
      if (cause instanceof MlaError) throw cause;
      throw new Passing('ERR_HUB', `${what}: the connection broke (${reasonOf(cause)}).`, { cause });
    } finally {
      clearTimeout(timer);
    }
  }
}

/** The first `most` bytes of a body; the rest is not waited for. */
export async function firstBytes(chunks: AsyncIterable<Uint8Array>, most: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of chunks) {
    parts.push(chunk);
    bytes += chunk.length;
    if (bytes >= most) break;
  }
  return Buffer.concat(parts).subarray(0, most);
}

/** fetch hides what happened behind "fetch failed". */
function reasonOf(error: unknown): string {
  const { cause } = error as { cause?: NodeJS.ErrnoException };
  return cause?.code ?? cause?.message ?? (error as Error).message;
}

function storedToken(): string | undefined {
  if (process.env.HF_TOKEN) return process.env.HF_TOKEN.trim();
  try {
    return readFileSync(process.env.HF_TOKEN_PATH || join(homeFolder(), 'token'), 'utf8').trim() || undefined;
  } catch {
    return undefined;
  }
}
