// A model in a worker thread of its own: it goes on while this thread is busy with something else.
//   node examples/worker.mjs [FOLDER]
import { loadModel } from 'node-mla';

const model = await loadModel(process.argv[2], { thread: 'worker' });
try {
  // `result` lets the model run ahead; a loop over the generation would be waited for.
  const result = model.generate('In the beginning', { maxTokens: 40 }).result;
  await new Promise((resolve) => setTimeout(resolve, 50));

  const began = performance.now();
  let busy = 0;
  while (performance.now() - began < 300) busy += Math.sqrt(busy + 1);

  const { text, usage } = await result;
  console.log(`the worker wrote ${usage.completionTokens} tokens while this thread was busy for 300 ms`);
  console.log(text.trim());
} finally {
  await model.dispose();
}
