// What is known without opening a GPU: what the driver says, what is in the binary, sizes on a GPU that is not there.
import { readFileSync } from 'node:fs';
import { native } from '../../lib/native';

const H200 = {
  name: 'NVIDIA H200',
  major: 9,
  minor: 0,
  multiprocessors: 132,
  sharedBytesPerBlock: 232448,
  memoryTotal: 150e9,
};

test('the build says what is in it and where it came from', () => {
  const { cuda, archs, file, version } = native.build();
  expect(readFileSync(file).subarray(0, 4).toString('latin1')).toBe('\x7fELF');
  expect(version).toBe(require('../../package.json').version);
  expect(archs.length > 0).toBe(cuda);
  for (const arch of archs) expect(arch).toMatch(/^\d+a?-(real|virtual)$/);
});

test('the survey of GPUs gives facts or a reason', () => {
  const { runtimeCuda, driverCuda, gpus, failure } = native.gpus();
  expect(runtimeCuda > 0).toBe(native.build().cuda);
  expect(driverCuda).toBeGreaterThanOrEqual(0);
  expect(gpus.length > 0).toBe(failure === null);
  if (failure !== null) expect(failure.code).toMatch(/^ERR_(UNSUPPORTED|NO_DEVICE|DRIVER_TOO_OLD|DEVICE_UNUSABLE)$/);
});

test('a GPU that is not there can be planned for, where kernels for it are in the binary', () => {
  const planner = native.planner(H200);
  const spec = (dtype: 'bf16' | 'f32' | 'i32', ...shape: number[]) => ({ dtype, shape });
  const ints = () => planner.decodePlanInts(9, 16);
  const workspace = () =>
    planner.workspaceBytes('mlaDecode', {
      q: spec('bf16', 8, 16, 576),
      q_start: spec('i32', 9),
      cache: spec('bf16', 64, 64, 576),
      block_table: spec('i32', 8, 64),
      lengths: spec('i32', 8),
      plan: spec('i32', native.build().cuda ? planner.decodePlanInts(9, 16) : 1),
      out: spec('bf16', 8, 16, 512),
      lse: spec('f32', 8, 16),
      scale: 1,
    });
  if (!native.build().cuda) {
    expect(ints).toThrow(expect.objectContaining({ code: 'ERR_UNSUPPORTED' }));
    return;
  }
  expect(ints()).toBeGreaterThan(9);
  expect(workspace()).toBeGreaterThan(0);
  const smaller = native.planner({ ...H200, multiprocessors: 40 });
  expect(smaller.decodePlanInts(9, 16)).toBeLessThanOrEqual(ints());
  expect(() => native.planner({ ...H200, multiprocessors: 0 }).decodePlanInts(1, 1)).toThrow(/multiprocessors/);
});
