// The results of two steps often come together where a step is short. What the second one ends must not be planned for a
// third in between.
import { loadModel } from '../../lib/engine';

test('short answers, one after the other, all end by themselves', async () => {
  await using model = await loadModel(undefined, { device: 'cpu', threads: 2, context: 256 });
  const reasons: Record<string, number> = {};
  for (let i = 0; i < 100; i++) {
    const { finishReason } = await model.chat([{ role: 'user', content: 'Define love.' }]).result;
    reasons[finishReason] = (reasons[finishReason] ?? 0) + 1;
  }
  expect(reasons).toEqual({ stop: 100 });
}, 60_000);
