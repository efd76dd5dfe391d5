// The golden data catches the mistakes that implementations of these models are known to make: each is made on purpose
// (test/model/mutations.ts), here on the CPU; test/gpu/mutations.test.ts does the same on a GPU.
import { goldens } from '../model/golden';
import { judgeMutations } from '../model/mutations-table';

test('every known mistake moves the golden log-probabilities', async () => {
  const { table, missed } = await judgeMutations(goldens, 'cpu');
  console.log(table);
  expect(missed).toEqual([]);
});
