// cli/inspect.ts - mla inspect: what a model is and what it takes, before it is loaded or even downloaded.
import type { Command } from 'commander';
import { Option } from 'commander';
import { type ModelLayout, openCheckpoint, parameterCounts, resolveLayout } from '../checkpoint';
import { BUNDLED_MODEL } from '../engine';
import { MlaError } from '../errors';
import { describeRemote, findModelFolder, HubClient, parseRepository } from '../hub';
import {
  type Capacity,
  capacityOf,
  type LatentModelOptions,
  type MemoryPlan,
  type ModelPlan,
  namedShape,
  openModelDevice,
  planModel,
  SHAPE_NAMES,
} from '../model';
import { type Device, type DeviceInfo, native, type Planner } from '../native';
import { UsageError } from './failure';
import { addJsonFlag, addPlacementFlags, integer, type JsonFlag, type ModelFlags } from './flags';
import { CONTEXT_BYTES, GPU_NAMES, namedGpu } from './gpus';
import { note, print, size } from './output';

interface InspectFlags
  extends Pick<ModelFlags, 'model' | 'context' | 'device' | 'dtype' | 'cacheDtype' | 'activationDtype' | 'threads'>,
    JsonFlag {
  shape?: string;
  gpu?: string;
  sequences: number;
}

/** Adds the command. */
export function addInspect(program: Command, signal: AbortSignal): void {
  const command = program
    .command('inspect')
    .description(
      'Parameters, memory and limits of a model: a folder, a published shape, or a model of the Hub, of which only ' +
        'headers are read.',
    )
    .argument('[model]', 'checkpoint folder, or org/name[@revision] (default: the small model of the package)')
    .option('-m, --model <model>', 'the same')
    .option('--shape <name>', `a published shape: ${SHAPE_NAMES.join(', ')}, or NAME:LAYERS`)
    .addOption(new Option('--gpu <name>', 'plan for this GPU, which need not be here').choices([...GPU_NAMES]))
    .option(
      '-c, --context <n>',
      "tokens per sequence (default: the model's limit, at most 4096)",
      integer(1, 2 ** 31 - 1),
    )
    .option('--sequences <n>', 'sequences at once', integer(1, 1024), 8);
  addJsonFlag(addPlacementFlags(command)).action((model: string | undefined, flags: InspectFlags) =>
    inspect(model, flags, signal),
  );
}

async function inspect(argument: string | undefined, flags: InspectFlags, signal: AbortSignal): Promise<void> {
  const given = [argument, flags.model, flags.shape].filter((value) => value !== undefined);
  if (given.length > 1) throw new UsageError('Give one of MODEL, --model and --shape.');
  if (flags.gpu !== undefined && flags.device !== 'auto') throw new UsageError('--gpu does not go with --device.');
  const name = argument ?? flags.model;
  const layout = flags.shape === undefined ? await layoutOf(name, signal) : namedShape(flags.shape).layout;
  const title = flags.shape ?? name ?? 'the small model of the package';
  const place = openPlace(flags);
  try {
    const report = reportOf(title, layout, place, flags);
    await print(flags.json ? `${JSON.stringify(report)}\n` : textOf(report));
    if (!flags.json && place.info.kind === 'cpu' && flags.device === 'auto')
      note(`for a GPU that is not here: --gpu ${GPU_NAMES.slice(0, 4).join(', ')}, ... (--help lists them)`);
  } finally {
    await place.close();
  }
}

/** Where a model's tensors are described: a folder, the cache, or the Hub. */
async function layoutOf(name: string | undefined, signal: AbortSignal): Promise<ModelLayout> {
  const repository = name === undefined ? null : parseRepository(name);
  let folder: string;
  try {
    folder = name === undefined ? BUNDLED_MODEL : await findModelFolder(name);
  } catch (error) {
    if (repository === null || !(error instanceof MlaError)) throw error;
    const client = new HubClient({ signal });
    const { commit } = await client.list(repository);
    note(`reading headers of ${repository.id} at ${commit.slice(0, 12)} from ${client.endpoint}`);
    return describeRemote(client, { id: repository.id, revision: commit });
  }
  const checkpoint = await openCheckpoint(folder);
  try {
    return resolveLayout(checkpoint);
  } finally {
    await checkpoint.close();
  }
}

/** What is planned for: a device of this machine, or a GPU by name. */
interface Place {
  planner: Planner;
  info: DeviceInfo;
  close(): Promise<void>;
}

function openPlace({ gpu, device, threads }: InspectFlags): Place {
  if (gpu === undefined) {
    const opened: Device = openModelDevice(device, threads);
    return { planner: opened, info: opened.info(), close: () => opened.dispose() };
  }
  const named = namedGpu(gpu);
  if (named === null) throw new UsageError(`--gpu is one of ${GPU_NAMES.join(', ')}.`);
  return { planner: native.planner(named.facts), info: named.info, close: async () => {} };
}

const DTYPES = ['auto', 'bf16', 'f32'] as const;

/** All that is printed. */
interface Report extends Capacity {
  model: string;
  modelType: string;
  layers: number;
  hiddenSize: number;
  heads: number;
  latentRank: number;
  ropeDims: number;
  experts: number;
  expertsPerToken: number;
  sharedExperts: number;
  modelContext: number;
  parameters: ReturnType<typeof parameterCounts>;
  /** bytes of the weights on the device, by --dtype */
  weightBytes: Record<(typeof DTYPES)[number], number>;
  cacheBytesPerToken: number;
  cacheDtype: string;
  activationDtype: string;
  device: DeviceInfo;
  /** what the process takes besides, on a GPU */
  contextBytes: number;
  context: number;
  sequences: number;
  memory: MemoryPlan;
  fits: boolean;
}

