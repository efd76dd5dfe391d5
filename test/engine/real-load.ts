// real-load.ts - loads on the model of the package, on the CPU: how long the event loop waits, what memory stays, and
// whether texts are the same every way.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { BUNDLED_MODEL, type LoadOptions, loadModel, type Model } from '../../lib/engine';
import { randomBelow } from './random-load';

const passages: { text: string }[] = JSON.parse(readFileSync(join(BUNDLED_MODEL, 'passages.json'), 'utf8'));

export async function withModel<T>(options: LoadOptions, work: (model: Model) => Promise<T>): Promise<T> {
  const model = await loadModel(undefined, { device: 'cpu', context: 512, ...options });
  try {
    return await work(model);
  } finally {
    await model.dispose();
  }
}

/**
 * Delay of the event loop, in milliseconds, while 16 texts are made.
 * @param disturb called now and then on the event loop
 */
export async function loopDelay(
  tokens: number,
  disturb: () => void = () => {},
): Promise<{ p50: number; p99: number; max: number }> {
  return withModel({ maxSequences: 16 }, async (model) => {
    const generate = (maxTokens: number) =>
      Promise.all(
        Array.from({ length: 16 }, (_, i) => {
          const prompt = passages[i % passages.length]?.text as string;
          return model.generate(prompt, { maxTokens, seed: i, temperature: 1, ignoreEos: true }).result;
        }),
      );
    await generate(8); // graphs are captured, code is compiled
    const monitor = monitorEventLoopDelay({ resolution: 1 });
    monitor.enable();
    const timer = setInterval(disturb, 100);
    await generate(tokens);
    clearInterval(timer);
    monitor.disable();
    const ms = (value: number) => Math.round(value / 1e4) / 100;
    return { p50: ms(monitor.percentile(50)), p99: ms(monitor.percentile(99)), max: ms(monitor.max) };
  });
}

/**
 * How many bytes of memory remain of `cycles` calls of `work`, after some to warm up: what lives on V8's heap, and all
 * that is resident outside of it. The empty space that V8 keeps for young objects grows and shrinks as it likes.
 */
export async function growth(cycles: number, warmUp: number, work: (i: number) => Promise<void>): Promise<number> {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  const settled = async () => {
    for (let i = 0; i < 5; i++) {
      gc();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const { used_heap_size: used, total_physical_size: resident } = getHeapStatistics();
    return process.memoryUsage().rss - resident + used;
  };
  for (let i = 0; i < warmUp; i++) await work(i);
  const before = await settled();
  for (let i = 0; i < cycles; i++) await work(warmUp + i);
  return (await settled()) - before;
}

/** The texts of `count` prompts: whole and alone, in company, and streamed in company. Throws where they differ. */
export async function sameTexts(count: number): Promise<{ texts: number; tokens: number; cachedTokens: number }> {
  const random = randomBelow(5);
  const prompts = Array.from({ length: count }, (_, i) => {
    const words = (passages[i % passages.length] as { text: string }).text.split(' ');
    return words.slice(0, 1 + random(words.length)).join(' ');
  });
  const options = (i: number) => ({ maxTokens: 12, seed: i, temperature: 3, stop: ['the', 'e a'], ignoreEos: true });
  const alone = await withModel({ maxSequences: 1, prefixCache: false }, async (model) => {
    const texts: string[] = [];
    for (const [i, prompt] of prompts.entries()) texts.push((await model.generate(prompt, options(i)).result).text);
    return texts;
  });
  return withModel({ maxSequences: 16, prefillChunk: 64 }, async (model) => {
    const whole = await Promise.all(
      prompts.map(async (prompt, i) => (await model.generate(prompt, options(i)).result).text),
    );
    const streamed = await Promise.all(
      prompts.map(async (prompt, i) => {
        let text = '';
        for await (const chunk of model.generate(prompt, options(i))) text += chunk.text;
        return text;
      }),
    );
    for (const [i, text] of alone.entries()) {
      if (whole[i] !== text)
        throw new Error(`prompt ${i} alone: ${JSON.stringify(text)}, in company: ${JSON.stringify(whole[i])}`);
      if (streamed[i] !== text)
        throw new Error(`prompt ${i} whole: ${JSON.stringify(text)}, streamed: ${JSON.stringify(streamed[i])}`);
    }
    const { completionTokens, cachedTokens } = await model.stats();
    return { texts: count, tokens: completionTokens, cachedTokens };
  });
}
