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
    const flat = (bthd: string) => this.reshape(bthd, [0, 0, h.heads * h.dim]);
    switch (h.layout) {
      case 'packed':
        return h.value;
      case 'bthd':
        return flat(h.value);
      case 'bhtd':
        return flat(this.transpose(h.value, [0, 2, 1, 3]));
      case 'stacked':
        return flat(this.stackEntry(h));
    }
  }

  /** Heads as [B,H,T,D]. */
  bhtd(h: Heads): string {
    const swap = (bthd: string) => this.transpose(bthd, [0, 2, 1, 3]);
    switch (h.layout) {
      case 'bhtd':
        return h.value;
      case 'bthd':
        return swap(h.value);
      case 'packed':
        return swap(this.reshape(h.value, [0, 0, h.heads, h.dim]));
      case 'stacked':
        return swap(this.reshape(this.stackEntry(h), [0, 0, h.heads, h.dim]));
    }
  }

  /** [B,T,1,H,D] of the entry of a stack. */
  private stackEntry(h: Heads): string {
    return this.slice(h.value, 2, h.index!, h.index! + 1);
  }

  /** A [B,T,H*D] value in the layout a site's output must have, under the output's name. */
  fromPacked(
    x: string,
    heads: number,
    dim: number,
    output: { value: string; layout: 'bhtd' | 'bthd' },
  ): void {
    const lengths = [0, 0, heads, dim];
    if (output.layout === 'bthd') this.reshape(x, lengths, output.value);
    else {
      const perm = { perm: [0, 2, 1, 3] };
      this.op('Transpose', [this.reshape(x, lengths)], perm, { output: output.value });
    }
  }
}
