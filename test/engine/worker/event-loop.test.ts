// While a model in a worker generates, the event loop of the main thread stays free.
import { runScript } from './child-script';

const MEASURE = `
const { monitorEventLoopDelay } = require('node:perf_hooks');
(async () => {
  const model = await load({ maxSequences: 16, context: 1024 });
  const one = (i) => model.generate('In the beginning', { maxTokens: 200, ignoreEos: true, temperature: 1, seed: i }).result;
  await Promise.all(Array.from({ length: 16 }, (_, i) => one(i)));
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const began = performance.now();
  let tokens = 0;
  delay.enable();
  await Promise.all(Array.from({ length: 16 }, async (_, i) => {
    const generation = model.generate('And God said', { maxTokens: 400, ignoreEos: true, temperature: 1, seed: i });
    for await (const chunk of generation) tokens += chunk.tokens.length;
  }));
  delay.disable();
  const seconds = (performance.now() - began) / 1000;
  const ms = (ns) => Number((ns / 1e6).toFixed(1));
  console.log(JSON.stringify({ tokens, perSecond: Math.round(tokens / seconds), p50: ms(delay.percentile(50)), p99: ms(delay.percentile(99)), max: ms(delay.max) }));
  await model.dispose();
})();`;

test('p99 of its delay is below 50 ms with 16 sequences streaming', async () => {
  const { code, stdout, stderr } = await runScript(MEASURE);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { tokens, perSecond, p50, p99, max } = JSON.parse(stdout) as Record<string, number>;
  expect(tokens).toBe(16 * 400);
  console.log(`16 sequences, ${perSecond} tokens/s; event-loop delay p50 ${p50} ms, p99 ${p99} ms, max ${max} ms`);
  expect(p99).toBeLessThan(50);
}, 60_000);
