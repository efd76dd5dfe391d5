// well-formed.ts - one place for what a lone surrogate means: it has no UTF-8 form, so it counts as U+FFFD.

/** The text with each lone surrogate replaced by U+FFFD (String.prototype.toWellFormed, which the type library lacks). */
export function wellFormed(text: string): string {
  return (text as string & { toWellFormed(): string }).toWellFormed();
}
