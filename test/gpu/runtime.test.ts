import { after, test } from 'node:test';
import { closeDevices, compareVerb } from './harness';

after(closeDevices);

test('gemm', () =>
  compareVerb(
    'gemm',
    (make) => ({
      x: make.normal('bf16', [8, 2048]),
      w: make.normal('bf16', [576, 2048], 0.03),
      residual: make.normal('bf16', [8, 576]),
      y: make.output('bf16', [8, 576]),
    }),
    { rows: ['x', 'residual', 'y'] },
  ));

test('mlaDecode', () =>
  compareVerb('mlaDecode', (make) => {
    const lengths = [1, 64, 0, 130];
    const paged = make.pagedCache('bf16', lengths, 576);
    const q_start = make.starts([1, 1, 1, 1]);
    return {
      q: make.normal('bf16', [4, 16, 576]),
      q_start,
      cache: paged.cache,
      block_table: paged.blockTable,
      lengths: paged.lengths,
      plan: make.plan(16, q_start, paged.lengths),
      out: make.output('bf16', [4, 16, 512]),
      lse: make.output('f32', [4, 16]),
      scale: 0.07,
    };
  }));
