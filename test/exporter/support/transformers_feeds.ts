import * as ort from 'onnxruntime-node';
import type { Model } from '../../../exporter/index.js';
import { type Feeds, floats, halves, ints, random } from './run.js';
import type { TransformersFile } from './transformers.js';

/** Lengths of a call. */
export interface Call {
  readonly rows: number;
  readonly tokens: number;
  readonly past: number;
  readonly encoder: number;
  readonly samples: number;
}

export const TRACED: Call = { rows: 3, tokens: 5, past: 6, encoder: 7, samples: 90 };
export const OTHER: Call = { rows: 2, tokens: 9, past: 3, encoder: 13, samples: 141 };

/** A call without past that a file can answer. */
export function firstCall({ limit }: TransformersFile): Call {
  const rows = limit === 'one row' ? 1 : TRACED.rows;
  const tokens = limit === 'as traced' ? TRACED.tokens : 9;
  return { ...TRACED, rows, tokens, past: 0 };
}

/** Inputs that tell a number of tokens: all up to here, or (Olive, and decoders of one token) all but the last. */
export const LENGTHS = /^(past|total)_seq_len$|^past_sequence_length$/;
export function lengthOf(name: string, tokens: number): number {
  return name.startsWith('past') ? tokens - 1 : tokens;
}

/** Inputs of a call; masks hide a key of the first row: the oldest where there is a cache, the last elsewhere. */
export function feedsOf(model: Model, call: Call, { heads, exporter }: TransformersFile): Feeds {
  const { graph } = model;
  const next = random(7);
  const cached = graph.inputs.some(({ name }) => /^past/.test(name));
  const total = call.past + call.tokens;
  const lengths: Record<string, number> = {
    batch_size: call.rows,
    sequence_length: call.tokens,
    past_sequence_length: call.past,
    past_sliding_length: call.past,
    total_sequence_length: total,
    encoder_sequence_length: call.encoder,
    num_samples: call.samples,
    kv_cache_dim: heads[2],
  };
  const feeds: Feeds = {};
  for (const { name } of graph.inputs) {
    const dims = graph.dims(name)!.map((d) => (typeof d === 'number' ? d : lengths[d!]!));
    if (name === 'attention_mask' && cached) dims[1] = total;
    if (/^(input|position)_ids$/.test(name)) dims[1] = call.tokens; // of decoders of one token, all of them
    const width = dims.at(-1)!;
    const hidden = exporter.startsWith('genai') || width === 1 ? -1 : cached ? 0 : width - 1;
    const count = dims.reduce((a, b) => a * b, 1);
    const fill = (value: (i: number) => number) =>
      Array.from({ length: count }, (_, i) => value(i));
    if (name.endsWith('_mask')) {
      const seen = fill((i) => (i === hidden ? 0 : 1));
      feeds[name] =
        graph.dtype(name) === 'bool'
          ? new ort.Tensor(
              'bool',
              Uint8Array.from(seen, (m) => 1 - m),
              dims,
            )
          : ints(dims, seen);
    } else if (name === 'use_cache_branch') {
      feeds[name] = new ort.Tensor('bool', [call.past > 0], [1]);
    } else if (LENGTHS.test(name)) {
      feeds[name] = new ort.Tensor('int32', [lengthOf(name, total)], dims);
    } else if (name === 'position_ids') {
      feeds[name] = ints(
        dims,
        fill((i) => (cached ? call.past : 0) + (i % width)),
      );
    } else if (name.endsWith('_ids')) {
      const kinds = name === 'token_type_ids' ? 2 : 61;
      feeds[name] = ints(
        dims,
        fill((i) => (kinds === 2 ? i % 2 : 3 + ((i * 7 + 5) % kinds))),
      );
    } else if (graph.dtype(name) === 'float16') {
      feeds[name] = halves(dims, () => next());
    } else {
      feeds[name] = floats(dims, () => next());
    }
  }
  return feeds;
}
