// cli/doctor.ts - mla doctor: what this machine and this package are to each other; one sentence for each problem.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { gpuState } from '../bench';
import { MlaError } from '../errors';
import { cacheFolder } from '../hub';
import { type BuildInfo, type DeviceInfo, type GpuFacts, type GpuSurvey, native, openDevice } from '../native';
import { EXIT, FoundWanting } from './failure';
import { addJsonFlag, type JsonFlag } from './flags';
import { print, size } from './output';

/** All that is found out. */
interface Findings {
  version: string;
  node: string;
  platform: string;
  glibc: string | null;
  addon: (BuildInfo & { origin: 'prebuilt' | 'built here' }) | null;
  driver: { version: string | null; cuda: string | null; neededCuda: string | null } | null;
  devices: DeviceFinding[];
  cache: string;
  problems: string[];
  notes: string[];
}

interface DeviceFinding {
  device: string;
  info: DeviceInfo | null;
  facts: GpuFacts | null;
  kernels: string | null;
  failure: string | null;
}

const KERNEL_DRIVER = '/proc/driver/nvidia/version';
const LITTLE_MEMORY = 2 ** 30;

/** Adds the command. */
export function addDoctor(program: Command): void {
  const command = program
    .command('doctor')
    .description('GPUs, driver, kernels, memory and the binary of this machine, and what is wrong with them.');
  addJsonFlag(command).action((flags: JsonFlag) => doctor(flags));
}

async function doctor({ json }: JsonFlag): Promise<void> {
  const found = await examine();
  await print(json ? `${JSON.stringify(found)}\n` : textOf(found));
  if (found.problems.length === 0) return;
  const noGpu = found.addon !== null && found.devices.some(({ failure, device }) => failure && device !== 'cpu');
  const what = found.problems.length === 1 ? '1 problem' : `${found.problems.length} problems`;
  throw new FoundWanting(`${what} found.`, noGpu ? EXIT.noDevice : EXIT.failure);
}

async function examine(): Promise<Findings> {
  const { version } = JSON.parse(readFileSync(join(__dirname, '..', '..', 'package.json'), 'utf8')) as {
    version: string;
  };
  const found: Findings = {
    version,
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    glibc: glibcVersion(),
    addon: null,
    driver: null,
    devices: [],
    cache: cacheFolder(),
    problems: [],
    notes: [],
  };
  if (!nodeIsNewEnough()) found.problems.push(`Node.js ${process.version} is too old: 20.19 or newer is needed.`);
  try {
    const build = native.build();
    found.addon = { ...build, origin: build.file.includes('prebuilds') ? 'prebuilt' : 'built here' };
    if (build.version !== version)
      found.problems.push(`The addon is of version ${build.version} and the package of ${version}: build it again.`);
  } catch (error) {
    found.problems.push(sentence(error));
    return found;
  }
  found.devices.push(await tryDevice('cpu', null, found));
  await examineGpus(found);
  return found;
}

async function examineGpus(found: Findings): Promise<void> {
  const survey = native.gpus();
  const kernelDriver = kernelDriverVersion();
  const state = survey.driverCuda > 0 ? await gpuState(0) : null;
  found.driver = {
    version: state?.driver ?? kernelDriver,
    cuda: cudaText(survey.driverCuda),
    // The major version is what binds: minor versions are compatible with each other.
    neededCuda: cudaText(Math.floor(survey.runtimeCuda / 1000) * 1000),
  };
  for (const [index, facts] of survey.gpus.entries())
    found.devices.push(await tryDevice(`cuda:${index}`, facts, found));
  if (survey.failure !== null) explainNoGpu(survey, kernelDriver, found);
}

/** Opens a device and runs one operation on it. */
async function tryDevice(name: string, facts: GpuFacts | null, found: Findings): Promise<DeviceFinding> {
  const out: DeviceFinding = { device: name, info: null, facts, kernels: null, failure: null };
  try {
    const device =
      facts === null ? openDevice('cpu') : openDevice('cuda', { index: Number(name.slice('cuda:'.length)) });
    try {
      out.info = device.info();
      const stream = device.stream();
      const tensor = await device.allocate('f32', [256]);
      stream.fillRandom({ out: tensor, seed: 1, mean: 1, stddev: 0 });
      const values = new Float32Array(await stream.read(tensor));
      if (!values.every((value) => value === 1))
        throw new MlaError('ERR_BACKEND', 'a kernel ran and gave wrong numbers.');
      out.kernels = kernelsOf(out.info, facts);
      if (facts !== null && out.info.memoryFree < LITTLE_MEMORY)
        found.problems.push(`${name}: other processes have taken all but ${size(out.info.memoryFree)} of its memory.`);
    } finally {
      await device.dispose();
    }
  } catch (error) {
    out.failure = sentence(error);
    found.problems.push(`${name}: ${out.failure}`);
  }
  return out;
}

function kernelsOf({ path, kind }: DeviceInfo, facts: GpuFacts | null): string {
  if (kind === 'cpu') return `${path}, the best that this processor and the package have`;
  if (path !== 'portable') return `${path}, written for this generation`;
  const why = facts?.major === 9 ? '' : ', because those of sm_90a need an H100 or H200';
  return `portable (sm_80 and newer)${why}`;
}

