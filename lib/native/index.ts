// native/index.ts - devices, tensors and operations. The only place that loads the .node; it does so at the first use.
import { invalidArg } from '../errors';
import { readBytes, readOptions, Vocabulary } from './arguments';
import { NativeDevice, rawDevice } from './device';
import { loadAddon } from './load';
import { check, type RawAddon } from './raw';
import { installVerbs } from './stream';
import type { Device, DeviceOptions, NativeAddon } from './types';

export * from './types';

interface Loaded {
  raw: RawAddon;
  vocabulary: Vocabulary;
}

let loaded: Loaded | undefined;

/** The addon, loaded at the first call. A failure is not remembered: the next call tries again. */
function addon(): Loaded {
  if (loaded === undefined) {
    const raw = loadAddon();
    const vocabulary = new Vocabulary(raw);
    installVerbs(vocabulary);
    loaded = { raw, vocabulary };
  }
  return loaded;
}

/** The native surface; see {@link NativeAddon}. Its functions throw ERR_NATIVE_LOAD if the addon cannot be loaded. */
export const native: NativeAddon = {
  openDevice(kind, options = {}) {
    if (kind !== 'cpu' && kind !== 'cuda') throw invalidArg('openDevice: kind', "'cpu' or 'cuda'", kind);
    const { threads, index, portable } = readOptions('openDevice: options', options);
    const number = readBytes(`openDevice: ${kind === 'cuda' ? 'index' : 'threads'}`, kind === 'cuda' ? index : threads);
    const { raw, vocabulary } = addon();
    return new NativeDevice(check(raw.openDevice(kind === 'cuda', number, portable)), vocabulary);
  },
  build() {
    return addon().raw.build();
  },
  failAllocation(k) {
    check(addon().raw.failAllocation(k));
  },
  allocationCount() {
    return addon().raw.allocationCount();
  },
  failCommand(device, k, lost) {
    check(rawDevice('failCommand: device', device).failCommand(k, lost));
  },
};

/**
 * Opens a device: 'cpu' takes `threads` (0, the default: one per physical core), 'cuda' takes `index` (default 0) and
 * `portable` (true: the kernels that run on every GPU, where there are special ones for this one).
 * @throws ERR_NATIVE_LOAD, ERR_NO_DEVICE, ERR_DRIVER_TOO_OLD, ERR_DEVICE_UNUSABLE, ERR_DEVICE_LOST, ERR_UNSUPPORTED,
 *   ERR_INVALID_ARG
 */
export function openDevice(kind: 'cpu' | 'cuda', options: DeviceOptions = {}): Device {
  return native.openDevice(kind, options);
}

/** Whether CUDA kernels are in the binary, and its version. @throws ERR_NATIVE_LOAD */
export function build(): { cuda: boolean; version: string } {
  return native.build();
}
