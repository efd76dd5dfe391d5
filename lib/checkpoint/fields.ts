// fields.ts - typed access to the fields of a JSON object that describes a model, with one form of message for all.
import { MlaError } from '../errors';
import type { JsonObject, JsonValue } from './json';
import { shown } from './messages';

/** The fields of one JSON object. A field that is null counts as absent, as it does for the programs that write these files. */
export class Fields {
  /**
   * @param object the parsed object
   * @param source names the file in messages
   * @param path prefix of field names in messages, such as "rope_scaling."
   */
  constructor(
    readonly object: JsonObject,
    readonly source: string,
    private readonly path = '',
  ) {}

  /** The value, or undefined when the field is absent or null. */
  get(name: string): JsonValue | undefined {
    const value = this.object[name];
    return value === null ? undefined : value;
  }

  /** True when the field is there and not null. */
  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  /** An integer from `min` to `max`; without a default it is required. */
  integer(name: string, min: number, max: number, fallback?: number): number {
    const value = this.get(name);
    if (value === undefined && fallback !== undefined) return fallback;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      throw this.broken(name, `an integer from ${min} to ${max}`);
    }
    return value;
  }

  /** A number above `above` and at most `max`; without a default it is required. */
  number(name: string, above: number, max: number, fallback?: number): number {
    const value = this.get(name);
    if (value === undefined && fallback !== undefined) return fallback;
    if (typeof value !== 'number' || !(value > above) || value > max) {
      throw this.broken(name, `a number above ${above} and at most ${max}`);
    }
    return value;
  }

  /** A boolean; without a default it is required. */
  boolean(name: string, fallback?: boolean): boolean {
    const value = this.get(name);
    if (value === undefined && fallback !== undefined) return fallback;
    if (typeof value !== 'boolean') throw this.broken(name, 'true or false');
    return value;
  }

  /** A string, or undefined when absent. */
  text(name: string): string | undefined {
    const value = this.get(name);
    if (value !== undefined && typeof value !== 'string') throw this.broken(name, 'a string');
    return value;
  }

  /** The fields of a nested object, or undefined when absent. */
  nested(name: string): Fields | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    if (typeof value !== 'object' || value === null || Array.isArray(value)) throw this.broken(name, 'an object');
    return new Fields(value, this.source, `${this.path}${name}.`);
  }

  /** ERR_CONFIG: the value of a field is broken or missing. */
  broken(name: string, expected: string): MlaError {
    return this.contradiction(`${this.path}${name}: found ${shown(this.object[name])}, expected ${expected}`);
  }

  /** ERR_CONFIG with a text of one's own. */
  contradiction(text: string): MlaError {
    return new MlaError('ERR_CONFIG', `${this.source}: ${text}.`);
  }

  /** ERR_UNSUPPORTED_MODEL: the value is well formed, but this package does not know how to compute with it. */
  unsupported(name: string, supported: string): MlaError {
    return new MlaError(
      'ERR_UNSUPPORTED_MODEL',
      `${this.source}: ${this.path}${name}: found ${shown(this.object[name])}, supported: ${supported}.`,
    );
  }
}
