// hub/repository.ts - names of models on the Hub.
import { invalidArg } from '../errors';

/** A model of the Hub at one revision. */
export interface Repository {
  /** "org/name" */
  id: string;
  /** a branch, a tag or a commit */
  revision: string;
}

/** The Hub's own rule: letters, digits, "-", "_" and "."; no ".." and no "--", which the cache uses as separator. */
const PART = /^(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?$/;
const REVISION = /^(?!.*(?:\.\.|\/\/))[A-Za-z0-9][\w./-]{0,254}$/;

/** Reads "org/name" or "org/name@revision"; null when the text is neither. */
export function parseRepository(text: string): Repository | null {
  const at = text.indexOf('@');
  const id = at < 0 ? text : text.slice(0, at);
  const revision = at < 0 ? 'main' : text.slice(at + 1);
  const parts = id.split('/');
  if (parts.length !== 2 || !parts.every((part) => PART.test(part)) || !REVISION.test(revision)) return null;
  return { id, revision };
}

/** The same. @throws ERR_INVALID_ARG */
export function requireRepository(name: string, text: string): Repository {
  const repository = parseRepository(text);
  if (repository === null) throw invalidArg(name, 'a model of the Hub, "org/name" or "org/name@revision"', text);
  return repository;
}
