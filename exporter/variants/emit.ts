import { BodyEmitter } from '../../ops/function/emitter.js';
import type { DTypeName, Graph } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import type { Heads, Quantised, Rope, Sdpa } from '../match/sdpa.js';
import { Rows } from './rows.js';

/** Writes the nodes that replace one site, in the model's version of the default domain. */
export class SiteEmitter extends BodyEmitter {
  private readonly products = new Map<string, string>();

  constructor(
    readonly graph: Graph,
    readonly facts: Facts,
    prefix: string,
    /** For sites that are told the lengths of rows. */
    public rows?: Rows,
  ) {
    super(graph.model.opset() ?? 1, (stem) => graph.fresh(`${prefix}/${stem}`));
  }

  /** The value in another element type, if it has not got it already. */
  as(value: string, dtype: DTypeName): string {
    const from = this.facts.dtype(value);
    return from === undefined || from === dtype ? value : this.cast(value, dtype);
  }

  /** Heads as [B,T,H*D]. */
  packed(h: Heads): string {
    if (h.viewed) return this.packed(this.again(h, h.viewed));
    const { rope, norm, bias, weight, quantised, from, ...bare } = h;
    if (rope) return this.rotate(this.packed({ ...h, rope: undefined }), h, rope);
    if (norm) return this.normalise(this.packed({ ...h, norm: undefined }), h, norm);
    if (bias) {
      const part = this.slice(bias.value, 0, bias.from, bias.from + h.heads * h.dim);
      return this.add(this.packed({ ...h, bias: undefined }), part);
    }
    if (from !== undefined) {
      return this.slice(this.packed({ ...h, from: undefined }), 2, from, from + h.heads * h.dim);
    }
    if (weight) return this.product(this.packed(bare), weight, quantised);
    const flat = (bthd: string) => this.reshape(bthd, [0, 0, h.heads * h.dim]);
    switch (h.layout) {
      case 'packed':
        return h.value;
      case 'bthd':
        return flat(h.value);
      case 'bhtd':
        return flat(this.transpose(h.value, [0, 2, 1, 3]));
      case 'time-first':
        return this.transpose(h.value, [1, 0, 2]);
      case 'stacked':
        return flat(this.slice(h.value, h.axis!, h.index!, h.index! + 1));
    }
  }

  /** Heads as [B,H,T,D]. */
  bhtd(h: Heads): string {
    if (h.viewed) return this.bhtd(this.again(h, h.viewed));
    const swap = (bthd: string) => this.transpose(bthd, [0, 2, 1, 3]);
    const asIs = !(h.bias || h.norm || h.rope);
    if (h.layout === 'bhtd' && asIs) return h.value;
    if (h.layout === 'bthd' && asIs) return swap(h.value);
    return swap(this.reshape(this.packed(h), [0, 0, h.heads, h.dim]));
  }

  /** Keys and values that a site gives out besides what it computes. */
  presents({ presents, k, v }: Sdpa): void {
    if (!presents) return;
    if ('stacked' in presents) {
      const both = [k, v].map((h) => this.unsqueeze(this.bhtd(h), 0));
      this.op('Concat', both, { axis: 0 }, { output: presents.stacked });
      return;
    }
    for (const [output, heads] of [
      [presents.key, k],
      [presents.value, v],
    ] as const) {
      if (output) this.op('Identity', [this.bhtd(heads)], {}, { output });
    }
  }

  /** Heads whose value is a view of another value than in the model. */
  private again({ viewed: _, ...h }: Heads, { node, value }: NonNullable<Heads['viewed']>): Heads {
    const attributes = { perm: node.ints('perm'), allowzero: node.int('allowzero') };
    return {
      ...h,
      value: this.op(node.opType, [value, ...node.inputs.slice(1)], attributes),
    };
  }

  /** x W; q, k and v of one weight share the product. */
  private product(x: string, weight: string, quantised: Quantised | undefined): string {
    const key = `${x}|${weight}`;
    const make = () =>
      quantised ? this.integerProduct(x, weight, quantised) : this.matmul(x, weight);
    const product = this.products.get(key) ?? make();
    this.products.set(key, product);
    return product;
  }

  /** (x - x0) (W - w0) in integers, times both scales. */
  private integerProduct(x: string, weight: string, q: Quantised): string {
    const product = this.op('MatMulInteger', [x, weight, q.valueZero, q.weightZero]);
    const scale = this.mul(q.valueScale, q.weightScale);
    return this.mul(this.cast(product, this.facts.dtype(q.weightScale) ?? 'float32'), scale);
  }

  /** x / sqrt(mean(x^2) + epsilon) * weight over each head, in float32; x is [B,T,H*D]. */
  private normalise(
    x: string,
    { heads, dim }: Heads,
    { weight, epsilon }: NonNullable<Heads['norm']>,
  ): string {
    const dtype = this.facts.dtype(weight) ?? 'float32';
    const apart = this.as32(this.reshape(x, [0, 0, heads, dim]), dtype);
    const square = this.sum(this.mul(apart, apart), 3);
    const mean = this.div(square, this.scalar(dim));
    const root = this.op('Sqrt', [this.add(mean, this.scalar(epsilon))]);
    const scaled = this.mul(this.div(apart, root), this.as32(weight, dtype));
    return this.reshape(dtype === 'float32' ? scaled : this.cast(scaled, dtype), [
      0,
      0,
      heads * dim,
    ]);
  }
  private as32(value: string, from: DTypeName): string {
    return from === 'float32' ? value : this.cast(value, 'float32');
  }

  /** Whoever writes no more than queries and keys need not make them. */
  private rowsOf(x: string): Rows {
    this.rows ??= new Rows(this, () => this.dim(x, 1));
    return this.rows;
  }

  /** Rotary position embedding of [B,T,H*D]. */
  private rotate(x: string, { heads }: Heads, rope: Rope): string {
    const positions =
      typeof rope.positions === 'string'
        ? rope.positions
        : this.rowsOf(x).positions(rope.positions);
    this.graph.model.requireOpset('com.microsoft', 1);
    return this.op(
      'RotaryEmbedding',
      [x, positions, rope.cos, rope.sin],
      {
        interleaved: rope.interleaved ? 1 : 0,
        num_heads: heads,
        rotary_embedding_dim: rope.rotary,
      },
      { domain: 'com.microsoft' },
    );
  }

  /** A [B,T,H*D] value in the layout a site's output must have, under the output's name. */
  fromPacked(
    x: string,
    heads: number,
    dim: number,
    output: { value: string; layout: 'bhtd' | 'bthd' | 'tnd' },
  ): void {
    const lengths = [0, 0, heads, dim];
    if (output.layout === 'bthd') this.reshape(x, lengths, output.value);
    else if (output.layout === 'tnd')
      this.reshape(this.transpose(x, [1, 0, 2]), [0, -1, dim], output.value);
    else {
      const perm = { perm: [0, 2, 1, 3] };
      this.op('Transpose', [this.reshape(x, lengths)], perm, { output: output.value });
    }
  }
}
