// model/open-device.ts - which device a model runs on.

import { invalidArg, MlaError } from '../errors';
import { type Device, native } from '../native';

/** 'cuda:0'; 'cuda:0:portable' for the kernels that run on every GPU; ':serial' behind it for one kernel at a time. */
const CUDA_NAME = /^cuda:(\d{1,3})(:portable)?(:serial)?$/;

/**
 * Opens what `device` names. 'auto' takes the CPU only where there is no NVIDIA device at all: a GPU that is present
 * and cannot be used is an error that says so.
 */
export function openModelDevice(device: string, threads: number, deterministic = false): Device {
  if (device === 'cpu') return native.openDevice('cpu', { threads });
  const cuda = CUDA_NAME.exec(device);
  if (cuda !== null) {
    const [, index, portable, serial] = cuda;
    return native.openDevice('cuda', {
      index: Number(index),
      portable: portable !== undefined,
      deterministic,
      serial: serial !== undefined,
    });
  }
  if (device !== 'auto') throw invalidArg('device', "'auto', 'cpu', 'cuda:N' or 'cuda:N:portable'", device);
  if (!native.build().cuda) return native.openDevice('cpu', { threads });
  try {
    return native.openDevice('cuda', { index: 0, deterministic });
  } catch (error) {
    if (!(error instanceof MlaError)) throw error;
    if (error.code === 'ERR_NO_DEVICE') return native.openDevice('cpu', { threads });
    throw new MlaError(error.code, `${error.message} Use --device cpu (device: 'cpu') to run without the GPU.`, {
      cause: error,
    });
  }
}
