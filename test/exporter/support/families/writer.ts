import {
  buildModel,
  DATA_TYPE,
  Emitter,
  freshNames,
  type Model,
  makeTensor,
  type TensorProto,
  type ValueSpec,
} from '../../../../exporter/index.js';
import type { Layer } from '../layer.js';
import type { Feeds } from '../run.js';

/** Writes a model of one attention layer, node by node as an exporter would. */
export class Writer extends Emitter {
  readonly weights: TensorProto[] = [];
  readonly inputs: Record<string, ValueSpec> = {};
  readonly outputs: Record<string, ValueSpec> = {};

  constructor(
    readonly layer: Layer,
    readonly dtype: 'float32' | 'float16' = 'float32',
  ) {
    super(freshNames());
    this.inputs.x = [dtype, ['batch', 'sequence', layer.hidden]];
    this.outputs.y = [dtype, ['batch', 'sequence', layer.hidden]];
  }

  override scalar(value: number): string {
    return super.scalar(value, this.dtype);
  }

  weight(name: string, dims: readonly number[], values: ArrayLike<number>): string {
    this.weights.push(makeTensor(name, this.dtype, dims, values));
    return name;
  }
  maskInput(dims: readonly (string | number)[] = ['batch', 'sequence']): string {
    this.inputs.attention_mask = ['int64', dims];
    return 'attention_mask';
  }
  /** x W + b as torch writes a Linear over rank-3 input. */
  linear(what: 'q' | 'k' | 'v', x = 'x'): string {
    const b = this.layer[`b${what}`];
    const product = this.product(what, x);
    return this.op('Add', [this.weight(`b${what}`, [b.length], b), product]);
  }
  /** x W */
  product(what: 'q' | 'k' | 'v', x = 'x'): string {
    const w = this.layer[`w${what}`];
    const columns = this.layer[`b${what}`].length;
    return this.op('MatMul', [x, this.weight(`w${what}`, [this.layer.hidden, columns], w)]);
  }
  /** [B,T,H*D] to [B,T,H,D], the shape put together from Shape, Gather, Unsqueeze, Concat. */
  split(x: string, heads: number): string {
    const shape = this.op(
      'Concat',
      [this.dim(x, 0), this.dim(x, 1), this.ints(heads), this.ints(this.layer.dim)],
      {
        axis: 0,
      },
    );
    return this.op('Reshape', [x, shape]);
  }
  /** [B,H,T,D] */
  heads(x: string, heads: number): string {
    return this.op('Transpose', [this.split(x, heads)], { perm: [0, 2, 1, 3] });
  }
  dim(x: string, axis: number): string {
    const size = this.op('Gather', [this.op('Shape', [x]), this.constant('int64', [axis], [])], {
      axis: 0,
    });
    return this.op('Unsqueeze', [size, this.ints(0)]);
  }
  /** Output of the heads [B,H,T,D] through Transpose, Reshape and the output projection. */
  finish(heads: string): Model {
    const turned = this.op('Transpose', [heads], { perm: [0, 2, 1, 3] });
    const shape = this.op('Concat', [this.dim(turned, 0), this.dim(turned, 1), this.ints(-1)], {
      axis: 0,
    });
    return this.project(this.op('Reshape', [turned, shape]));
  }
  project(packed: string): Model {
    const { heads, dim, hidden, wo } = this.layer;
    this.op('MatMul', [packed, this.weight('wo', [heads * dim, hidden], wo)], {}, { output: 'y' });
    return this.build();
  }
  build(opset = 17): Model {
    return buildModel({
      inputs: this.inputs,
      outputs: this.outputs,
      nodes: this.nodes,
      initializers: this.weights,
      opsets: { '': opset, 'com.microsoft': 1 },
    });
  }
  /** Softmax(scores) v, keys already transposed. */
  weighted(scores: string, v: string): string {
    return this.op('MatMul', [this.op('Softmax', [scores], { axis: -1 }), v]);
  }
  /** BERT's extended mask: (1 - mask[:, None, None, :]) * -10000. */
  extendedMask(mask = this.maskInput()): string {
    const wide = this.op('Unsqueeze', [this.op('Unsqueeze', [mask, this.ints(1)]), this.ints(2)]);
    const float = this.op('Cast', [wide], { to: DATA_TYPE[this.dtype] });
    return this.op('Mul', [this.op('Sub', [this.scalar(1), float]), this.scalar(-10000)]);
  }
  /** bool [1,1,T,T], true on and below the diagonal: a buffer cut to length, as in GPT-2. */
  causalBuffer(like: string, limit = 64): string {
    const tril = Array.from({ length: limit * limit }, (_, i) =>
      i % limit <= Math.floor(i / limit) ? 1 : 0,
    );
    this.weights.push(makeTensor('bias_buffer', 'bool', [1, 1, limit, limit], tril));
    const end = this.dim(like, 2);
    const rows = this.op('Slice', ['bias_buffer', this.ints(0), end, this.ints(2)]);
    return this.op('Slice', [rows, this.ints(0), end, this.ints(3)]);
  }
}

