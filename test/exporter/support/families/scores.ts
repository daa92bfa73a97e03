import { DATA_TYPE } from '../../../../exporter/index.js';
import { makeLayer } from '../layer.js';
import { LOWEST, rms, roped, turning } from './language.js';
import { rmsNorm, rotated } from './rope.js';
import {
  ALIBI_NOTES,
  alibiFromMask,
  causalPadding,
  type Family,
  packed,
  qkv,
  range,
  repeat,
  SLOPES,
  transposed,
  type Writer,
} from './writer.js';

const SINKS = [0.5, -1, 2, 0].map(Math.fround);

/** bool [1,1,T,T], true where a key comes after the query. */
const later = (w: Writer) => {
  const at = range(w, 'x');
  const after = w.op('Greater', [
    w.op('Unsqueeze', [at, w.ints(0)]),
    w.op('Unsqueeze', [at, w.ints(1)]),
  ]);
  return w.op('Unsqueeze', [after, w.ints(0, 1)]);
};

/** [B,T,H,D] of each part of [B,T,H*3*D]. */
function interleaved(w: Writer): [string, string, string] {
  const { heads, dim } = w.layer;
  const parts = (['q', 'k', 'v'] as const).map((p) =>
    w.op('Unsqueeze', [w.split(w.linear(p), heads), w.ints(3)]),
  );
  const all = w.op('Concat', parts, { axis: 3 }); // [B,T,H,3,D]
  const flat = [w.dim('x', 0), w.dim('x', 1), w.ints(heads * 3 * dim)];
  const fused = w.op('Reshape', [all, w.op('Concat', flat, { axis: 0 })]);
  const split = [w.dim('x', 0), w.dim('x', 1), w.ints(heads, 3, dim)];
  const apart = w.op('Reshape', [fused, w.op('Concat', split, { axis: 0 })]);
  return [0, 1, 2].map((i) =>
    w.op('Gather', [apart, w.constant('int64', [i], [])], { axis: 3 }),
  ) as [string, string, string];
}

/** Scores [B,H,T,T] beside those of the sinks, the largest subtracted; Softmax; without the sinks. */
function besideSinks(w: Writer, scores: string): string {
  const { heads } = w.layer;
  const sinks = w.op('Reshape', [w.weight('sinks', [heads], SINKS), w.ints(1, -1, 1, 1)]);
  const shape = [w.dim('x', 0), w.ints(heads), w.dim('x', 1), w.ints(1)];
  const column = w.op('Expand', [sinks, w.op('Concat', shape, { axis: 0 })]);
  const all = w.op('Concat', [scores, column], { axis: -1 });
  const largest = w.op('ReduceMax', [all], { axes: [-1], keepdims: 1 });
  const weights = w.op('Softmax', [w.op('Sub', [all, largest])], { axis: -1 });
  return w.op('Slice', [weights, w.ints(0), w.ints(-1), w.ints(3), w.ints(1)]);
}

const capped = (w: Writer, scores: string, cap: number) =>
  w.op('Mul', [w.op('Tanh', [w.op('Div', [scores, w.scalar(cap)])]), w.scalar(cap)]);

/** RMSNorm of Gemma, whose gain is 1 + weight. */
const GAIN = [-0.25, 0, 0.25, 0.5];

