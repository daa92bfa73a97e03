import { DATA_TYPE, type Model, makeTensor } from '../../../../exporter/index.js';
import { makeLayer } from '../layer.js';
import { causalPadding, scaled, transposed, Writer } from './writer.js';

// Weights of 8 or 4 bits around the attention, and activations of 8 bits inside it.
export const HIDDEN = 16;
const SCALE = 1 / 64;
export const quantiser = () => new Quantiser(makeLayer(HIDDEN, 4, 4, 4));

export class Quantiser extends Writer {
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
  /**
   * QAttention: the projections of `dynamic` side by side, inside the attention. `byColumn`: weights as uint8 around a zero point,
   * with a scale and a zero point for each column.
   */
  inside(byColumn = false): Model {
    const parts = (['q', 'k', 'v'] as const).map((p) => ({
      w: this.layer[`w${p}`],
      b: this.layer[`b${p}`],
    }));
    const count = parts.reduce((n, { b }) => n + b.length, 0);
    const at = (column: number) => [Math.floor(column / HIDDEN), column % HIDDEN] as const;
    const scale = (column: number) => (byColumn ? (1 + (column % 3)) / 128 : SCALE);
    const zero = (column: number) => (byColumn ? 120 + (column % 5) : 0);
    const values = Array.from({ length: HIDDEN * count }, (_, i) => {
      const [part, c] = at(i % count);
      const { w, b } = parts[part]!;
      const value = w[Math.floor(i / count) * b.length + c]!;
      const rounded = Math.round(value / scale(i % count)) + zero(i % count);
      return byColumn ? Math.min(255, Math.max(0, rounded)) : rounded;
    });
    const type = byColumn ? 'uint8' : 'int8';
    this.weights.push(makeTensor('wqkv_8', type, [HIDDEN, count], values));
    const bias = this.weight(
      'bqkv',
      [count],
      parts.flatMap(({ b }) => b),
    );
    const each = Array.from({ length: byColumn ? count : 1 }, (_, i) => i);
    const scales = this.weight('wqkv_scale', byColumn ? [count] : [], each.map(scale));
    const zeros = this.constant(type, each.map(zero), byColumn ? [count] : []);
    const [x, xScale, xZero] = this.ops('DynamicQuantizeLinear', ['x'], 3);
    const mask = this.op('Cast', [this.maskInput()], { to: DATA_TYPE.int32 });
    return this.project(
      this.op(
        'QAttention',
        [x!, 'wqkv_8', bias, xScale!, scales, mask, xZero!, zeros],
        { num_heads: 4, unidirectional: 1 },
        { domain: 'com.microsoft' },
      ),
    );
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

export interface QuantisedCase {
  name: string;
  build: (w: Quantiser) => Model;
  error: number;
  fused?: RegExp;
}

export const QUANTISED: readonly QuantisedCase[] = [
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
    name: 'com.microsoft.QAttention',
    build: (w: Quantiser) => w.inside(),
    error: 2e-6,
  },
  {
    name: 'com.microsoft.QAttention, a scale and a zero point for each column',
    build: (w: Quantiser) => w.inside(true),
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