export type Visible = 'all' | 'causal' | { window: number };

/** A family of exported attention: how it is written, and what it computes. */
export interface Family {
  /** `model: form`, or what it is. */
  readonly name: string;
  /** What writes it so; default: PyTorch's TorchScript exporter. */
  readonly exporter?: string;
  readonly build: (w: Writer) => Model;
  readonly layer?: () => Layer;
  readonly visible: Visible;
  /** Default: rows are padded on the left or on the right. */
  readonly padding: boolean | 'right';
  /** Further inputs. */
  readonly feeds?: (rows: readonly (readonly number[])[]) => Feeds;
  /** The mask's name in the report. */
  readonly mask: string;
  readonly pattern?: string;
  /** What the report says of its linear form. */
  readonly notes?: readonly string[];
  /** ONNX Runtime has no CPU kernel for the original, and says so in these words. */
  readonly noKernel?: RegExp;
}

export const qkv = (w: Writer) => {
  const { heads, kvHeads } = w.layer;
  return [
    w.heads(w.linear('q'), heads),
    w.heads(w.linear('k'), kvHeads),
    w.heads(w.linear('v'), kvHeads),
  ] as const;
};
export const transposed = (w: Writer, k: string) => w.op('Transpose', [k], { perm: [0, 1, 3, 2] });
export const scaled = (w: Writer, scores: string) =>
  w.op('Div', [scores, w.scalar(Math.sqrt(w.layer.dim))]);
export const rootScale = (w: Writer, q: string) => {
  const size = w.op('Slice', [w.op('Shape', [q]), w.ints(-1), w.ints(2 ** 53), w.ints(0)]);
  const root = w.op('Sqrt', [w.op('Cast', [size], { to: DATA_TYPE[w.dtype] })]);
  return w.op('Sqrt', [w.op('Div', [w.scalar(1), root])]);
};

/** repeat_kv of transformers: Unsqueeze, Expand (its shape chosen by Where), Reshape. */
export function repeat(w: Writer, x: string): string {
  const { heads, kvHeads, dim } = w.layer;
  const groups = heads / kvHeads;
  const [batch, tokens] = [w.dim(x, 0), w.dim(x, 2)];
  const wanted = w.op('Concat', [batch, w.ints(kvHeads), w.ints(groups), tokens, w.ints(dim)], {
    axis: 0,
  });
  const flat = w.op('Reshape', [wanted, w.ints(-1)]);
  const ones = w.op('ConstantOfShape', [w.op('Shape', [flat])], {
    value: makeTensor('', 'int64', [1], [1]),
  });
  const minus = w.op('Mul', [ones, w.constant('int64', [-1], [])]);
  const target = w.op('Where', [w.op('Equal', [flat, minus]), ones, flat]);
  const expanded = w.op('Expand', [w.op('Unsqueeze', [x, w.ints(2)]), target]);
  const shape = w.op('Concat', [batch, w.ints(heads), tokens, w.ints(dim)], { axis: 0 });
  return w.op('Reshape', [expanded, shape]);
}

/** int64 [T]: 0, 1, 2, ... */
export function range(w: Writer, like: string): string {
  const count = w.op('Squeeze', [w.dim(like, 1), w.ints(0)]);
  return w.op('Range', [w.constant('int64', [0], []), count, w.constant('int64', [1], [])]);
}

