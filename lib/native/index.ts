// native/index.ts - devices, tensors and operations. The only place that loads the .node; it does so at the first use.
import { invalidArg } from '../errors';
import { readBytes, readOptions, readPlannedOperation, Vocabulary } from './arguments';
import { NativeDevice, rawDevice } from './device';
import { loadAddon } from './load';
import { check, failureError, type RawAddon } from './raw';
import { installVerbs } from './stream';
import type { BuildInfo, Device, DeviceOptions, NativeAddon } from './types';

export * from './types';

interface Loaded {
  raw: RawAddon;
  file: string;
  vocabulary: Vocabulary;
}

let loaded: Loaded | undefined;

/** The addon, loaded at the first call. A failure is not remembered: the next call tries again. */
function addon(): Loaded {
  if (loaded === undefined) {
    const { raw, file } = loadAddon();
    const vocabulary = new Vocabulary(raw);
    installVerbs(vocabulary);
    loaded = { raw, file, vocabulary };
  }
  return loaded;
}

/** The native surface; see {@link NativeAddon}. Its functions throw ERR_NATIVE_LOAD if the addon cannot be loaded. */
export const native: NativeAddon = {
  openDevice(kind, options = {}) {
    if (kind !== 'cpu' && kind !== 'cuda') throw invalidArg('openDevice: kind', "'cpu' or 'cuda'", kind);
    const { threads, index, portable, deterministic, serial } = readOptions('openDevice: options', options);
    const number = readBytes(`openDevice: ${kind === 'cuda' ? 'index' : 'threads'}`, kind === 'cuda' ? index : threads);
    const { raw, vocabulary } = addon();
    return new NativeDevice(
      check(raw.openDevice(kind === 'cuda', number, portable, deterministic, serial)),
      vocabulary,
    );
  },
  build() {
    const { raw, file } = addon();
    const { cuda, version, archs } = raw.build();
    return { cuda, version, archs: archs === '' ? [] : archs.split(' '), file };
  },
  gpus() {
    const { failure, ...found } = addon().raw.gpus();
    return { ...found, failure: failure === undefined ? null : failureError(failure) };
  },
  planner({ major, minor, multiprocessors, sharedBytesPerBlock }) {
    const { raw, vocabulary } = addon();
    const gpu = [major, minor, multiprocessors, sharedBytesPerBlock];
    return {
      workspaceBytes: (verb, args) =>
        check(raw.planWorkspaceBytes(...gpu, ...readPlannedOperation(vocabulary, verb, args))),
      decodePlanInts: (maxSequences, heads) => check(raw.planDecodeInts(...gpu, maxSequences, heads)),
    };
  },
  failAllocation(k) {
    check(addon().raw.failAllocation(k));
  },
  allocationCount() {
    return addon().raw.allocationCount();
  },
  launchedKernels(forget = false) {
    return check(addon().raw.launchedKernels(forget));
  },
  failCommand(device, k, lost) {
    check(rawDevice('failCommand: device', device).failCommand(k, lost));
  },
};

/**
 * Opens a device: 'cpu' takes `threads` (0, the default: one per physical core), 'cuda' takes `index` (default 0),
 * `portable` (true: the kernels that run on every GPU, where there are special ones for this one), `deterministic` (true:
 * only kernels that give a row the same bits whatever rows stand beside it, as those of the CPU all do) and `serial`
 * (true: each kernel starts when the one before has ended; slower, to compare with).
 * @throws ERR_NATIVE_LOAD, ERR_NO_DEVICE, ERR_DRIVER_TOO_OLD, ERR_DEVICE_UNUSABLE, ERR_DEVICE_LOST, ERR_UNSUPPORTED,
 *   ERR_INVALID_ARG
 */
export function openDevice(kind: 'cpu' | 'cuda', options: DeviceOptions = {}): Device {
  return native.openDevice(kind, options);
}

/** What is in the binary. @throws ERR_NATIVE_LOAD */
export function build(): BuildInfo {
  return native.build();
}
