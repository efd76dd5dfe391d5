// Sequences of a model in a worker thread do what those of a model in this thread do.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type LoadOptions, loadModel, type Model, type Sequence } from '../../../lib/engine';
import { rejection } from '../make-model';

const LOAD: LoadOptions = { device: 'cpu', threads: 2, context: 512 };
const folder = mkdtempSync(join(tmpdir(), 'mla-sequence-'));
let models: Model[];
beforeAll(async () => {
  models = await Promise.all([loadModel(undefined, { ...LOAD, thread: 'worker' }), loadModel(undefined, LOAD)]);
});
afterAll(() => Promise.all(models.map((model) => model.dispose())));

/** What can be seen of a sequence. */
const seen = ({ tokens, cachedTokens, disposed }: Sequence) => ({ tokens: [...tokens], cachedTokens, disposed });

/** The same story with both models, told to the same end. */
async function both(story: (model: Model, name: string) => Promise<unknown>): Promise<unknown> {
  const [remote, local] = await Promise.all(models.map((model, i) => story(model, `${i}`)));
  expect(remote).toEqual(local);
  return remote;
}

test('append, generate, fork, save, restore and dispose', async () => {
  await both(async (model, name) => {
    const steps: unknown[] = [];
    const sequence = await model.createSequence();
    steps.push(seen(sequence));
    await sequence.append('In the beginning');
    steps.push(seen(sequence));
    const fork = await sequence.fork();
    const { text, tokens } = await sequence.generate(' God', { maxTokens: 12, temperature: 0 }).result;
    steps.push(text, tokens, seen(sequence), seen(fork));
    let streamed = '';
    for await (const chunk of fork.generate(' was', { maxTokens: 8, temperature: 1, seed: 3 })) streamed += chunk.text;
    steps.push(streamed, seen(fork));
    const path = join(folder, `saved-${name}`);
    await sequence.save(path);
    const restored = await model.restore(path);
    steps.push(seen(restored), (await restored.generate(' And', { maxTokens: 6, temperature: 0 }).result).text);
    await Promise.all([sequence.dispose(), sequence.dispose(), fork.dispose(), restored[Symbol.asyncDispose]()]);
    steps.push(sequence.disposed, (await model.stats()).pages.held);
    return steps;
  });
});

test('aborted and left generations leave a sequence as it was', async () => {
  await both(async (model) => {
    const sequence = await model.createSequence();
    await sequence.append('In the beginning');
    const controller = new AbortController();
    const aborted = sequence.generate(' God', { maxTokens: 300, ignoreEos: true, signal: controller.signal });
    for await (const _ of aborted) break;
    const reason = await rejection(aborted.result);
    const again = sequence.generate(' God', { maxTokens: 4, temperature: 0 });
    const { text } = await again.result;
    controller.abort('why');
    const after = await rejection(sequence.generate('x', { signal: controller.signal }).result);
    const shown = seen(sequence);
    await sequence.dispose();
    return [(reason as { code: string }).code, text, after, shown];
  });
});

test('what is wrong', async () => {
  await both(async (model, name) => {
    const path = join(folder, `broken-${name}`);
    writeFileSync(path, 'not a saved sequence');
    const codes: unknown[] = [];
    const code = async (ask: () => Promise<unknown>) => codes.push((await rejection(ask())) as { code: string });
    const sequence = await model.createSequence();
    await code(() => model.restore(path));
    await code(() => model.restore('/nonexistent'));
    await code(() => model.restore(7 as unknown as string));
    await code(() => sequence.append([-1]));
    await code(() => sequence.append('x', { signal: 1 as unknown as AbortSignal }));
    await code(() => sequence.append('x', { signal: AbortSignal.abort('reason') }));
    expect(() => sequence.generate('x', { temperature: -1 })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARG' }),
    );
    await sequence.dispose();
    await code(() => sequence.append('x'));
    await code(() => sequence.fork());
    await code(() => sequence.save(path));
    return codes.map((error) => (error as { code?: string }).code ?? error);
  });
});

test('sequences go with the model', async () => {
  const model = await loadModel(undefined, { ...LOAD, thread: 'worker' });
  const sequence = await model.createSequence();
  const open = rejection(sequence.generate('In the beginning', { maxTokens: 400, ignoreEos: true }).result);
  await model.dispose();
  expect(await open).toMatchObject({ code: 'ERR_DISPOSED' });
  expect(sequence.disposed).toBe(true);
  expect(await rejection(sequence.append('x'))).toMatchObject({ code: 'ERR_DISPOSED' });
  await sequence.dispose();
});