/** [Wq | Wk | Wv] and [bq | bk | bv], as initializers. */
export function packedWeights(w: Writer, names: readonly [string, string] = ['wqkv', 'bqkv']) {
  const { hidden, bq, bk, bv, wq, wk, wv } = w.layer;
  const parts = [
    { m: wq, n: bq.length },
    { m: wk, n: bk.length },
    { m: wv, n: bv.length },
  ];
  const rows = Array.from({ length: hidden }, (_, r) =>
    parts.flatMap(({ m, n }) => m.slice(r * n, (r + 1) * n)),
  );
  const columns = parts.reduce((sum, { n }) => sum + n, 0);
  const weight = w.weight(names[0], [hidden, columns], rows.flat());
  return { weight, bias: w.weight(names[1], [columns], [...bq, ...bk, ...bv]), columns };
}

/** x W + b for query, key and value at once: [B,T,(Hq+2*Hkv)*D]. */
export function packed(w: Writer): string {
  const { weight, bias } = packedWeights(w);
  return w.op('Add', [w.op('MatMul', ['x', weight]), bias]);
}

/** GPT-2's Conv1D: Reshape to rank 2, Gemm, Reshape back, Split. */
export function packedByGemm(w: Writer): [string, string, string] {
  const { hidden, heads, bq } = w.layer;
  const n = bq.length;
  const { weight, bias, columns } = packedWeights(w, ['c_attn', 'c_attn_bias']);
  const gemm = w.op('Gemm', [w.op('Reshape', ['x', w.ints(-1, hidden)]), weight, bias]);
  const shape = w.op('Concat', [w.dim('x', 0), w.dim('x', 1), w.ints(columns)], { axis: 0 });
  const parts = w.ops('Split', [w.op('Reshape', [gemm, shape]), w.ints(n, n, n)], 3, { axis: 2 });
  return parts.map((p) => w.heads(p, heads)) as [string, string, string];
}

/** Llama's mask: 0 where the key is earlier and no padding, the smallest float elsewhere; [B,1,T,T]. */
export function causalPadding(w: Writer, like = 'x'): string {
  const at = range(w, like);
  const past = w.op('LessOrEqual', [
    w.op('Unsqueeze', [at, w.ints(0)]),
    w.op('Unsqueeze', [at, w.ints(1)]),
  ]);
  const keys = w.op('Unsqueeze', [w.op('Unsqueeze', [w.maskInput(), w.ints(1)]), w.ints(2)]);
  const seen = w.op('And', [past, w.op('Greater', [keys, w.constant('int64', [0], [])])]);
  return w.op('Where', [seen, w.scalar(0), w.scalar(-3.4028234663852886e38)]);
}

/** ALiBi of four heads, and what the report says of it. */
export const SLOPES = [0.5, 0.25, 0.125, 0.0625];
/** The same where two query heads share a key head. */
export const SHARED_SLOPES = [0.5, 0.5, 0.125, 0.125];
export const ALIBI_NOTES = ['ALiBi becomes a decay of each head'];

/** float [1,H,T,T]: slope times (key - query). */
export function alibi(w: Writer, slopes: readonly number[] = SLOPES): string {
  const at = range(w, 'x');
  const [keys, queries] = [0, 1].map((axis) => w.op('Unsqueeze', [at, w.ints(axis)]));
  const distance = w.op('Cast', [w.op('Sub', [keys!, queries!])], { to: DATA_TYPE[w.dtype] });
  return w.op('Mul', [w.weight('slopes', [1, slopes.length, 1, 1], slopes), distance]);
}

/** [B*H,1,T]: slopes times (cumsum(mask) - 1) * mask, as BLOOM and Falcon build it. */
export function alibiFromMask(
  w: Writer,
  like = 'x',
  slopes: readonly number[] = SLOPES,
  mask = w.maskInput(),
): string {
  const sum = w.op('CumSum', [mask, w.constant('int64', [-1], [])]);
  const places = w.op('Mul', [w.op('Sub', [sum, w.constant('int64', [1], [])]), mask]);
  const float = w.op('Cast', [w.op('Unsqueeze', [places, w.ints(1)])], { to: DATA_TYPE[w.dtype] });
  const column = w.op('Unsqueeze', [w.weight('slopes', [w.layer.heads], slopes), w.ints(1)]);
  const rows = w.op('Mul', [w.dim(like, 0), w.ints(w.layer.heads)]);
  const shape = w.op('Concat', [rows, w.ints(1), w.ints(-1)], { axis: 0 });
  return w.op('Reshape', [w.op('Mul', [column, float]), shape]);
}
