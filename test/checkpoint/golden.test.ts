// The tiny checkpoints of test/golden, written by another program: each must open and resolve.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { checkRouterBiases, openCheckpoint, parameterCounts, resolveLayout } from '../../lib/checkpoint';

const root = path.join(__dirname, '..', 'golden');
const folders = fs.readdirSync(root).filter((name) => fs.existsSync(path.join(root, name, 'config.json')));

/** What is peculiar to each: [query, experts, quantised, tied, MTP layers]. */
const PECULIAR: Record<string, [string, string, boolean, boolean, number]> = {
  'v2-lite': ['direct', 'separate', false, false, 0],
  v2: ['lora', 'separate', false, false, 0],
  v3: ['lora', 'separate', false, false, 0],
  'v3-fp8': ['lora', 'separate', true, false, 1],
  moonlight: ['direct', 'fused', false, false, 0],
  'glm-4.7-flash': ['lora', 'separate', false, true, 0],
};

test('every golden checkpoint is known here', () => {
  expect(folders.sort()).toEqual(Object.keys(PECULIAR).sort());
});

test.each(folders)('%s', async (name) => {
  await using checkpoint = await openCheckpoint(path.join(root, name));
  const layout = resolveLayout(checkpoint);
  await checkRouterBiases(layout);
  await checkpoint.verifyUnchanged();
  const moe = layout.layers.map(({ ffn }) => ffn).find((ffn) => ffn.kind === 'moe');
  const { attention } = layout.layers[0] as (typeof layout.layers)[number];
  const quantised = attention.o.scale !== undefined;
  expect([attention.kind, moe?.experts.kind, quantised, layout.head === layout.embed, layout.mtp.length]).toEqual(
    PECULIAR[name],
  );
  const { total, mtp } = parameterCounts(layout);
  const scales = [...checkpoint.tensors.values()].filter((t) => t.name.endsWith('_scale_inv'));
  const all = [...checkpoint.tensors.values()].reduce((sum, t) => sum + t.shape.reduce((a, b) => a * b, 1), 0);
  const scaleCount = scales.reduce((sum, t) => sum + t.shape.reduce((a, b) => a * b, 1), 0);
  const copies = layout.mtp.length * 2 * layout.config.vocab_size * layout.config.hidden_size;
  expect(total + mtp + copies).toBe(all - scaleCount);
});
