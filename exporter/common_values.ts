import { FlaError } from '../ops/error.js';
import type { AnalysedSite, Analysis } from './analysis.js';
import type { Graph, NodeProto } from './ir/index.js';
import { type Sdpa, tokenAxis } from './match/sdpa.js';
import { roleOf } from './match/situation.js';
import { SiteEmitter } from './variants/emit.js';
import { Rows } from './variants/rows.js';

/** What a decoder takes from its encoder is as long as the encoder's text. */
const ENCODER = /^encoder/i;

/** Values that all sites share: the number of new tokens, and the padding mask of the new tokens. */
export class SharedValues {
  private readonly e: SiteEmitter;
  private readonly masks = new Map<string, string>();
  private readonly booleans = new Map<string, string>();
  private tokenCount: string | undefined;
  /** What follows from the lengths of rows. */
  readonly rows: Rows;

  constructor(
    private readonly graph: Graph,
    private readonly analysis: Analysis,
    private readonly first: Sdpa,
  ) {
    this.e = new SiteEmitter(graph, analysis.facts, 'attention_mask');
    this.rows = new Rows(this.e, () => this.tokens());
  }

  /**
   * int64 [1]: the number of new tokens. Taken from an input where one has it: queries may depend on
   * positions, and positions on this.
   */
  tokens(): string {
    const { q } = this.first;
    const own = this.graph.inputs.find(({ name }) => {
      if (ENCODER.test(name)) return false;
      const role = roleOf(this.graph, name);
      const rank = this.graph.dims(name)?.length;
      return (
        role === 'tokens' || (role === 'data' && rank === 3) || (role === 'positions' && rank === 2)
      );
    });
    this.tokenCount ??= own ? this.e.dim(own.name, 1) : this.e.dim(q.value, tokenAxis(q));
    return this.tokenCount;
  }

  /** The last T columns of a [B, total] input: right whether the caller passes all tokens or the new ones. */
  currentMask(input: string): string {
    let cut = this.masks.get(input);
    if (cut === undefined) {
      if (this.e.opset < 10) {
        throw new FlaError(
          'unsupported',
          `a cache and a padding mask need opset 10, received ${this.e.opset}`,
        );
      }
      const start = this.e.sub(this.e.dim(input, 1), this.tokens());
      cut = this.e.op('Slice', [input, start, this.e.ints(2 ** 31 - 1), this.e.ints(1)]);
      this.masks.set(input, cut);
    }
    return cut;
  }

  /** bool [B,T]: which of the new tokens are no padding; '' when the site has no padding. */
  padding(site: AnalysedSite): string {
    const { padding: input, paddingHides, lengths } = site.mask!;
    if (lengths) {
      return typeof lengths === 'string' ? this.rows.before(lengths) : this.rows.visible(lengths);
    }
    if (input === undefined) return '';
    let value = this.booleans.get(input);
    if (value === undefined) {
      const cached = this.analysis.sites.some((s) => s.sdpa?.cache);
      const mask = cached ? this.currentMask(input) : input;
      value = this.graph.dtype(input) === 'bool' ? mask : this.e.cast(mask, 'bool');
      if (paddingHides) value = this.e.op('Not', [value]);
      this.booleans.set(input, value);
    }
    return value;
  }

  /** The padding mask input that positions may depend on. */
  maskInput(): string | undefined {
    const [probed] = this.analysis.sites.flatMap((s) => s.mask?.padding ?? []);
    return (
      probed ??
      this.graph.inputs.find((i) => roleOf(this.graph, i.name) === 'mask' && !ENCODER.test(i.name))
        ?.name
    );
  }

  /** Puts what was written into the graph, as far as it is not there. */
  insert(): void {
    const present = new Set(this.graph.proto.node);
    this.graph.insert(this.e.nodes.filter((n) => !present.has(n)));
  }

  owns(node: NodeProto): boolean {
    return this.e.nodes.includes(node);
  }
}
