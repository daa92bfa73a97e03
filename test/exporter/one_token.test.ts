import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  inspectModel,
  type Model,
  modelBytes,
  parseModel,
  rewriteModel,
} from '../../exporter/index.js';
import { evaluate, type Weighing } from './support/layer.js';
import { ONE_TOKEN, oneTokenLayer, ROOM } from './support/one_token.js';
import { distance, type Feeds, floats, ints, random, run, zeros } from './support/run.js';

// Decoders that read one token at a time and write their cache in place.
const BATCH = 2;
const TOKENS = 6;
const FILLED = 3;
const HIDDEN = 12;
const MASK = [Array(TOKENS).fill(1), [0, 0, 1, 1, 1, 1]];
const next = random(17);
const X = floats([BATCH, TOKENS, HIDDEN], () => next() * 2).data as Float32Array;

/** What a model says token by token, [B,T,E] with zeros before `from`, and what it carries in the end. */
async function stream(
  model: Model,
  start: Feeds,
  pairs: readonly (readonly [string, string])[],
  from = 0,
) {
  const said = new Float32Array(BATCH * TOKENS * HIDDEN);
  let carried = start;
  for (let t = from; t < TOKENS; t++) {
    const rows = [0, 1].map((b) =>
      X.subarray((b * TOKENS + t) * HIDDEN, (b * TOKENS + t + 1) * HIDDEN),
    );
    const feeds: Feeds = {
      x: floats([BATCH, 1, HIDDEN], (i) => rows[Math.floor(i / HIDDEN)]![i % HIDDEN]!),
      attention_mask: ints(
        [BATCH, t + 1],
        MASK.flatMap((row) => row.slice(0, t + 1)),
      ),
      past_sequence_length: new ort.Tensor('int32', [t], [1]),
      ...carried,
    };
    const takes = new Set(model.graph.inputs.map((i) => i.name));
    const out = await run(
      model,
      Object.fromEntries(Object.entries(feeds).filter(([n]) => takes.has(n))),
    );
    const y = out.y!.data as Float32Array;
    for (const b of [0, 1])
      said.set(y.subarray(b * HIDDEN, (b + 1) * HIDDEN), (b * TOKENS + t) * HIDDEN);
    carried = Object.fromEntries(pairs.map(([past, present]) => [past, out[present]!]));
  }
  return { said, carried };
}

const visible = (y: ArrayLike<number>) =>
  Array.from(y).filter((_, i) => MASK.flat()[Math.floor(i / HIDDEN)] === 1);
const expected = (weighing: Weighing) => {
  const sees = (b: number, i: number, j: number) => j <= i && MASK[b]![j] === 1;
  return visible(evaluate(oneTokenLayer(), { batch: BATCH, tokens: TOKENS, x: X, sees }, weighing));
};
const cachePairs = (model: Model) =>
  model.graph.inputs
    .map((i) => i.name)
    .filter((n) => /^past_(key|0)/.test(n))
    .map((past) => [past, past.replace(/past_key_values|past/, 'present')] as const);
/** Buffers start with anything. */
const buffers = (model: Model): Feeds =>
  Object.fromEntries(
    cachePairs(model).map(([past]) => {
      const dims = model.graph.dims(past)!.map((d) => (typeof d === 'number' ? d : BATCH));
      return [past, floats(dims, (i) => Math.sin(i))];
    }),
  );
const reread = (model: Model) => parseModel(modelBytes(model));

/** The largest difference, by the size of what is expected. */
const error = (said: ArrayLike<number>, wanted: readonly number[]) =>
  distance(visible(said), wanted) / Math.max(1, ...wanted.map(Math.abs));

describe.each(ONE_TOKEN)('$name', ({ pattern, noKernel, build }) => {
  const opaque = pattern.endsWith('SelfAttention');

  it('is found', async () => {
    const { sites } = await inspectModel(build());
    expect(sites).toMatchObject([
      { pattern, q_num_heads: 4, head_dim: 8, cache: true, mask: 'causal+padding', reason: null },
    ]);
  });

  it.skipIf(opaque)('survives a round trip', async () => {
    const model = build();
    await rewriteModel(model, { variant: 'none' });
    expect(model.graph.nodes.some((n) => /Attention/.test(n.opType))).toBe(false);
    const { said } = await stream(reread(model), buffers(model), cachePairs(model));
    expect(error(said, expected('softmax'))).toBeLessThan(2e-6);
  });

  it('runs in ONNX Runtime, and leaves the same buffers', async () => {
    const pairs = cachePairs(build());
    // An empty buffer is a full one to ONNX Runtime's kernel: some tokens are cached already.
    const original = stream(build(), buffers(build()), pairs, FILLED);
    if (noKernel instanceof RegExp) await expect(original).rejects.toThrow(noKernel);
    if (noKernel) return;
    const model = build();
    await rewriteModel(model, { variant: 'none' });
    const [before, after] = [
      await original,
      await stream(reread(model), buffers(model), pairs, FILLED),
    ];
    expect(error(after.said, visible(before.said))).toBeLessThan(2e-6);
    for (const [past] of pairs) {
      const [a, b] = [before.carried[past]!, after.carried[past]!];
      expect(b.dims).toEqual(a.dims);
      expect(b.dims.at(-2)).toBe(ROOM);
      expect(distance(a.data as Float32Array, b.data as Float32Array)).toBeLessThan(2e-6);
    }
  });

  it.runIf(opaque)('keeps a cache whose order it does not know', async () => {
    const report = await rewriteModel(build(), { variant: 'none' });
    expect(report.sites).toMatchObject([
      { rewritten: false, kept: 'its cache has an order that only the node itself knows' },
    ]);
  });

  it('carries a state instead', async () => {
    const model = build();
    const report = await rewriteModel(model, { variant: 'linear' });
    expect(cachePairs(model).map(([past]) => past)).toEqual([report.state[0]!.past]);
    const start = Object.fromEntries(
      report.state.map((s) => [s.past, zeros(s.dtype, s.shape, BATCH)]),
    );
    const pairs = report.state.map((s) => [s.past, s.present] as const);
    const { said } = await stream(reread(model), start, pairs);
    expect(error(said, expected('elu1'))).toBeLessThan(2e-6);
  });
});
