import { describe, expect, it } from 'vitest';
import {
  DATA_TYPE,
  inspectModel,
  type Model,
  makeTensor,
  modelBytes,
  parseModel,
  rewriteModel,
} from '../../exporter/index.js';
import { causalPadding, scaled, transposed, Writer } from './support/families/index.js';
import { makeLayer } from './support/layer.js';
import { optimized } from './support/optimize.js';
import { distance, type Feeds, floats, ints, random, run } from './support/run.js';

// Weights of 8 or 4 bits around the attention, and activations of 8 bits inside it.
const HIDDEN = 16;
const SCALE = 1 / 64;
const layer = () => makeLayer(HIDDEN, 4, 4, 4);

class Quantiser extends Writer {
  /** int8 [E,N] and its scale. */
  private eightBits(what: 'q' | 'k' | 'v'): string[] {
    const values = this.layer[`w${what}`].map((v) => Math.round(v / SCALE));
    const columns = values.length / HIDDEN;
    this.weights.push(makeTensor(`w${what}_8`, 'int8', [HIDDEN, columns], values));
    return [`w${what}_8`, this.scalar(SCALE), this.constant('int8', [0], [])];
  }
  bias(product: string, what: 'q' | 'k' | 'v'): string {
    const values = this.layer[`b${what}`];
    return this.op('Add', [product, this.weight(`b${what}`, [values.length], values)]);
  }
  /** Weights stored in 8 bits. */
  stored(what: 'q' | 'k' | 'v'): string {
    const weight = this.op('DequantizeLinear', this.eightBits(what));
    return this.bias(this.op('MatMul', ['x', weight]), what);
  }
  /** Products of 8 bits, activations quantised as they come: quantize_dynamic of onnxruntime. */
  dynamic(what: 'q' | 'k' | 'v', x: readonly string[]): string {
    const [weight, scale, zero] = this.eightBits(what);
    const product = this.op('MatMulInteger', [x[0]!, weight!, x[2]!, zero!]);
    const float = this.op('Cast', [product], { to: DATA_TYPE.float32 });
    const both = this.op('Mul', [x[1]!, scale!]);
    return this.bias(this.op('Mul', [float, both]), what);
  }
  /** Weights of 4 bits in blocks of 16. */
  fourBits(what: 'q' | 'k' | 'v'): string {
    const w = this.layer[`w${what}`];
    const columns = w.length / HIDDEN;
    const nibble = (row: number, c: number) =>
      Math.min(15, Math.max(0, Math.round(w[row * columns + c]! * 8) + 8));
    const bytes = Array.from({ length: (columns * HIDDEN) / 2 }, (_, i) => {
      const [c, pair] = [Math.floor(i / (HIDDEN / 2)), i % (HIDDEN / 2)];
      return nibble(2 * pair, c) + 16 * nibble(2 * pair + 1, c);
    });
    this.weights.push(makeTensor(`w${what}_4`, 'uint8', [columns, 1, HIDDEN / 2], bytes));
    const scales = this.weight(`w${what}_scale`, [columns], Array(columns).fill(1 / 8));
    const attrs = { K: HIDDEN, N: columns, bits: 4, block_size: 16 };
    const inputs = ['x', `w${what}_4`, scales];
    return this.bias(this.op('MatMulNBits', inputs, attrs, { domain: 'com.microsoft' }), what);
  }
  /** Rounded to 8 bits and back. */
  rounded(x: string, step = 1 / 32): string {
    const more = [this.scalar(step), this.constant('int8', [0], [])];
    return this.op('DequantizeLinear', [this.op('QuantizeLinear', [x, ...more]), ...more]);
  }
  attend(
    project: (what: 'q' | 'k' | 'v') => string,
    round = (x: string, _step?: number) => x,
  ): Model {
    const heads = (what: 'q' | 'k' | 'v') =>
      round(
        this.op('Transpose', [round(this.split(round(project(what)), 4))], { perm: [0, 2, 1, 3] }),
      );
    const [q, k, v] = [heads('q'), heads('k'), heads('v')];
    const scores = round(
      scaled(this, round(this.op('MatMul', [q, round(transposed(this, k))]), 1 / 8)),
    );
    const masked = this.op('Add', [scores, causalPadding(this)]);
    const weights = round(this.op('Softmax', [masked], { axis: -1 }), 1 / 127);
    return this.finish(this.op('MatMul', [weights, v]));
  }
}

const CASES: {
  name: string;
  build: (w: Quantiser) => Model;
  error: number;
  fused?: RegExp;
}[] = [
  {
    name: 'weights stored in 8 bits (DequantizeLinear)',
    build: (w: Quantiser) => w.attend((p) => w.stored(p)),
    error: 2e-6,
  },
  {
    name: 'weights of 4 bits (MatMulNBits)',
    build: (w: Quantiser) => w.attend((p) => w.fourBits(p)),
    error: 2e-6,
  },
  {
    name: 'products of 8 bits (DynamicQuantizeLinear, MatMulInteger)',
    build(w: Quantiser) {
      const x = w.ops('DynamicQuantizeLinear', ['x'], 3);
      return w.attend((p) => w.dynamic(p, x));
    },
    error: 2e-6,
  },
  {
    // Scores and weights are not rounded any more: steps of 1/8, 1/32 and 1/127.
    name: 'QuantizeLinear and DequantizeLinear around every step',
    build: (w: Quantiser) =>
      w.attend(
        (p) => w.stored(p),
        (x, step) => w.rounded(x, step),
      ),
    error: 0.1,
    // Optimized, it is QLinearMatMul, and scores of 8 bits.
    fused: /its scores are products of 8 bits/,
  },
];

const MASK = [
  [1, 1, 1, 1, 1, 1, 1],
  [0, 0, 1, 1, 1, 1, 1],
];
function feeds(): Feeds {
  const next = random(3);
  return { x: floats([2, 7, HIDDEN], () => next()), attention_mask: ints([2, 7], MASK.flat()) };
}
const visible = (y: Float32Array) =>
  [...y].filter((_, i) => MASK.flat()[Math.floor(i / HIDDEN)] === 1);

describe.each(CASES)('$name', ({ build, error, fused }) => {
  const model = () => build(new Quantiser(layer()));

  it.each(['as exported', 'basic', 'extended', 'all'] as const)(
    'is understood, %s',
    async (level) => {
      const subject = level === 'as exported' ? model() : await optimized(model(), level);
      const { sites } = await inspectModel(subject);
      if (fused && (level === 'extended' || level === 'all')) {
        expect(sites).toMatchObject([{ layer: 0, rewritable: false }]);
        expect(sites[0]!.reason).toMatch(fused);
        return;
      }
      expect(sites).toMatchObject([
        { q_num_heads: 4, head_dim: 4, mask: 'causal+padding', reason: null },
      ]);
    },
  );

  it('survives a round trip, and runs as linear attention with its weights as they were', async () => {
    const original = await run(model(), feeds());
    for (const variant of ['none', 'linear'] as const) {
      const subject = model();
      const weights = (m: Model) =>
        m.graph.nodes.filter((n) => /^(MatMulNBits|MatMulInteger)/.test(n.opType)).length;
      const before = weights(subject);
      await rewriteModel(subject, { variant });
      expect(weights(subject)).toBe(before);
      const { y } = await run(parseModel(modelBytes(subject)), feeds());
      const [a, b] = [visible(original.y!.data as Float32Array), visible(y!.data as Float32Array)];
      expect(b.every(Number.isFinite)).toBe(true);
      if (variant === 'none') expect(distance(a, b)).toBeLessThan(error);
    }
  });
});
