// template-process.ts - runs in a process of its own, started by template-renderer.ts: renders one template after the other.
// It keeps its own time, so that it ends a template that runs for ever even when nobody is left to end the process.
import { runWithin } from './deadline';
import { MAX_RENDERED_LENGTH, TEMPLATE_MS } from './limits';
import type { RenderReply, RenderRequest } from './template-renderer';

/** The part of @huggingface/jinja used here; its own type files are those of an ES module. */
interface Jinja {
  Template: new (source: string) => { render(variables: Record<string, unknown>): string };
}
const { Template } = require('@huggingface/jinja') as Jinja;

process.on('disconnect', () => process.exit(0));
process.on('message', (request: RenderRequest) => answer(render(request)));
answer('ready');

/** The template parsed last: a server renders the same one again and again. */
let parsed: { source: string; template: InstanceType<Jinja['Template']> } | undefined;

function render({ template, variables }: RenderRequest): RenderReply {
  let text = '';
  try {
    const finished = runWithin(TEMPLATE_MS, () => {
      if (parsed?.source !== template) parsed = { source: template, template: new Template(template) };
      text = parsed.template.render(variables);
    });
    if (!finished) return { problem: `it ran for more than ${TEMPLATE_MS} ms` };
  } catch (error) {
    const overflow = error instanceof RangeError && /call stack/.test(error.message);
    return { problem: overflow ? 'it is nested too deep' : `it failed: ${printable(error)}` };
  }
  if (typeof text !== 'string') return { problem: 'it gave no text' };
  if (text.length > MAX_RENDERED_LENGTH)
    return { problem: `its output of ${text.length} characters is over ${MAX_RENDERED_LENGTH}` };
  return { text };
}

function answer(reply: RenderReply): void {
  process.send?.(reply);
}

/** What a template raised, in one short line: the text may be anything. */
function printable(error: unknown): string {
  const message = error instanceof Error ? error.message : 'unknown error';
  return message.slice(0, 300).replace(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, ' ');
}
