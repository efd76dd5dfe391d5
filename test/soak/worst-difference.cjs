// worst-difference.cjs ROOT - prints, as one JSON object, how far the log-probabilities of each golden checkpoint are from
// the reference when computed by the build in ROOT.
'use strict';
const fs = require('node:fs');
const path = require('node:path');

async function main(root) {
  const { LatentModel } = require(path.join(root, 'dist', 'model'));
  const folder = path.join(__dirname, '..', 'golden');
  const result = {};
  for (const name of fs.readdirSync(folder)) {
    const file = path.join(folder, name, 'golden.json');
    if (!fs.existsSync(file)) continue;
    const { prompts } = JSON.parse(fs.readFileSync(file, 'utf8'));
    const model = await LatentModel.load(path.join(folder, name), { device: 'cpu', context: 1024, maxSequences: 1 });
    let worst = 0;
    for (const { tokens, logprobs } of prompts) {
      const score = await model.score(tokens);
      logprobs.forEach((reference, i) => {
        if (reference === null) return;
        const difference = Math.abs(score.logprobs[i] - reference);
        // NaN is as wrong as can be
        worst = difference >= 0 ? Math.max(worst, difference) : Number.POSITIVE_INFINITY;
      });
    }
    await model.dispose();
    result[name] = worst === Number.POSITIVE_INFINITY ? 1e9 : worst;
  }
  console.log(JSON.stringify(result));
}

main(process.argv[2]);
