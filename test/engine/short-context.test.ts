// Prompts of several sequences share a pass, also where the context is shorter than a pass may be.
import { loadModel } from '../../lib/engine';

test.each([
  [24, 1],
  [24, 2],
  [24, 3],
  [24, 8],
  [70, 16],
])('context %i, %i prompts at once', async (context, maxSequences) => {
  await using model = await loadModel(undefined, { device: 'cpu', threads: 2, context, maxSequences });
  const prompt = Array.from({ length: context - 4 }, (_, i) => i + 5);
  const results = await Promise.all(
    Array.from({ length: maxSequences }, () => model.generate(prompt, { maxTokens: 4, ignoreEos: true }).result),
  );
  const { logprobs } = await model.score(prompt);
  expect(logprobs).toHaveLength(prompt.length);
  for (const { tokens } of results) expect(tokens).toEqual(results[0]?.tokens);
});
