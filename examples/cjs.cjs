// The package from CommonJS: how likely is each word order?
//   node examples/cjs.cjs
'use strict';
const { loadModel } = require('node-mla');

async function main() {
  const model = await loadModel();
  try {
    for (const text of ['And God said, Let there be light', 'And light said, Let there be God']) {
      const { logprobs } = await model.score(text);
      const total = logprobs.reduce((sum, logprob) => sum + (logprob ?? 0), 0);
      console.log(`${total.toFixed(2).padStart(8)}  ${text}`);
    }
  } finally {
    await model.dispose();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
