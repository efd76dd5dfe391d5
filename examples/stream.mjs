// Streams a text as it is made, with the small model of the package.
//   node examples/stream.mjs ["The beginning of a text"]
import { loadModel } from 'node-mla';

const prompt = process.argv[2] ?? 'When thou takest the sum of the children of Israel after their number, then';

const model = await loadModel();
try {
  const generation = model.generate(prompt, { maxTokens: 48 });
  for await (const { text } of generation) process.stdout.write(text);

  const { finishReason, usage, timings } = await generation.result;
  console.log(`\n-- ${finishReason} after ${usage.completionTokens} tokens, ${Math.round(timings.decodeMs)} ms`);
} finally {
  await model.dispose();
}
