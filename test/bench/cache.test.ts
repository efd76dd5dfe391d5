// mla bench cache: the same model with two caches, in one memory.
import { runCli } from '../cli/run-cli';

const args = ['bench', 'cache', '--shape', 'tiny', '--device', 'cpu', '--batch', '1,3', '--depth', '130'];

test('measures both caches at the batches given and at the most that fit', async () => {
  const { code, stdout, stderr } = await runCli([...args, '--memory', '0.5', '--json']);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { budget, capacities, results } = JSON.parse(stdout);
  expect(budget).toBe(2 ** 29);
  const [latent, perHead] = capacities;
  // tiny: see lib/model/named-shapes.ts
  expect([latent.form, perHead.form]).toEqual(['latent', 'per-head']);
  expect(perHead.bytesPerToken / latent.bytesPerToken).toBeGreaterThan(1);
  for (const { bytesPerToken, longestContext, mostSequences } of capacities) {
    expect(longestContext % 64).toBe(0);
    expect(mostSequences).toBe(Math.min(1024, Math.floor(longestContext / 64 / 3)));
    expect(longestContext * bytesPerToken).toBeLessThan(budget);
  }
  const batches = (form: string) =>
    results.filter((one: { form: string }) => one.form === form).map(({ batch }: { batch: number }) => batch);
  expect(batches('latent')).toEqual([1, 3, latent.mostSequences]);
  expect(batches('per-head')).toEqual([1, 3, perHead.mostSequences]);
  for (const { id, form, batch, us, repetitions, sweep, tokensPerSecond, attentionUs } of results) {
    expect(id).toBe(`tiny ${form} cache b=${batch} depth=130`);
    expect(sweep).toEqual({ bench: 'cache', model: 'tiny', batch, tokens: 130, cache: form });
    expect(repetitions.length).toBeGreaterThan(0);
    expect(tokensPerSecond).toBeCloseTo((batch * 1e6) / us, 3);
    expect(attentionUs).toBeGreaterThan(0);
  }
});

test('a latent cache in fp8: rows that are numbers', async () => {
  const { code, stdout, stderr } = await runCli([...args, '--memory', '0.5', '--cache-dtype', 'fp8', '--json']);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { results } = JSON.parse(stdout);
  expect(results[0].id).toBe('tiny latent fp8 cache b=1 depth=130');
});

test('prints a table; where the memory is too small for a batch, a dash', async () => {
  const { code, stdout } = await runCli([...args, '--memory', '0.2']);
  expect(code).toBe(0);
  expect(stdout).toMatch(
    /^Weights, buffers and cache in 205 MiB\.\n\n\| +\| +latent \| +per head \| times better \|\n/,
  );
  expect(stdout).toMatch(/\n\| cache bytes per token +\| +[\d,]+ \| +[\d,]+ \| +[\d.]+ \|\n/);
  expect(stdout).toMatch(/\n\| ms per step, batch 1 +\| +[\d.]+ \| +[\d.]+ \| +[\d.]+ \|\n/);
});
