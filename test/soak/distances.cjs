// distances.cjs ROOT - prints, as one JSON object, how far the log-probabilities of each golden checkpoint are from the
// reference when computed by the build in ROOT, with float32 and with bf16 activations and cache:
// { f32: { v2: { worst, mean }, ... }, bf16: ... }.
'use strict';
const fs = require('node:fs');
const path = require('node:path');

/** NaN is as wrong as can be; JSON has no infinity. */
const WRONG = 1e9;

async function distance(LatentModel, dir, dtype) {
  const { prompts } = JSON.parse(fs.readFileSync(path.join(dir, 'golden.json'), 'utf8'));
  const dtypes = { activationDtype: dtype, cacheDtype: dtype };
  const model = await LatentModel.load(dir, { device: 'cpu', context: 1024, maxSequences: 1, ...dtypes });
  const differences = [];
  for (const { tokens, logprobs } of prompts) {
    const score = await model.score(tokens);
    logprobs.forEach((reference, i) => {
      if (reference === null) return;
      const difference = Math.abs(score.logprobs[i] - reference);
      differences.push(Number.isFinite(difference) ? difference : WRONG);
    });
  }
  await model.dispose();
  const mean = differences.reduce((sum, difference) => sum + difference, 0) / differences.length;
  return { worst: Math.max(...differences), mean };
}

async function main(root) {
  const { LatentModel } = require(path.join(root, 'dist', 'model'));
  const folder = path.join(__dirname, '..', 'golden');
  const result = { f32: {}, bf16: {} };
  for (const name of fs.readdirSync(folder)) {
    const dir = path.join(folder, name);
    if (!fs.existsSync(path.join(dir, 'golden.json'))) continue;
    for (const dtype of Object.keys(result)) result[dtype][name] = await distance(LatentModel, dir, dtype);
  }
  console.log(JSON.stringify(result));
}

main(process.argv[2]);
