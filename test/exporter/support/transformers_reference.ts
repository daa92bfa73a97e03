import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import zlib from 'node:zlib';
import type {
  Gate,
  LayerGates,
  RewriteOptions,
  RewriteReport,
  Variant,
} from '../../../exporter/index.js';
import { type Feeds, ints, numbers, random } from './run.js';
import { FOLDER, REFUSALS, type TransformersFile } from './transformers.js';
import { LENGTHS } from './transformers_feeds.js';

/** Variants with decays or the delta rule, and the files that they are tried on. */
export const GATED_VARIANTS = ['retention', 'gla', 'mamba2', 'delta', 'gated-delta'] as const;
const GATED_FILES = /^(llama|gpt2|qwen3)\.dynamo$|^(llama|gpt2|qwen3|bloom)_cache\.torchscript$/;
/** Width of hidden states by head size in those. */
const HIDDEN: Readonly<Record<number, number>> = { 4: 16, 8: 32 };

export function hasGates({ name }: TransformersFile): boolean {
  return GATED_FILES.test(name);
}

/** Gates of each layer, projections of the layer's input where the variant takes them. */
export function gatesOf(
  variant: (typeof GATED_VARIANTS)[number],
  { heads: [, kv, dim], layers }: TransformersFile,
): Record<number, LayerGates> {
  const next = random(11);
  const hidden = HIDDEN[dim]!;
  const some = (count: number, size: number) =>
    Float32Array.from({ length: count }, () => Math.round(next() * size * 64) / 64);
  const gate = (columns: number): Gate => ({
    weight: some(hidden * columns, 0.5),
    dims: [hidden, columns],
    bias: some(columns, 1),
  });
  const steps = (): LayerGates => ({
    dt: gate(kv),
    a: { constant: Array.from({ length: kv }, (_, h) => -(h + 1) / 4) },
  });
  const make: Record<(typeof GATED_VARIANTS)[number], () => LayerGates> = {
    retention: () => ({}),
    gla: () => ({ decay: gate(kv * dim), temperature: 2 }),
    mamba2: steps,
    delta: () => ({ beta: gate(kv) }),
    'gated-delta': () => ({ ...steps(), beta: gate(kv) }),
  };
  return Object.fromEntries(layers.map((_, layer) => [layer, make[variant]()]));
}

/** All layers of a file that can be rewritten; with `drop` those too whose bias has to go for it. */
export function linearOptions({ layers }: TransformersFile, drop: boolean): RewriteOptions {
  if (drop) return { variant: 'linear', bias: 'drop' };
  return { variant: 'linear', layers: layers.flatMap((l, i) => (l in REFUSALS ? [] : [i])) };
}

/** What reference.py is asked: a model of export.py, a call of it, and which of its attention is replaced. */
export interface ReferenceCall {
  readonly model: string;
  /** Sizes of onnxruntime-genai's files. */
  readonly genai: boolean;
  readonly inputs: Record<
    string,
    { type: string; dims: readonly number[]; data: readonly number[] }
  >;
  /** One entry for each attention, in order: null where it stays softmax. */
  readonly sites: readonly (null | { causal: boolean })[];
}

/** The call that a rewritten file's inputs stand for; its states are zeros, its positions are those of PyTorch. */
export function referenceCall(
  file: TransformersFile,
  report: RewriteReport,
  feeds: Feeds,
): ReferenceCall {
  const left = new Set([...report.state.map((s) => s.past), 'use_cache_branch', 'position_ids']);
  // A merged decoder whose cache is empty reads the encoder's output, whatever is in the cache of that.
  const merged = /^(t5|whisper)_merged/.test(file.model);
  const base = file.model.replace('_sdpa', '').replace(/^(t5|whisper)_merged/, '$1_decoder');
  // Olive has lengths in place of a mask; here nothing is hidden then.
  const ids = feeds.input_ids?.dims;
  const mask = feeds.total_seq_len && {
    attention_mask: ints(ids!, Array(ids![0]! * ids![1]!).fill(1)),
  };
  const given: Feeds = { ...feeds, ...mask };
  const inputs = Object.keys(given)
    .filter((name) => !left.has(name) && !LENGTHS.test(name))
    .filter((name) => !(merged && name.startsWith('past_key_values')))
    .sort()
    .map((name) => {
      const { type, dims, data } = given[name]!;
      const plain = type.startsWith('float')
        ? numbers(given[name]!)
        : [...(data as BigInt64Array | Uint8Array)].map(Number);
      return [name, { type: type.replace('float16', 'float32'), dims, data: plain }];
    });
  return {
    model: /^(bart|t5|whisper)/.test(base) ? base : base.replace(/_(cache|merged|past)/, ''),
    genai: file.exporter.startsWith('genai'),
    inputs: Object.fromEntries(inputs),
    sites: report.sites.flatMap(({ layer, rewritten, mask }) => {
      if (layer === null) return [];
      return [rewritten ? { causal: !/^(bidirectional|padding)/.test(mask!) } : null];
    }),
  };
}

export function keyOf(call: ReferenceCall): string {
  return createHash('sha1').update(JSON.stringify(call)).digest('hex').slice(0, 16);
}

/** Outputs of PyTorch in float64 by variant, every `step`-th column, as float32 in base64. */
interface Reference {
  readonly step: number;
  readonly outputs: Record<string, string>;
}

let known: Record<string, Reference> | undefined;

/**
 * The largest difference of an output from PyTorch's in float64, of the largest number there; tokens that are hidden do not count, nor
 * do `without` rows. Throws for a call that has no reference.
 */
export function referenceError(
  call: ReferenceCall,
  variant: Variant | 'softmax',
  output: readonly number[],
  without: (row: number) => boolean = () => false,
): number {
  known ??= JSON.parse(
    zlib.brotliDecompressSync(fs.readFileSync(path.join(FOLDER, 'reference.br'))).toString(),
  );
  const { step, outputs } = known![keyOf(call)] ?? { step: 1, outputs: {} };
  const text = outputs[variant];
  if (!text) throw new Error(`nothing is known of this call of ${call.model} with ${variant}`);
  const wanted = new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer);
  if (output.length !== wanted.length * step)
    throw new Error(`${output.length} numbers, ${wanted.length * step} in PyTorch`);
  const { attention_mask: mask, input_ids: ids } = call.inputs;
  const [rows, tokens] = ids?.dims ?? [1, 1];
  const width = wanted.length / (rows! * tokens!);
  let worst = 0;
  for (const [i, w] of wanted.entries()) {
    const token = Math.floor(i / width);
    if (mask?.data[token] === 0 || without(Math.floor(token / tokens!))) continue;
    worst = Math.max(worst, Math.abs(w - output[i * step]!));
  }
  return worst / Math.max(...wanted.map(Math.abs));
}