function reportOf(model: string, layout: ModelLayout, { planner, info }: Place, flags: InspectFlags): Report {
  const { config } = layout;
  const origin = { config, layout };
  const { context, sequences: maxSequences, dtype: given, cacheDtype, activationDtype } = flags;
  const options: LatentModelOptions = { context, maxSequences, dtype: given, cacheDtype, activationDtype };
  const plan: ModelPlan = planModel(planner, info, origin, options);
  const weightsIn = (dtype: (typeof DTYPES)[number]) => {
    if (dtype === given) return plan.memory.weights;
    // fp8 activations do not go with every type of weights
    const other: LatentModelOptions = { ...options, dtype, activationDtype: plan.precision.act };
    return planModel(planner, info, origin, other).memory.weights;
  };
  return {
    model,
    modelType: config.model_type,
    layers: config.num_hidden_layers,
    hiddenSize: config.hidden_size,
    heads: config.num_attention_heads,
    latentRank: config.kv_lora_rank,
    ropeDims: config.qk_rope_head_dim,
    experts: config.n_routed_experts,
    expertsPerToken: config.num_experts_per_tok,
    sharedExperts: config.n_shared_experts,
    modelContext: config.max_position_embeddings,
    parameters: parameterCounts(layout),
    weightBytes: { auto: weightsIn('auto'), bf16: weightsIn('bf16'), f32: weightsIn('f32') },
    cacheBytesPerToken: plan.memory.cachePerToken,
    cacheDtype: plan.precision.cache,
    activationDtype: plan.precision.fp8Activations ? 'fp8' : plan.precision.act,
    device: info,
    contextBytes: info.kind === 'cuda' ? CONTEXT_BYTES : 0,
    context: plan.base.limits.context,
    sequences: plan.base.limits.maxSequences,
    memory: plan.memory,
    fits: plan.memory.total <= info.memoryFree,
    ...capacityOf(planner, info, origin, options, plan),
  };
}

const PARTS = ['attention', 'shared', 'routed', 'router', 'dense', 'embedding', 'head', 'norms', 'mtp'] as const;

function textOf(report: Report): string {
  const { parameters, weightBytes, memory, device } = report;
  const count = (n: number) =>
    n < 1e6 ? `${(n / 1e3).toFixed(1)} K` : n < 1e9 ? `${(n / 1e6).toFixed(1)} M` : `${(n / 1e9).toFixed(2)} B`;
  const comma = (n: number) => n.toLocaleString('en-US');
  const row = (name: string, ...values: string[]) => `  ${name.padEnd(20)}${values.join('  ')}`;
  const moe =
    report.experts === 0
      ? 'no experts'
      : `${report.experts} experts, ${report.expertsPerToken} per token, ${report.sharedExperts} shared`;
  const free = device.kind === 'cuda' ? `, ${size(device.memoryFree)} of ${size(device.memoryTotal)} for a model` : '';
  const many = (n: number) => (n >= 1024 ? '1024 or more' : String(n));
  const limit = report.longestContext === report.modelContext ? " (the model's limit)" : '';
  const lines = [
    `${report.model}: ${report.modelType}, ${report.layers} layers of width ${report.hiddenSize}, ${report.heads} heads, ` +
      `latent rank ${report.latentRank} + ${report.ropeDims}, ${moe}`,
    '',
    `parameters            ${count(parameters.total)}, of which a token passes through ${count(parameters.active)}`,
    ...PARTS.filter((part) => parameters[part] > 0).map((part) =>
      part === 'mtp'
        ? row(part, count(parameters[part]).padStart(10), '(not counted above, not loaded)')
        : row(
            part,
            count(parameters[part]).padStart(10),
            `${((100 * parameters[part]) / parameters.total).toFixed(1)} %`,
          ),
    ),
    '',
    'weights on the device',
    ...DTYPES.map((dtype) =>
      row(`--dtype ${dtype}`, size(weightBytes[dtype]).padStart(10), dtype === 'auto' ? '(as in the checkpoint)' : ''),
    ),
    '',
    `cache                 ${comma(report.cacheBytesPerToken)} bytes per token (${report.cacheDtype})`,
    `activations           ${report.activationDtype}`,
    '',
    `${device.name} (${device.path})${free}`,
    row('longest context', comma(report.longestContext).padStart(10), `tokens, one sequence${limit}`),
    row('largest batch', many(report.mostSequences).padStart(10), `sequences of ${comma(report.context)} tokens`),
    '',
    `with a context of ${comma(report.context)} and ${report.sequences} sequences`,
    row('weights', size(memory.weights).padStart(10)),
    row('cache', size(memory.cache).padStart(10)),
    row('buffers', size(memory.activations + memory.workspace).padStart(10)),
    row('all', size(memory.total).padStart(10), report.fits ? '' : `DOES NOT FIT: ${size(device.memoryFree)} are free`),
    ...(report.contextBytes > 0 ? [row('and CUDA itself', `about ${size(report.contextBytes)}`.padStart(10))] : []),
  ];
  return `${lines.map((line) => line.trimEnd()).join('\n')}\n`;
}
