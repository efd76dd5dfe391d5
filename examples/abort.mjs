// Three texts at once on one model; one of them is aborted, the others do not notice.
//   node examples/abort.mjs
import { loadModel } from 'node-mla';

const model = await loadModel();
try {
  const prompts = ['And it came to pass', 'The LORD is my shepherd', 'In the beginning'];
  const controller = new AbortController();
  const generations = prompts.map((prompt, i) =>
    model.generate(prompt, { maxTokens: 24, signal: i === 1 ? controller.signal : undefined }),
  );

  const texts = generations.map(async (generation, i) => {
    let text = '';
    try {
      for await (const chunk of generation) {
        text += chunk.text;
        if (i === 1 && text.length > 20) controller.abort(new Error('that is enough'));
      }
      return text;
    } catch (error) {
      return `${text} [${error.message}]`;
    }
  });
  for (const [i, text] of (await Promise.all(texts)).entries()) console.log(`${prompts[i]} |${text}`);
} finally {
  await model.dispose();
}
