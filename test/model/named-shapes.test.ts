// Published models as shapes: the right size, and good for running.
import { parameterCounts } from '../../lib/checkpoint';
import { MlaError } from '../../lib/errors';
import { LatentModel, SHAPE_NAMES } from '../../lib/model';
import { namedShape } from '../../lib/model/named-shapes';
import { continueAlone } from './continue';

// Billions of parameters as published, or as the published shapes add up to.
test.each([
  ['v2-lite', 15.706, 2.66],
  ['moonlight', 15.96, 2.92],
  ['glm-4.7-flash', 29.94, 3.9],
  ['v3', 671.03, 37.55],
])('%s has %d billion parameters, %d active', (name, total, active) => {
  const counts = parameterCounts(namedShape(name).layout);
  expect(Math.abs(counts.total / 1e9 - total)).toBeLessThan(0.006 * Math.max(1, total / 100));
  expect(Math.abs(counts.active / 1e9 - active)).toBeLessThan(0.01);
});

test('a number behind the name cuts layers', () => {
  const { config, layout } = namedShape('v3:5');
  expect(layout.layers.map(({ ffn }) => ffn.kind)).toEqual(['dense', 'dense', 'dense', 'moe', 'moe']);
  expect(config.num_hidden_layers).toBe(5);
  expect(namedShape('v3:1').layout.layers.map(({ ffn }) => ffn.kind)).toEqual(['dense']);
});

test.each(['', 'v4', 'v3:', 'v3:0', 'v3:x', 'toString', 'v3:1.5'])('"%s" is refused', (name) => {
  expect(() => namedShape(name)).toThrow(MlaError);
});

test.each(SHAPE_NAMES)('%s is named in the refusal', (name) => {
  expect(() => namedShape('none')).toThrow(name);
});

test.each([{}, { activationDtype: 'bf16', cacheDtype: 'bf16' } as const, { cacheDtype: 'fp8' } as const])(
  'a random model runs with %j',
  async (more) => {
    const model = await LatentModel.random('tiny', { device: 'cpu', context: 256, ...more });
    try {
      const tokens = Array.from({ length: 200 }, (_, i) => (i * 37) % 512);
      const { logprobs } = await model.score(tokens);
      expect([...logprobs.slice(1)].every((x) => x < 0 && x > -30)).toBe(true);
      // Noise, but not a constant: the mean surprise of 512 equally likely ids is 6.2.
      const mean = [...logprobs.slice(1)].reduce((a, b) => a + b, 0) / 199;
      expect(mean).toBeLessThan(-5);
      expect(new Set(logprobs).size).toBeGreaterThan(190);
      expect(await continueAlone(model, tokens, 8)).toHaveLength(8);
    } finally {
      await model.dispose();
    }
  },
);
