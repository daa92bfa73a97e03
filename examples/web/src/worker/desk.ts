/** What the worker has on its desk: the model that was opened, the rewritten one, and their sessions. */
import {
  inspectModel,
  modelBytes,
  ortRunner,
  type Runner,
  rewriteModel,
} from '../../../../exporter/browser.js';
import type { Model } from '../../../../exporter/ir/index.js';
import { tensorDims } from '../../../../exporter/ir/index.js';
import { FlaError } from '../../../../ops/error.js';
import type {
  FreeDim,
  GivenFile,
  ModelFacts,
  Progress,
  RewriteFacts,
  RewriteRequest,
  Side,
  SiteFacts,
} from '../protocol.js';
import { type Opened, openFiles, parse } from './files.js';
import { openReader, type Reader } from './readers.js';
import { runtime } from './runtime.js';

type Tell = (progress: Progress) => void;

interface Desk {
  readonly kind: ModelFacts['kind'];
  readonly models: Partial<Record<Side, Opened>>;
  readonly readers: Partial<Record<Side, Reader>>;
}

let desk: Desk | undefined;

/** Small models that masks are probed with run on wasm, in turn with everything else. */
async function runner(): Promise<Runner> {
  const { ort, fla } = await runtime();
  const inner = ortRunner(() => ort as never);
  return { run: (...args) => fla.exclusive(() => inner.run(...args)) };
}

function parameters(model: Model): number {
  return model.proto.graph.initializer.reduce(
    (sum, tensor) => sum + tensorDims(tensor).reduce((a, b) => a * b, 1),
    0,
  );
}

function kindOf({ graph }: Model): ModelFacts['kind'] {
  const names = graph.inputs.map(({ name }) => name);
  const ids = names.some((name) => /^(input_?ids|tokens|ids)$/i.test(name));
  const logits = graph.outputs.some(({ name }) => /logits/i.test(name));
  if (!ids || !logits) return 'other';
  return names.some((name) => /past/.test(name)) ? 'remembers' : 'forgets';
}

const DEFAULT_SIZE = 32;

/** The sizes that have to be chosen to run a model of any kind: the batch is 1. */
function freeDims({ graph }: Model): FreeDim[] {
  const names = new Set<string>();
  for (const input of graph.inputs) {
    if (!graph.isInput(input.name)) continue;
    for (const [axis, size] of (graph.dims(input.name) ?? []).entries())
      if (typeof size !== 'number' && axis > 0) names.add(size || `axis ${axis} of ${input.name}`);
  }
  return [...names].map((name) => ({ name, value: DEFAULT_SIZE }));
}

function siteFacts(site: Awaited<ReturnType<typeof inspectModel>>['sites'][number]): SiteFacts {
  const { q_num_heads: q, kv_num_heads: kv, head_dim: dim } = site;
  const heads =
    q === null
      ? ''
      : `${q}${kv !== null && kv !== q ? `/${kv}` : ''}${dim === null ? '' : ` × ${dim}`}`;
  const { layer, node, mask, cache, rewritable, reason } = site;
  return { layer, node, heads, mask, cache, rewritable, reason };
}

async function clear(): Promise<void> {
  const readers = Object.values(desk?.readers ?? {});
  desk = undefined;
  for (const reader of readers) await reader.dispose();
}

/** Opens a model: takes it apart, and finds its attention. */
export async function open(
  files: readonly GivenFile[],
  tell: Tell,
  signal: AbortSignal,
): Promise<ModelFacts> {
  await clear();
  const start = performance.now();
  const opened = openFiles(files);
  tell({ label: 'Reading the graph' });
  const model = parse(opened);
  const kind = kindOf(model);
  const { sites } = await inspectModel(model, {
    runner: await runner(),
    signal,
    onProgress: (done, total) =>
      tell({ label: `Looking at attention, ${done} of ${total}`, part: done / total }),
  });
  desk = { kind, models: { original: opened }, readers: {} };
  const size = [opened.bytes, ...opened.external.values()].reduce(
    (sum, { length }) => sum + length,
    0,
  );
  return {
    name: opened.name,
    bytes: size,
    nodes: model.graph.nodes.length,
    parameters: parameters(model),
    opset: model.opset() ?? 0,
    kind,
    tokenizer: opened.tokenizer !== undefined,
    sites: sites.map(siteFacts),
    dims: kind === 'other' ? freeDims(model) : [],
    ms: performance.now() - start,
  };
}

function current(): Desk {
  if (desk) return desk;
  throw new FlaError('invalid_argument', 'Open a model first.');
}

/** Rewrites the model that is open. */
export async function rewrite(
  request: RewriteRequest,
  tell: Tell,
  signal: AbortSignal,
): Promise<RewriteFacts> {
  const { models, readers } = current();
  const original = models.original!;
  const start = performance.now();
  const model = parse(original);
  const constant = (value: number) => ({ constant: value });
  const report = await rewriteModel(model, {
    variant: request.variant,
    layers: request.layers,
    ...(request.variant === 'gated-delta' && {
      gates: { default: { decay: constant(request.decay), beta: constant(request.beta) } },
    }),
    runner: await runner(),
    signal,
    onProgress: (done, total) =>
      tell({ label: `Rewriting, ${done} of ${total}`, part: done / total }),
  });
  const bytes = modelBytes(model) as Uint8Array<ArrayBuffer>;
  const name = original.name.replace(/\.onnx$/i, `.${request.variant}.onnx`);
  await readers.rewritten?.dispose();
  delete readers.rewritten;
  models.rewritten = { ...original, name, bytes };
  return {
    rewritten: report.sites.filter(({ rewritten }) => rewritten).length,
    of: report.sites.filter(({ layer }) => layer !== null).length,
    removedNodes: report.removedNodes,
    ms: performance.now() - start,
    name,
    file: bytes.slice(),
    weights: [...original.external.keys()],
  };
}

export function modelOf(side: Side): Opened {
  const model = current().models[side];
  if (model) return model;
  throw new FlaError('invalid_argument', 'Rewrite the model first.');
}

/** The language model of one side; loaded when it is first asked for, and again after its device was lost. */
export async function readerOf(side: Side): Promise<Reader> {
  const { kind, readers } = current();
  const model = modelOf(side);
  if (kind === 'other') throw new FlaError('unsupported', 'This is no language model.');
  readers[side] ??= await openReader(model, kind === 'remembers');
  return readers[side];
}

/** Lets go of sessions that are of no further use. */
export async function forgetReaders(): Promise<void> {
  const { readers } = current();
  for (const side of Object.keys(readers) as Side[]) {
    const reader = readers[side];
    delete readers[side];
    await reader?.dispose().catch(() => {});
  }
}
