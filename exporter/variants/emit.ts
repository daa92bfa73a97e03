import { BodyEmitter } from '../../ops/function/emitter.js';
import type { DTypeName, Graph } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import type { Heads } from '../match/sdpa.js';

/** Writes the nodes that replace one site, in the model's version of the default domain. */
export class SiteEmitter extends BodyEmitter {
  constructor(
    readonly graph: Graph,
    readonly facts: Facts,
    prefix: string,
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
    const { bias, ...bare } = h;
    if (bias) {
      const part = this.slice(bias.value, 0, bias.from, bias.from + h.heads * h.dim);
      return this.add(this.packed(bare), part);
    }
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
    const swap = (bthd: string) => this.transpose(bthd, [0, 2, 1, 3]);
    if (h.layout === 'bhtd' && !h.bias) return h.value;
    if (h.layout === 'bthd' && !h.bias) return swap(h.value);
    return swap(this.reshape(this.packed(h), [0, 0, h.heads, h.dim]));
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