/** Language models that do more to their scores than scale and mask them. */
export const SCORES: readonly Family[] = [
  {
    name: 'MPT: ALiBi [H,1,T] cut from a table, masked_fill',
    layer: () => ({ ...makeLayer(12, 4, 4, 3), slopes: SLOPES }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding+ALiBi',
    notes: ALIBI_NOTES,
    build(w) {
      const { heads, dim } = w.layer;
      const n = heads * dim;
      const parts = w.ops('Split', [packed(w), w.ints(n, n, n)], 3, { axis: 2 });
      const [q, k, v] = parts.map((p) => w.heads(p, heads)) as [string, string, string];
      const product = w.op('MatMul', [q, transposed(w, k)]);
      const scores = w.op('Mul', [product, w.scalar(1 / Math.sqrt(dim))]);
      const limit = 64;
      const table = SLOPES.flatMap((s) =>
        Array.from({ length: limit }, (_, j) => s * (j + 1 - limit)),
      );
      const start = w.op('Sub', [w.ints(limit), w.dim(k, 2)]);
      const alibi = w.weight('alibi', [heads, 1, limit], table);
      const bias = w.op('Slice', [alibi, start, w.ints(2 ** 53), w.ints(2), w.ints(1)]);
      const keys = w.op('Unsqueeze', [w.maskInput(), w.ints(1, 2)]);
      const padding = w.op('Equal', [keys, w.constant('int64', [0], [])]);
      const hidden = w.op('Or', [later(w), padding]);
      const masked = w.op('Where', [hidden, w.scalar(LOWEST), w.op('Add', [scores, bias])]);
      return w.finish(w.weighted(masked, v));
    },
  },
  {
    name: 'BLOOM: ALiBi [B*H,1,T] from the mask, baddbmm, [B,T,H,3,D]',
    layer: () => ({ ...makeLayer(12, 4, 4, 3), slopes: SLOPES }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding+ALiBi',
    notes: ALIBI_NOTES,
    build(w) {
      const { heads, dim } = w.layer;
      const [q, k, v] = interleaved(w);
      const rows = w.op('Mul', [w.dim('x', 0), w.ints(heads)]);
      const flat = (x: string, ...lengths: string[]) =>
        w.op('Reshape', [x, w.op('Concat', [rows, ...lengths], { axis: 0 })]);
      const turned = (x: string, perm: number[]) => w.op('Transpose', [x], { perm });
      const query = flat(turned(q, [0, 2, 1, 3]), w.dim('x', 1), w.ints(dim));
      const keys = flat(turned(k, [0, 2, 3, 1]), w.ints(dim), w.dim('x', 1));
      const value = flat(turned(v, [0, 2, 1, 3]), w.dim('x', 1), w.ints(dim));
      const product = w.op('Mul', [w.op('MatMul', [query, keys]), w.scalar(1 / Math.sqrt(dim))]);
      const scores = w.op('Add', [product, alibiFromMask(w)]);
      const wide = [w.dim('x', 0), w.ints(heads), w.dim('x', 1)];
      const apart = (x: string, last: string) =>
        w.op('Reshape', [x, w.op('Concat', [...wide, last], { axis: 0 })]);
      const masked = w.op('Add', [apart(scores, w.ints(-1)), causalPadding(w)]);
      const weights = w.op('Softmax', [masked], { axis: -1 });
      const out = w.op('MatMul', [flat(weights, w.dim('x', 1), w.ints(-1)), value]);
      return w.finish(apart(out, w.ints(dim)));
    },
  },
  {
    name: 'Falcon: ALiBi from the mask, scaled with the scores',
    layer: () => ({
      ...makeLayer(12, 4, 4, 4),
      slopes: SLOPES.map((s) => s / 2),
    }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding+ALiBi',
    notes: ALIBI_NOTES,
    build(w) {
      const { heads } = w.layer;
      const [q, k, v] = qkv(w);
      const product = w.op('MatMul', [q, transposed(w, k)]);
      const shape = [w.dim('x', 0), w.ints(heads), w.ints(1), w.ints(-1)];
      const alibi = w.op('Reshape', [alibiFromMask(w), w.op('Concat', shape, { axis: 0 })]);
      const scores = w.op('Mul', [w.op('Add', [product, alibi]), w.scalar(0.5)]);
      return w.finish(w.weighted(w.op('Add', [scores, causalPadding(w)]), v));
    },
  },
  {
    name: 'Gemma 2: softcap, grouped heads, scale from the configuration',
    layer: () => ({ ...makeLayer(12, 4, 2, 4), turn: turning(4), scale: 0.75, softcap: 1.5 }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    notes: ['the softcap of 1.5 is left out'],
    build(w) {
      const [q, k, v] = qkv(w);
      const [query, key] = roped(w, q, k);
      const product = w.op('MatMul', [query, transposed(w, repeat(w, key))]);
      const scores = capped(w, w.op('Mul', [product, w.scalar(0.75)]), 1.5);
      return w.finish(w.weighted(w.op('Add', [scores, causalPadding(w)]), repeat(w, v)));
    },
  },
  {
    name: 'Gemma 3: norms of heads with gain 1 + weight, window of 4',
    layer: () => ({
      ...makeLayer(12, 4, 2, 4),
      turn: (x, at) =>
        rotated(
          rmsNorm(
            x,
            GAIN.map((g) => 1 + g),
          ),
          at,
          { rotary: 4 },
        ),
    }),
    visible: { window: 4 },
    padding: false,
    mask: 'window 4',
    build(w) {
      const { heads, kvHeads } = w.layer;
      const normed = (what: 'q' | 'k', count: number) => {
        const gain = w.op('Add', [w.weight(`${what}_norm`, [4], GAIN), w.scalar(1)]);
        return w.op('Transpose', [rms(w, w.split(w.linear(what), count), gain)], {
          perm: [0, 2, 1, 3],
        });
      };
      const v = w.heads(w.linear('v'), kvHeads);
      const [query, key] = roped(w, normed('q', heads), normed('k', kvHeads));
      const product = w.op('MatMul', [query, transposed(w, repeat(w, key))]);
      const at = range(w, 'x');
      const [rows, columns] = [1, 0].map((axis) => w.op('Unsqueeze', [at, w.ints(axis)]));
      const seen = w.op('And', [
        w.op('LessOrEqual', [columns!, rows!]),
        w.op('Greater', [columns!, w.op('Sub', [rows!, w.constant('int64', [4], [])])]),
      ]);
      const mask = w.op('Where', [seen, w.scalar(0), w.scalar(LOWEST)]);
      const scores = w.op('Mul', [product, w.scalar(0.5)]);
      return w.finish(w.weighted(w.op('Add', [scores, mask]), repeat(w, v)));
    },
  },
  {
    name: 'gpt-oss: a learned sink beside the keys, rotary embedding, grouped heads',
    layer: () => ({ ...makeLayer(12, 4, 2, 4), turn: turning(4), sinks: SINKS }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    notes: ['the sink becomes a constant in the denominator'],
    build(w) {
      const [q, k, v] = qkv(w);
      const [query, key] = roped(w, q, k);
      const product = w.op('MatMul', [query, transposed(w, repeat(w, key))]);
      const masked = w.op('Add', [w.op('Mul', [product, w.scalar(0.5)]), causalPadding(w)]);
      return w.finish(w.op('MatMul', [besideSinks(w, masked), repeat(w, v)]));
    },
  },
];

/** Buckets of relative positions: half of them exact, the others wider and wider up to a distance. */
export interface Buckets {
  readonly count: number;
  readonly longest: number;
}

const bucketOf = (distance: number, { count, longest }: Buckets) => {
  const exact = count / 2;
  if (distance < exact) return Math.max(0, distance);
  const wide = (Math.log(distance / exact) / Math.log(longest / exact)) * (count - exact);
  return Math.min(count - 1, exact + Math.floor(Math.fround(wide)));
};
const tableOf = (heads: number, { count }: Buckets) =>
  Array.from({ length: count * heads }, (_, i) => Math.fround(Math.sin(i + 1)));

/** float [1,H,T,T] of a T5 decoder: the table's rows by bucket of max(query - key, 0). */
function relativeBias(w: Writer, { count, longest }: Buckets): string {
  const int = (value: number) => w.constant('int64', [value], []);
  const at = range(w, 'x');
  const [keys, queries] = [0, 1].map((axis) => w.op('Unsqueeze', [at, w.ints(axis)]));
  const relative = w.op('Sub', [keys!, queries!]);
  const distance = w.op('Neg', [w.op('Min', [relative, int(0)])]);
  const exact = count / 2;
  const float = w.op('Div', [
    w.op('Cast', [w.op('Max', [distance, int(1)])], { to: DATA_TYPE.float32 }),
    w.scalar(exact),
  ]);
  const log = w.op('Div', [w.op('Log', [float]), w.scalar(Math.log(longest / exact))]);
  const wide = w.op('Cast', [w.op('Mul', [log, w.scalar(count - exact)])], { to: DATA_TYPE.int64 });
  const large = w.op('Min', [w.op('Add', [wide, int(exact)]), int(count - 1)]);
  const bucket = w.op('Where', [w.op('Less', [distance, int(exact)]), distance, large]);
  const { heads } = w.layer;
  const table = w.weight(
    'relative_attention_bias',
    [count, heads],
    tableOf(heads, { count, longest }),
  );
  const rows = w.op('Gather', [table, bucket]);
  return w.op('Unsqueeze', [w.op('Transpose', [rows], { perm: [2, 0, 1] }), w.ints(0)]);
}

/** A decoder's layer of T5: a bias by distance, no scale. */
export function t5Decoder(buckets: Buckets): Family {
  const layer = makeLayer(12, 4, 4, 3);
  const table = tableOf(layer.heads, buckets);
  return {
    name: `T5, decoder: a learned bias of ${buckets.count} buckets up to a distance of ${buckets.longest}`,
    layer: () => ({
      ...layer,
      scale: 1,
      bias: (h, distance) => table[bucketOf(distance, buckets) * layer.heads + h]!,
    }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding+bias',
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = w.op('MatMul', [q, transposed(w, k)]);
      const bias = w.op('Add', [relativeBias(w, buckets), causalPadding(w)]);
      return w.finish(w.weighted(w.op('Add', [scores, bias]), v));
    },
  };
}

/** Models with a bias by position, which linear attention refuses or drops. */
export const BIASED: readonly Family[] = [
  t5Decoder({ count: 8, longest: 20 }),
  t5Decoder({ count: 32, longest: 128 }),
];
