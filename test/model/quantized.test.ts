// Weights quantised to fp8 at load, activations in fp8, and a latent cache in fp8: the model that ships with the package
// still recites (with activations in fp8 but for words that it is undecided about), and the distributions of the next
// token stay near those of its bf16 weights and a float32 cache. Near means 1e-2 nats on text that it knows. Text that it
// was never shown is noise to it (11 nats an id), and so is the choice of experts there: the bound for that only says that
// nothing is broken (a layer with the wrong scales gives 1 and more).
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { LatentModel, type LatentModelOptions } from '../../lib/model';
import { Tokenizer } from '../../lib/text';
import { continueAlone } from './continue';

const BUNDLED = join(__dirname, '..', '..', 'models', 'kjv-10m');

/** John 3:16 and Jonah 1:1, which the training text leaves out (models/kjv-10m/README.md). */
const HELD_OUT = [
  'For God so loved the world, that he gave his only begotten Son, that whosoever believeth in him should not perish',
  'Now the word of the LORD came unto Jonah the son of Amittai, saying, Arise, go to Nineveh, that great city',
];

/**
 * Activations in fp8 move log-probabilities by some hundredths: where the plain model's two best are this near, the other
 * may come first.
 */
const UNDECIDED = 0.2;

/** KL divergence in nats of softmax(q) from softmax(p). */
function divergence(p: Float32Array, q: Float32Array): number {
  const logSum = (x: Float32Array) => {
    const most = x.reduce((a, b) => Math.max(a, b));
    return most + Math.log(x.reduce((sum, v) => sum + Math.exp(v - most), 0));
  };
  const [sumP, sumQ] = [logSum(p), logSum(q)];
  return p.reduce((sum, v, i) => sum + Math.exp(v - sumP) * (v - sumP - ((q[i] as number) - sumQ)), 0);
}

/** The logits after each second prefix of a text. */
async function logitsOf(model: LatentModel, ids: readonly number[]): Promise<Float32Array[]> {
  const out: Float32Array[] = [];
  for (let n = 4; n <= ids.length; n += 2) {
    const { logits } = await model.score(ids.slice(0, n), { logits: true });
    out.push(logits as Float32Array);
  }
  return out;
}

/** How far the likeliest next token is before this one, in nats. */
async function leadOf(model: LatentModel, text: readonly number[], id: number | undefined): Promise<number> {
  const { logits } = await model.score(text, { logits: true });
  return (logits as Float32Array).reduce((a, b) => Math.max(a, b)) - (logits?.[id ?? -1] ?? Number.NaN);
}

const VARIANTS: [string, LatentModelOptions][] = [
  ['fp8 weights made at load', { dtype: 'fp8' }],
  ['fp8 weights and activations', { dtype: 'fp8', activationDtype: 'fp8' }],
  ['an fp8 cache', { cacheDtype: 'fp8' }],
];

test.each(VARIANTS)('%s: near the plain model, and the passages are still recited', async (what, variant) => {
  const passages = JSON.parse(readFileSync(join(BUNDLED, 'passages.json'), 'utf8')) as {
    prompt: number[];
    expected: number[];
  }[];
  const tokenizer = await Tokenizer.load(BUNDLED);
  const known = passages.slice(0, 6).map(({ prompt, expected }) => [...prompt, ...expected]);
  const unknown = HELD_OUT.map((text) => tokenizer.encode(text).slice(0, 32));
  const options = { device: 'cpu', context: 512 } as const;
  const [plain, fp8] = [
    await LatentModel.load(BUNDLED, options),
    await LatentModel.load(BUNDLED, { ...options, ...variant }),
  ];
  try {
    if (variant.dtype === 'fp8') expect(fp8.memory.weights).toBeLessThan(plain.memory.weights * 0.75);
    // 512 e4m3, 4 scales and 64 bf16 instead of 576 float32.
    else expect(fp8.memory.cache / plain.memory.cache).toBe(656 / 2304);
    for (const [name, texts] of Object.entries({ known, unknown })) {
      const all: number[] = [];
      for (const ids of texts) {
        const [p, q] = [await logitsOf(plain, ids), await logitsOf(fp8, ids)];
        all.push(...p.map((logits, i) => divergence(logits, q[i] as Float32Array)));
      }
      const mean = all.reduce((a, b) => a + b, 0) / all.length;
      console.log(
        `${what}, ${name}: mean KL ${mean.toExponential(2)} over ${all.length} positions, most ${Math.max(...all).toExponential(2)}`,
      );
      expect(mean).toBeGreaterThan(0);
      expect(mean).toBeLessThan(name === 'known' ? 1e-2 : 1e-1);
    }
    let recited = 0;
    for (const { prompt, expected } of passages) {
      const ids = await continueAlone(fp8, prompt, expected.length);
      const split = ids.findIndex((id, i) => id !== expected[i]);
      recited += split < 0 ? 1 : 0;
      if (split < 0 || variant.activationDtype === undefined) expect(ids).toEqual(expected);
      else expect(await leadOf(plain, [...prompt, ...expected.slice(0, split)], ids[split])).toBeLessThan(UNDECIDED);
    }
    console.log(`${what}: ${recited} of ${passages.length} passages recited`);
    expect(recited).toBeGreaterThanOrEqual(passages.length - 2);
  } finally {
    await plain.dispose();
    await fp8.dispose();
  }
});