/** Why no GPU can be used, and whether that is a problem: a machine without one is as it should be. */
function explainNoGpu({ failure }: GpuSurvey, kernelDriver: string | null, found: Findings): void {
  if (failure === null) return;
  if (failure.code === 'ERR_UNSUPPORTED' && kernelDriver !== null) {
    found.problems.push(
      'There is an NVIDIA driver, and this addon has no CUDA kernels: install the published package, or build where CUDA 13 is installed.',
    );
  } else if (failure.code === 'ERR_NO_DEVICE' && kernelDriver !== null && found.driver?.cuda === null) {
    found.problems.push(
      `The kernel has NVIDIA's driver ${kernelDriver} and libcuda.so.1 is not here: a container needs --gpus all, with NVIDIA_DRIVER_CAPABILITIES containing compute.`,
    );
  } else if (
    failure.code === 'ERR_NO_DEVICE' &&
    process.env.CUDA_VISIBLE_DEVICES !== undefined &&
    kernelDriver !== null
  ) {
    found.problems.push(`CUDA_VISIBLE_DEVICES="${process.env.CUDA_VISIBLE_DEVICES}" leaves no GPU.`);
  } else if (failure.code === 'ERR_NO_DEVICE' || failure.code === 'ERR_UNSUPPORTED') {
    found.notes.push('No NVIDIA GPU: models run on the CPU.');
  } else {
    found.devices.push({ device: 'cuda:0', info: null, facts: null, kernels: null, failure: sentence(failure) });
    found.problems.push(sentence(failure));
  }
}

function textOf(found: Findings): string {
  const { addon, driver } = found;
  const row = (name: string, text: string) => `${name.padEnd(10)}${text}`;
  const lines = [
    row(
      'node-mla',
      `${found.version}, Node.js ${found.node}, ${found.platform}${found.glibc ? `, glibc ${found.glibc}` : ''}`,
    ),
  ];
  if (addon !== null) {
    lines.push(row('addon', `${addon.file} (${addon.origin})`));
    lines.push(row('', addon.cuda ? `CUDA kernels: ${archText(addon.archs)}` : 'no CUDA kernels'));
  }
  if (driver !== null && (driver.version !== null || driver.cuda !== null)) {
    const supports = driver.cuda === null ? 'libcuda.so.1 not found' : `supports CUDA ${driver.cuda}`;
    const needs = driver.neededCuda === null ? '' : `; CUDA ${driver.neededCuda} or newer is needed`;
    lines.push(row('driver', `${driver.version ?? 'NVIDIA'}, ${supports}${needs}`));
  }
  for (const { device, info, facts, kernels, failure } of found.devices) {
    if (info !== null) lines.push(row(device, deviceText(info, facts)));
    if (kernels !== null) lines.push(row('', `kernels: ${kernels}`));
    if (failure !== null && info === null) lines.push(row(device, 'cannot be used'));
  }
  lines.push(row('cache', `${found.cache}${existsSync(found.cache) ? '' : ' (not there yet)'}`));
  lines.push('', ...found.problems.map((text) => `problem: ${text}`), ...found.notes.map((text) => `note: ${text}`));
  if (found.problems.length === 0) lines.push('No problem found.');
  return `${lines.join('\n')}\n`;
}

function deviceText(info: DeviceInfo, facts: GpuFacts | null): string {
  const memory = `${size(info.memoryFree)} of ${size(info.memoryTotal)} free`;
  if (facts === null) return `${info.name}, ${info.threads} threads, ${memory}`;
  return `${info.name}, sm_${facts.major}${facts.minor}, ${info.multiprocessors} multiprocessors, ${memory}`;
}

/** "80-real 90a-real 120-virtual" -> "machine code for sm_80 sm_90a, PTX of compute_120 for newer GPUs". */
function archText(archs: readonly string[]): string {
  const of = (kind: string) => archs.filter((arch) => arch.endsWith(kind)).map((arch) => arch.slice(0, -kind.length));
  const real = of('-real').map((arch) => `sm_${arch}`);
  const virtual = of('-virtual').map((arch) => `compute_${arch}`);
  return `machine code for ${real.join(' ')}${virtual.length > 0 ? `, PTX of ${virtual.join(' ')} for newer GPUs` : ''}`;
}

/** 13020 -> "13.2". */
function cudaText(version: number): string | null {
  return version === 0 ? null : `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
}

function sentence(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? '' : '.'}`;
}

function nodeIsNewEnough(): boolean {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  return major > 20 || (major === 20 && minor >= 19);
}

function glibcVersion(): string | null {
  const { header } = (process.report?.getReport() ?? {}) as unknown as { header?: { glibcVersionRuntime?: string } };
  return header?.glibcVersionRuntime ?? null;
}

/** The version of NVIDIA's kernel module; null where none is loaded. */
function kernelDriverVersion(): string | null {
  try {
    return /\s(\d+\.\d+(?:\.\d+)?)\s/.exec(readFileSync(KERNEL_DRIVER, 'utf8'))?.[1] ?? 'of an unknown version';
  } catch {
    return null;
  }
}
