// The bundled model recites its training text: 20 seeded passages, 16 tokens of prompt, 24 tokens of continuation.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { LatentModel } from '../../lib/model';
import { continueAlone } from './continue';

const BUNDLED = join(__dirname, '..', '..', 'models', 'kjv-10m');

interface Passage {
  text: string;
  prompt: number[];
  expected: number[];
}

test('recites at least 15 of 20 passages, with bf16 activations and an fp8 cache too', async () => {
  const passages = JSON.parse(readFileSync(join(BUNDLED, 'passages.json'), 'utf8')) as Passage[];
  expect(passages).toHaveLength(20);
  for (const [activationDtype, cacheDtype] of [
    ['f32', 'f32'],
    ['bf16', 'bf16'],
    ['f32', 'fp8'],
    ['bf16', 'fp8'],
  ] as const) {
    const model = await LatentModel.load(BUNDLED, { device: 'cpu', context: 512, activationDtype, cacheDtype });
    let exact = 0;
    try {
      for (const { prompt, expected } of passages) {
        expect(expected).toHaveLength(24);
        const ids = await continueAlone(model, prompt, expected.length);
        if (ids.join() === expected.join()) exact += 1;
      }
    } finally {
      await model.dispose();
    }
    console.log(`${activationDtype}, ${cacheDtype} cache: ${exact} of ${passages.length} passages recited`);
    expect(exact).toBeGreaterThanOrEqual(15);
  }
});
