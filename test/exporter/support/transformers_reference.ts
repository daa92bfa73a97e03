import type { Gate, LayerGates, RewriteOptions, RewriteReport, Variant } from '../../../exporter/index.js';
import { type Feeds, numbers, random } from './run.js';
import { REFUSALS, type TransformersFile } from './transformers.js';

/** Gates of each layer of a model, by variant; projections of the layer's input where the variant takes them. */
export function gatesOf(variant: Variant, { heads, layers }: TransformersFile): Record<number, LayerGates> | undefined {
  if (variant === 'linear' || variant === 'retention') return undefined;
  const [, kv, dim] = heads;
  const next = random(11);
  const hidden = HIDDEN[dim]!;
  const row = (count: number, scale: number) => Float32Array.from({ length: count }, () => Math.round(next() * scale * 64) / 64);
  const gate = (columns: number): Gate => ({ weight: row(hidden * columns, 0.5), dims: [hidden, columns], bias: row(columns, 1) });
  const steps = (): LayerGates => ({ dt: gate(kv), a: { constant: Array.from({ length: kv }, (_, h) => -(h + 1) / 4) } });
  const make: Partial<Record<Variant, () => LayerGates>> = {
    gla: () => ({ decay: gate(kv * dim), temperature: 2 }),
    mamba2: steps,
    delta: () => ({ beta: gate(kv) }),
    'gated-delta': () => ({ ...steps(), beta: gate(kv) }),
  };
  return Object.fromEntries(layers.map((_, layer) => [layer, make[variant]!()]));
}

/** Width of hidden states by head size, in the models that variants with gates are tried on. */
const HIDDEN: Readonly<Record<number, number>> = { 4: 16, 8: 32 };

export const GATED_VARIANTS = ['retention', 'gla', 'mamba2', 'delta', 'gated-delta'] as const;
/** Models that these are tried on. */
export const GATED_MODELS = /^(llama|gpt2|qwen3|bloom)(_cache)?\./;

/** What a reference is made with. */
export interface ReferenceOptions extends Pick<RewriteOptions, 'layers' | 'bias'> {
  readonly variant: Variant;
}

/** How `reference.py` is asked for a model: layers that cannot be rewritten are left out only if they are refused without bias 'drop'. */
export function optionsOf({ layers }: TransformersFile, drop: boolean): RewriteOptions {
  if (drop) return { variant: 'linear', bias: 'drop' };
  return { variant: 'linear', layers: layers.flatMap((l, i) => (l in REFUSALS ? [] : [i])) };
}

/** A call of a model in PyTorch, and which of its attention is replaced. */
export interface ReferenceCall {
  /** Name in export.py. */
  readonly model: string;
  /** Sizes of onnxruntime-genai's files. */
  readonly genai: boolean;
  readonly inputs: Record<string, { type: string; dims: readonly number[]; data: readonly number[] }>;
  /** One entry for each attention, in order: null for softmax. */
  readonly sites: readonly (null | { causal: boolean })[];
  readonly heads: readonly [number, number, number];
  readonly gates: Record<string, Record<number, unknown>>;
}

export function referenceCall(file: TransformersFile, report: RewriteReport, feeds: Feeds): ReferenceCall {
  const { exporter, heads } = file;
  const states = new Set(report.state.map((s) => s.past));
  const base = file.model.replace('_sdpa', '').replace(/^(bart|t5|whisper)_merged/, '$1_decoder_cache');
  const model = /^(bart|t5|whisper)/.test(base) ? base : base.replace(/_(cache|merged)/, '');
  const inputs = Object.entries(feeds).flatMap(([name, tensor]) => {
    const { type, dims } = tensor;
    if (states.has(name) || name === 'use_cache_branch') return [];
    const data = type.startsWith('float') ? numbers(tensor) : [...(tensor.data as BigInt64Array | Uint8Array)].map(Number);
    return [[name, { type: type.replace('float16', 'float32'), dims, data }]];
  });
  const sites = report.sites.flatMap(({ layer, rewritten, mask }) =>
    layer === null || file.layers[layer] === 'nested' ? [] : [rewritten ? { causal: !/^(bidirectional|padding)/.test(mask!) } : null],
  );
  const variants = GATED_MODELS.test(file.name) ? GATED_VARIANTS : [];
  const gates = Object.fromEntries(variants.map((v) => [v, plain(gatesOf(v, file) ?? {})]));
  return { model, genai: exporter.startsWith('genai'), inputs: Object.fromEntries(inputs), sites, heads, gates };
}

function plain(gates: Record<number, LayerGates>): Record<number, unknown> {
  return JSON.parse(JSON.stringify(gates, (_, value) => (value instanceof Float32Array ? [...value] : value)));
}
