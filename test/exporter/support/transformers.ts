import fs from 'node:fs';
import path from 'node:path';
import zlib from 'node:zlib';
import { type Model, parseModel } from '../../../exporter/index.js';
import { ROOT } from '../../support/models.js';

// Made by test/fixtures/transformers/export.py and packed by pack.ts beside it.
export const FOLDER = path.join(ROOT, 'test/fixtures/transformers');
const INDEX: Record<string, [family: string, offset: number, bytes: number]> = JSON.parse(
  fs.readFileSync(path.join(FOLDER, 'files.json'), 'utf8'),
);
const unpacked = new Map<string, Buffer>();

/** Why a layer of these models is not rewritten. */
export const REFUSALS = {
  cross: /^cross-attention: /,
  bias: /^mask: .*(a bias \(|it depends on hidden states)|counts batch and heads in one dimension/,
  bfloat16:
    /^mask: the mask cannot be probed: it could not be run: Could not find an implementation for Mul/,
  evicting: /^sliding_window_cache must be 0/,
  traced: /^mask: the mask cannot be probed: it could not be run: .* Reshape/,
  rows: /^mask: mask '.*' \[8,4,16,16\] does not fit scores \[2,4,16,16\]/,
  beams: /^cache_indirection '.*': beams that share a cache/,
  batch: /must be reshaped from \[T,B,H\*D\]/,
} as const;
/** A reason for which a layer is left alone, or the name of its mask. */
export type Answer =
  | keyof typeof REFUSALS
  | `${'bidirectional' | 'padding' | 'causal' | 'window'}${string}`;

/** What the configuration of a model says of its attention, and what is to be answered for each layer. */
export interface Expected {
  /** Heads of queries, heads of keys and values, and their size. */
  readonly heads: readonly [queries: number, keysAndValues: number, dim: number];
  readonly layers: readonly Answer[];
  /** Softmax that is no attention: routers of experts. */
  readonly routers: number;
}

const of = (heads: Expected['heads'], layers: string, routers = 0): Expected => ({
  heads,
  layers: layers.split(', ').filter((l) => l) as Answer[],
  routers,
});
const SMALL = [4, 4, 4] as const;
const GROUPED = [4, 2, 8] as const;
const WIDE = [4, 2, 16] as const;

/** By name, without `_cache`, `_merged` and `_sdpa`. */
const MODELS: Record<string, Expected> = {
  bert: of(SMALL, 'padding, padding'),
  roberta: of(SMALL, 'padding'),
  distilbert: of(SMALL, 'padding'),
  electra: of(SMALL, 'padding'),
  deberta_v2: of(SMALL, 'bias'),
  gpt2: of(SMALL, 'causal+padding, causal+padding'),
  gpt2_past: of(SMALL, 'causal+padding, causal+padding'),
  opt: of(SMALL, 'causal+padding'),
  bloom: of(SMALL, 'causal+padding+ALiBi'),
  gpt_neox: of([4, 4, 8], 'causal+padding'),
  gptj: of([4, 4, 8], 'causal+padding'),
  falcon: of([4, 1, 8], 'causal+padding'),
  falcon_alibi: of([4, 4, 8], 'bfloat16'),
  mpt: of(SMALL, 'causal+padding+ALiBi'),
  llama: of(GROUPED, 'causal+padding, causal+padding'),
  mistral: of(GROUPED, 'window 4+padding'),
  qwen2: of(GROUPED, 'causal+padding'),
  qwen2_moe: of(GROUPED, 'causal+padding', 1),
  qwen3: of(GROUPED, 'causal+padding'),
  gemma: of(GROUPED, 'causal+padding'),
  gemma2: of(GROUPED, 'window 4+padding, causal+padding'),
  gemma3: of(GROUPED, 'window 4+padding, causal+padding'),
  phi3: of(GROUPED, 'causal+padding'),
  gpt_oss: of(GROUPED, 'window 4+padding, causal+padding', 2),
  mixtral: of(GROUPED, 'causal+padding', 1),
  t5_encoder: of(SMALL, 'bias, bias'),
  t5_decoder: of(SMALL, 'bias, cross, bias, cross'),
  bart_encoder: of(SMALL, 'padding'),
  bart_decoder: of(SMALL, 'causal, cross'),
  whisper_encoder: of(SMALL, 'bidirectional'),
  whisper_decoder: of(SMALL, 'causal, cross'),
  vit: of(SMALL, 'bidirectional'),
  deit: of(SMALL, 'bidirectional'),
  beit: of(SMALL, 'bias'),
  clip_text: of(SMALL, 'causal+padding'),
  clip_vision: of(SMALL, 'bidirectional'),
  siglip_text: of(SMALL, 'bidirectional'),
  siglip_vision: of(SMALL, 'bidirectional'),
  segformer: of([2, 2, 8], 'cross, bidirectional'),
  swin: of(SMALL, 'bias, bias'),
  detr: of(SMALL, 'bidirectional, bidirectional, cross'),
  wav2vec2: of(SMALL, 'bidirectional'),
  conformer_relative: of(SMALL, 'bias'),
  conformer_rotary: of(SMALL, 'bidirectional'),
  transformer_encoder: of(SMALL, 'padding, padding'),
  multihead: of(SMALL, 'cross'),
  timm_vit: of(SMALL, 'bidirectional'),
  vae: of([1, 1, 8], 'bidirectional'),
  dit: of(SMALL, 'bidirectional, bidirectional'),
  unet: of([2, 2, 4], Array(4).fill('bidirectional, cross').join(', ')),
};

/** Files of which more or something else is to be said than of their models. */
const FILES: Record<string, Expected> = {
  'gemma2.genai-fp32-cpu': of(WIDE, 'causal+padding, window 4+padding'), // its windows are those of odd layers
  'gpt_oss.genai-fp32-cpu': of(WIDE, 'window 4+padding, causal+padding'), // its experts are one node
  'llama.genai-fp16-cuda': of(WIDE, 'causal+padding, causal+padding'),
  'llama.genai-fp32-cpu': of(WIDE, 'causal+padding, causal+padding'),
  'llama.genai-fp32-cpu.olive': of(WIDE, 'causal+padding, causal+padding'),
  'llama.genai-int4-cpu': of(WIDE, 'causal+padding, causal+padding'),
  'llama.genai-int4-webgpu': of(WIDE, 'causal+padding, causal+padding'),
  'mistral.genai-fp32-cpu': of(WIDE, 'window 4+padding'),
  'mistral.genai-int4-cpu': of(WIDE, 'evicting'),
  'multihead.torchscript': of(SMALL, 'batch'),
  'phi3.genai-fp32-cpu': of(WIDE, 'causal+padding'),
  'qwen3.genai-fp16-cuda': of(WIDE, 'causal+padding'),
  'qwen3.genai-int4-webgpu': of(WIDE, 'causal+padding'),
  'qwen3.genai-fp32-cpu': of(WIDE, 'causal+padding'),
  'qwen3.genai-fp32-cpu.olive': of(WIDE, 'causal+padding'),
  'swin.torchscript': of(SMALL, 'bias, rows'), // of windows
  'transformer_encoder.torchscript': of(SMALL, 'traced, traced'), // torch wrote the length as a constant
  'bart_decoder_cache.dynamo.masked': of(SMALL, 'beams, beams'),
  'whisper_decoder_cache.dynamo.masked': of(SMALL, 'beams, beams'),
};

/** What ONNX Runtime's CPU kernels cannot do with a file as it is, or ever: `elsewhere`. */
const LIMITS: Record<string, 'not at all' | 'elsewhere' | 'one row' | 'as traced'> = {
  'falcon_alibi.dynamo': 'not at all', // Mul of bfloat16
  'gemma2.genai-fp32-cpu': 'one row', // several tokens after others
  'gpt_oss.genai-fp32-cpu': 'one row',
  'gpt2_past.torchscript.buffer': 'not at all', // past_sequence_length
  'gpt2_past.torchscript.masked': 'not at all',
  'llama.genai-fp16-cuda': 'one row',
  'llama.genai-fp32-cpu': 'one row',
  'llama.genai-fp32-cpu.olive': 'one row',
  'llama.genai-int4-cpu': 'one row',
  'llama.genai-int4-webgpu': 'one row',
  'llama_cache.dynamo.onnxscript': 'not at all', // GroupQueryAttention that rotates heads of 8
  'llama_sdpa.dynamo23': 'one row', // RotaryEmbedding's tables have one row
  'mistral.genai-fp32-cpu': 'one row',
  'mistral.genai-int4-cpu': 'one row',
  'multihead.torchscript': 'as traced', // torch wrote lengths of keys as constants
  'phi3.genai-fp32-cpu': 'one row',
  'qwen3.genai-fp16-cuda': 'not at all', // GroupQueryAttention with norms
  'qwen3.genai-fp32-cpu': 'one row',
  'qwen3.genai-fp32-cpu.olive': 'one row',
  'qwen3.genai-int4-webgpu': 'not at all',
  'qwen3_sdpa.dynamo23': 'one row',
  'transformer_encoder.torchscript': 'as traced',
  'unet.torchscript.ort': 'elsewhere', // NhwcConv, which is for CUDA
};

/** A real file. */
export interface TransformersFile extends Expected {
  /** MODEL.EXPORTER[.VARIANT] */
  readonly name: string;
  readonly model: string;
  readonly exporter: string;
  readonly variant: string;
  readonly limit?: (typeof LIMITS)[string];
}

export const TRANSFORMERS: readonly TransformersFile[] = Object.keys(INDEX).map((file) => {
  const name = file.replace(/\.onnx$/, '');
  const [model, exporter, variant = ''] = name.split('.') as [string, string, string?];
  const plain = model
    .replace(/_(sdpa|cache)/g, '')
    .replace(/^(t5|whisper)_merged/, '$1_decoder')
    .replace('_merged', '');
  const expected = FILES[name] ?? MODELS[plain];
  if (!expected) throw new Error(`${file}: nothing is said of model '${plain}'`);
  return { ...expected, name, model, exporter, variant, limit: LIMITS[name] };
});

/** The bytes of a file in the pack. */
export function transformersBytes(name: string): Uint8Array {
  const [family, offset, bytes] = INDEX[`${name}.onnx`]!;
  let pack = unpacked.get(family);
  if (!pack) {
    pack = zlib.brotliDecompressSync(fs.readFileSync(path.join(FOLDER, `${family}.br`)));
    unpacked.set(family, pack);
  }
  return new Uint8Array(pack.subarray(offset, offset + bytes));
}

/** How many they are. */
export const transformersSize = (name: string): number => INDEX[`${name}.onnx`]![2];

/** A file anew: rewriting changes a model. */
export function loadTransformers(name: string): Model {
  return parseModel(transformersBytes(name), name);
}
