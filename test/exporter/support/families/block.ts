import { DATA_TYPE, type Model, makeTensor } from '../../../../exporter/index.js';
import { makeLayer } from '../layer.js';
import { random } from '../run.js';
import { Writer } from './writer.js';

/** Writes the parts that surround attention in a whole block. */
class Block extends Writer {
  private readonly next = random(23);

  numbers(name: string, ...dims: number[]): string {
    const count = dims.reduce((a, b) => a * b, 1);
    return this.weight(
      name,
      dims,
      Array.from({ length: count }, () => Math.fround(this.next() * 0.5)),
    );
  }
  int(name: string, ...values: number[]): string {
    if (!this.weights.some((t) => t.name === name)) {
      this.weights.push(makeTensor(name, 'int64', [values.length], values));
    }
    return name;
  }
  dense(name: string, x: string, from: number, to: number): string {
    const product = this.op('MatMul', [x, this.numbers(`${name}.weight`, from, to)]);
    return this.op('Add', [product, this.numbers(`${name}.bias`, to)]);
  }
  norm(name: string, x: string, output?: string): string {
    const { hidden } = this.layer;
    const inputs = [x, this.numbers(`${name}.gain`, hidden), this.numbers(`${name}.shift`, hidden)];
    return this.op(
      'LayerNormalization',
      inputs,
      { axis: -1, epsilon: { float: 1e-5 } },
      { output },
    );
  }
  gelu(x: string): string {
    const erf = this.op('Erf', [this.op('Div', [x, this.scalar(Math.SQRT2)])]);
    const half = this.op('Mul', [x, this.op('Add', [erf, this.scalar(1)])]);
    return this.op('Mul', [half, this.scalar(0.5)]);
  }
  feedForward(x: string): string {
    const { hidden } = this.layer;
    return this.dense(
      'down',
      this.gelu(this.dense('up', x, hidden, 2 * hidden)),
      2 * hidden,
      hidden,
    );
  }
  /** Heads of a value whose split is a constant shape, as newer exporters write it. */
  apart(x: string): string {
    const { heads, dim } = this.layer;
    const split = this.op('Reshape', [x, this.int('split', 0, 0, heads, dim)]);
    return this.op('Transpose', [split], { perm: [0, 2, 1, 3] });
  }
}

/** A block of BERT, whole: what ONNX Runtime's optimizer fuses to Attention, SkipLayerNormalization and BiasGelu. */
export function bertBlock(): Model {
  const w = new Block(makeLayer(16, 4, 4, 4));
  const { hidden } = w.layer;
  const x = w.norm('embedding', 'x');
  const [q, k, v] = (['q', 'k', 'v'] as const).map((p) => w.dense(p, x, hidden, hidden));
  const keys = w.op('Transpose', [w.op('Reshape', [k!, w.int('split', 0, 0, 4, 4)])], {
    perm: [0, 2, 3, 1],
  });
  const scores = w.op('Div', [w.op('MatMul', [w.apart(q!), keys]), w.scalar(2)]);
  const wide = w.op('Unsqueeze', [w.op('Unsqueeze', [w.maskInput(), w.ints(1)]), w.ints(2)]);
  const float = w.op('Cast', [wide], { to: DATA_TYPE.float32 });
  const mask = w.op('Mul', [w.op('Sub', [w.scalar(1), float]), w.scalar(-10000)]);
  // The optimizer wants the axis counted from the front.
  const weights = w.op('Softmax', [w.op('Add', [scores, mask])], { axis: 3 });
  const out = w.op('MatMul', [weights, w.apart(v!)]);
  const turned = w.op('Transpose', [out], { perm: [0, 2, 1, 3] });
  const packed = w.op('Reshape', [turned, w.int('join', 0, 0, hidden)]);
  const attended = w.norm('first', w.op('Add', [w.dense('o', packed, hidden, hidden), x]));
  w.norm('second', w.op('Add', [w.feedForward(attended), attended]), 'y');
  return w.build();
}
