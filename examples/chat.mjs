// A conversation of two turns. Give a checkpoint folder to talk to another model than the small one of the package,
// which knows one book and answers in its words.
//   node examples/chat.mjs [FOLDER]
import { loadModel } from 'node-mla';

const model = await loadModel(process.argv[2]);
try {
  const messages = [{ role: 'system', content: 'Answer in one sentence.' }];
  for (const content of ['In the beginning God created', 'And what came next?']) {
    messages.push({ role: 'user', content });
    console.log(`> ${content}`);
    const { text } = await model.chat(messages, { maxTokens: 32 }).result;
    console.log(text.trim());
    messages.push({ role: 'assistant', content: text });
  }
} finally {
  await model.dispose();
}
