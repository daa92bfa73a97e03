// One rule per operator: the gradients of its inputs from those of its outputs. y is the first output, dy its
// gradient, L the loss. Index arithmetic has no rules: nothing differentiable runs through it.
import type { DTypeName, Node } from '../ir/index.js';
import type { GradientContext, GradientRule } from './gradient.js';

type Ctx = GradientContext;

/** y = f(x) element by element: dx = dy * f'(x). */
function elementwise(
  derivative: (ctx: Ctx, x: string, y: string, node: Node) => string,
): GradientRule {
  return (ctx, node, [dy]) => [
    ctx.e.mul(dy!, derivative(ctx, node.inputs[0]!, node.outputs[0]!, node)),
  ];
}

/** A rule for an operator with broadcasting: each side's gradient as if shapes were equal, then summed. */
function broadcasting(
  sides: (ctx: Ctx, node: Node, dy: string, side: number) => string,
): GradientRule {
  return (ctx, node, [dy]) =>
    node.inputs.map((x, side) =>
      x && ctx.isActive(x)
        ? ctx.reduceTo(sides(ctx, node, dy!, side), ctx.dims(node.outputs[0]!), ctx.dims(x))
        : undefined,
    );
}

/** A rule that brings the gradient back to the shape of the first input. */
const reshaped: GradientRule = (ctx, node, [dy]) => [
  ctx.e.op('Reshape', [dy!, ctx.e.ints(...ctx.dims(node.inputs[0]!))]),
];

const passed: GradientRule = (_ctx, _node, [dy]) => [dy];

function axisOf(node: Node, rank: number, fallback: number): number {
  const axis = node.int('axis') ?? fallback;
  return axis < 0 ? axis + rank : axis;
}

/** Axes of a reduction, as an attribute or as an input. */
function reducedAxes(ctx: Ctx, node: Node): number[] {
  const rank = ctx.dims(node.inputs[0]!).length;
  const given = node.ints('axes')?.length
    ? node.ints('axes')!
    : node.inputs[1]
      ? ctx.graph.numbers(node.inputs[1])
      : undefined;
  return (given ?? Array.from({ length: rank }, (_, i) => i)).map((a) => (a < 0 ? a + rank : a));
}

/** The gradient of a sum over axes, once per element that was summed, times `factor`. */
function spread(ctx: Ctx, node: Node, dy: string, factor = 1): string {
  const { e } = ctx;
  const dims = ctx.dims(node.inputs[0]!);
  const axes = reducedAxes(ctx, node);
  const kept = dims.map((d, i) => (axes.includes(i) ? 1 : d));
  const scaled = factor === 1 ? dy : e.mul(dy, e.scalar(factor));
  return e.op('Expand', [e.op('Reshape', [scaled, e.ints(...kept)]), e.ints(...dims)]);
}

/** A matrix with its last two axes exchanged. */
function flipped(ctx: Ctx, x: string, rank: number): string {
  const perm = Array.from({ length: rank }, (_, i) => i);
  [perm[rank - 2], perm[rank - 1]] = [rank - 1, rank - 2];
  return ctx.e.transpose(x, perm);
}

/** dA = dY B', dB = A' dY */
const matmul: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const [a, b] = node.inputs as [string, string];
  const [da, db, out] = [ctx.dims(a), ctx.dims(b), ctx.dims(node.outputs[0]!)];
  if (da.length < 2 || db.length < 2) return vectorProduct(ctx, node, dy!);
  const toA = () => {
    const full = [...out.slice(0, -1), da.at(-1)!];
    return ctx.reduceTo(e.matmul(dy!, flipped(ctx, b, db.length)), full, da);
  };
  const toB = () => {
    if (db.length === 2 && da.length > 2) {
      // x W over many tokens: one product of flattened matrices instead of a sum over the batch.
      const [k, n] = db as [number, number];
      const x = e.op('Reshape', [a, e.ints(-1, k)]);
      const g = e.op('Reshape', [dy!, e.ints(-1, n)]);
      return e.matmul(e.transpose(x, [1, 0]), g);
    }
    const full = [...out.slice(0, -2), da.at(-1)!, db.at(-1)!];
    return ctx.reduceTo(e.matmul(flipped(ctx, a, da.length), dy!), full, db);
  };
  return [ctx.isActive(a) ? toA() : undefined, ctx.isActive(b) ? toB() : undefined];
};

/** MatMul with a vector on either side: the vector as a matrix of one row or column. */
function vectorProduct(ctx: Ctx, node: Node, dy: string): (string | undefined)[] {
  const { e } = ctx;
  const [a, b] = node.inputs as [string, string];
  const [da, db] = [ctx.dims(a), ctx.dims(b)];
  const wide = (x: string, dims: readonly number[]) => e.op('Reshape', [x, e.ints(...dims)]);
  const fullA = da.length < 2 ? [1, ...da] : da;
  const fullB = db.length < 2 ? [...db, 1] : db;
  const lead = broadcastDims(fullA.slice(0, -2), fullB.slice(0, -2));
  const out = [...lead, fullA.at(-2)!, fullB.at(-1)!];
  const g = wide(dy, out);
  const toA = () => {
    const p = e.matmul(g, flipped(ctx, wide(b, fullB), fullB.length));
    return wide(ctx.reduceTo(p, [...lead, ...fullA.slice(-2)], fullA), da);
  };
  const toB = () => {
    const p = e.matmul(flipped(ctx, wide(a, fullA), fullA.length), g);
    return wide(ctx.reduceTo(p, [...lead, ...fullB.slice(-2)], fullB), db);
  };
  return [ctx.isActive(a) ? toA() : undefined, ctx.isActive(b) ? toB() : undefined];
}

function broadcastDims(a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i) => {
    const [x, y] = [a[i - rank + a.length] ?? 1, b[i - rank + b.length] ?? 1];
    return Math.max(x, y);
  });
}

/** Y = alpha A' B' + beta C */
const gemm: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const [a, b, c] = node.inputs;
  const [ta, tb] = [node.int('transA') === 1, node.int('transB') === 1];
  const alpha = node.float('alpha') ?? 1;
  const beta = node.float('beta') ?? 1;
  const flip = (x: string, on: boolean) => (on ? e.transpose(x, [1, 0]) : x);
  const scaled = alpha === 1 ? dy! : e.mul(dy!, e.scalar(alpha));
  const dA = () => flip(e.matmul(scaled, flip(b!, !tb)), ta);
  const dB = () => flip(e.matmul(flip(a!, !ta), scaled), tb);
  const dC = () => {
    const g = ctx.reduceTo(dy!, ctx.dims(node.outputs[0]!), ctx.dims(c!));
    return beta === 1 ? g : e.mul(g, e.scalar(beta));
  };
  return [
    ctx.isActive(a!) ? dA() : undefined,
    ctx.isActive(b!) ? dB() : undefined,
    c && ctx.isActive(c) ? dC() : undefined,
  ];
};

/** dx = y (dy - sum(dy y)) */
const softmax: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const y = node.outputs[0]!;
  const rank = ctx.dims(y).length;
  const axis = axisOf(node, rank, (ctx.graph.model.opset() ?? 1) < 13 ? 1 : -1);
  return [e.mul(y, e.sub(dy!, e.sum(e.mul(dy!, y), axis)))];
};

/** dx = dy - exp(y) sum(dy) */
const logSoftmax: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const y = node.outputs[0]!;
  const axis = axisOf(node, ctx.dims(y).length, -1);
  return [e.sub(dy!, e.mul(e.op('Exp', [y]), e.sum(dy!, axis)))];
};

/** y = (x - mean) / std * scale + bias over the last axes. */
const layerNormalization: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const [x, scale, bias] = node.inputs;
  const dims = ctx.dims(x!);
  const axis = axisOf(node, dims.length, -1);
  const axes = dims.map((_, i) => i).slice(axis);
  const mean = (v: string) => {
    const count = axes.reduce((n, a) => n * dims[a]!, 1);
    return e.mul(
      axes.reduce((s, a) => e.sum(s, a), v),
      e.scalar(1 / count),
    );
  };
  const centred = e.sub(x!, mean(x!));
  const variance = mean(e.mul(centred, centred));
  const eps = node.float('epsilon') ?? 1e-5;
  const inverse = e.op('Reciprocal', [e.op('Sqrt', [e.add(variance, e.scalar(eps))])]);
  const hat = e.mul(centred, inverse);
  const g = e.mul(dy!, scale!);
  const dx = e.mul(inverse, e.sub(e.sub(g, mean(g)), e.mul(hat, mean(e.mul(g, hat)))));
  const sumTo = (v: string, to: string) => ctx.reduceTo(v, dims, ctx.dims(to));
  return [
    dx,
    ctx.isActive(scale!) ? sumTo(e.mul(dy!, hat), scale!) : undefined,
    bias && ctx.isActive(bias) ? sumTo(dy!, bias) : undefined,
  ];
};

/** Pieces of a concatenation, cut out of the gradient again. */
const concat: GradientRule = (ctx, node, [dy]) => {
  const axis = axisOf(node, ctx.dims(node.outputs[0]!).length, 0);
  let at = 0;
  return node.inputs.map((x) => {
    const start = at;
    at += ctx.dims(x)[axis]!;
    return ctx.isActive(x) ? ctx.e.slice(dy!, axis, start, at) : undefined;
  });
};

function zerosLike(ctx: Ctx, dims: readonly number[]): string {
  return ctx.e.op('ConstantOfShape', [ctx.e.ints(...dims)]);
}

const split: GradientRule = (ctx, node, dy) => {
  const axis = axisOf(node, ctx.dims(node.inputs[0]!).length, 0);
  const parts = node.outputs.map((out, i) => dy[i] ?? zerosLike(ctx, ctx.dims(out)));
  return [parts.length === 1 ? parts[0]! : ctx.e.op('Concat', parts, { axis })];
};

/** The gradient between zeros, axis by axis; steps of 1 only. */
const slice: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const x = node.inputs[0]!;
  const dims = [...ctx.dims(x)];
  const current = [...ctx.dims(node.outputs[0]!)];
  let g = dy!;
  for (const { axis, start } of sliceRanges(ctx, node)) {
    const length = current[axis]!;
    const [before, after] = [start, dims[axis]! - start - length];
    const zeros = (n: number) =>
      zerosLike(
        ctx,
        current.map((d, i) => (i === axis ? n : d)),
      );
    const parts = [...(before ? [zeros(before)] : []), g, ...(after ? [zeros(after)] : [])];
    if (parts.length > 1) g = e.op('Concat', parts, { axis });
    current[axis] = dims[axis]!;
  }
  return [g];
};

function sliceRanges(ctx: Ctx, node: Node): { axis: number; start: number }[] {
  const dims = ctx.dims(node.inputs[0]!);
  const list = (attribute: string, input: number) =>
    node.ints(attribute)?.length
      ? node.ints(attribute)
      : node.inputs[input]
        ? ctx.known(node.inputs[input]!)
        : undefined;
  const starts = list('starts', 1)!;
  const axes = list('axes', 3) ?? starts.map((_, i) => i);
  return starts.map((raw, i) => {
    const axis = axes[i]! < 0 ? axes[i]! + dims.length : axes[i]!;
    const length = dims[axis]!;
    const start = Math.min(Math.max(raw < 0 ? raw + length : raw, 0), length);
    return { axis, start };
  });
}

/** Rows taken by constant indices: their gradients added up where the rows came from. */
const gather: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const [x, indices] = node.inputs as [string, string];
  const dims = ctx.dims(x);
  const axis = axisOf(node, dims.length, 0);
  const chosen = ctx.known(indices)!.map((i) => (i < 0 ? i + dims[axis]! : i));
  // [n, chosen] of zeros and ones: a product with it adds up; moved to the axis by transposition.
  const n = dims[axis]!;
  const rest = dims.filter((_, i) => i !== axis);
  const outRank = rest.length + 1;
  const picked = [...dims.slice(0, axis), chosen.length, ...dims.slice(axis + 1)];
  const order = [axis, ...Array.from({ length: outRank }, (_, i) => i).filter((i) => i !== axis)];
  const first = e.transpose(e.op('Reshape', [dy!, e.ints(...picked)]), order);
  const flat = e.op('Reshape', [first, e.ints(chosen.length, -1)]);
  const where = Array.from({ length: n }, (_, r) => chosen.map((c) => +(c === r))).flat();
  const summed = e.matmul(e.constant('float32', where, [n, chosen.length]), flat);
  const back = order.map((_, i) => order.indexOf(i));
  return [e.transpose(e.op('Reshape', [summed, e.ints(n, ...rest)]), back)];
};

const transpose: GradientRule = (ctx, node, [dy]) => {
  const rank = ctx.dims(node.inputs[0]!).length;
  const perm = node.ints('perm')?.length
    ? node.ints('perm')!
    : Array.from({ length: rank }, (_, i) => rank - 1 - i);
  return [
    ctx.e.transpose(
      dy!,
      perm.map((_, i) => perm.indexOf(i)),
    ),
  ];
};

/** Only between floating-point types; training runs in float32. */
const cast: GradientRule = (ctx, node, [dy]) => {
  const to = (ctx.graph.dtype(node.inputs[0]!) ?? 'float32') as DTypeName;
  return [to === 'float32' ? dy : ctx.e.cast(dy!, to)];
};

/** dy where x lies strictly inside the bounds. */
const clip: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  // Inside the bounds the output is the input.
  const inside = e.op('Equal', [node.inputs[0]!, node.outputs[0]!]);
  return [e.op('Where', [inside, dy!, e.scalar(0)])];
};

/** y is one of the inputs: it gets the gradient (both do where they are equal). */
const selected: GradientRule = broadcasting((ctx, node, dy, side) => {
  const { e } = ctx;
  const same = e.op('Equal', [node.inputs[side]!, node.outputs[0]!]);
  return e.op('Where', [same, dy, e.scalar(0)]);
});

const where: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const [cond, a, b] = node.inputs as [string, string, string];
  const out = ctx.dims(node.outputs[0]!);
  const side = (x: string, taken: boolean) => {
    if (!ctx.isActive(x)) return undefined;
    const zero = e.scalar(0);
    const g = e.op('Where', taken ? [cond, dy!, zero] : [cond, zero, dy!]);
    return ctx.reduceTo(g, out, ctx.dims(x));
  };
  return [undefined, side(a, true), side(b, false)];
};

/** x^p with a constant exponent: p x^(p-1). */
const pow: GradientRule = (ctx, node, [dy]) => {
  const { e } = ctx;
  const [x, p] = node.inputs as [string, string];
  const exponent = ctx.graph.scalar(p);
  if (exponent === 2) return [e.mul(dy!, e.mul(x, e.scalar(2)))];
  const lowered = e.op('Pow', [x, e.sub(p, e.scalar(1))]);
  return [e.mul(dy!, e.mul(p, lowered))];
};

/** 0.5 x (1 + erf(x / sqrt 2)), or its form with tanh. */
const gelu = elementwise(({ e }, x, _y, node) => {
  if (node.string('approximate') === 'tanh') {
    const c = Math.sqrt(2 / Math.PI);
    const cube = e.mul(e.mul(x, x), x);
    const t = e.op('Tanh', [e.mul(e.add(x, e.mul(cube, e.scalar(0.044715))), e.scalar(c))]);
    const inner = e.add(e.scalar(c), e.mul(e.mul(x, x), e.scalar(3 * 0.044715 * c)));
    const slope = e.mul(e.mul(x, e.sub(e.scalar(1), e.mul(t, t))), inner);
    return e.mul(e.scalar(0.5), e.add(e.add(e.scalar(1), t), slope));
  }
  const erf = e.op('Erf', [e.mul(x, e.scalar(Math.SQRT1_2))]);
  const density = e.op('Exp', [e.mul(e.mul(x, x), e.scalar(-0.5))]);
  const cdf = e.mul(e.add(erf, e.scalar(1)), e.scalar(0.5));
  return e.add(cdf, e.mul(e.mul(x, density), e.scalar(1 / Math.sqrt(2 * Math.PI))));
});

/** One where x lies strictly between two bounds, else zero. */
function indicator({ e }: Ctx, x: string, low: number, high: number): string {
  const inside = e.op('And', [
    e.op('Greater', [x, e.scalar(low)]),
    e.op('Less', [x, e.scalar(high)]),
  ]);
  return e.cast(inside, 'float32');
}

/** Rules of the default domain, by operator. */
export const GRADIENT_RULES: Readonly<Record<string, GradientRule>> = {
  Add: broadcasting((_ctx, _node, dy) => dy),
  Sub: broadcasting((ctx, _node, dy, side) => (side === 0 ? dy : ctx.e.op('Neg', [dy]))),
  Mul: broadcasting((ctx, node, dy, side) => ctx.e.mul(dy, node.inputs[1 - side]!)),
  Div: broadcasting((ctx, node, dy, side) => {
    const { e } = ctx;
    const over = e.div(dy, node.inputs[1]!);
    return side === 0 ? over : e.op('Neg', [e.mul(over, node.outputs[0]!)]);
  }),
  Pow: pow,
  Max: selected,
  Min: selected,
  Where: where,
  Clip: clip,

  Neg: (ctx, _node, [dy]) => [ctx.e.op('Neg', [dy!])],
  Exp: elementwise((_ctx, _x, y) => y),
  Log: elementwise(({ e }, x) => e.op('Reciprocal', [x])),
  Sqrt: elementwise(({ e }, _x, y) => e.div(e.scalar(0.5), y)),
  Reciprocal: elementwise(({ e }, _x, y) => e.op('Neg', [e.mul(y, y)])),
  Abs: elementwise(({ e }, x) => e.op('Sign', [x])),
  Sin: elementwise(({ e }, x) => e.op('Cos', [x])),
  Cos: elementwise(({ e }, x) => e.op('Neg', [e.op('Sin', [x])])),
  Tanh: elementwise(({ e }, _x, y) => e.sub(e.scalar(1), e.mul(y, y))),
  Sigmoid: elementwise(({ e }, _x, y) => e.mul(y, e.sub(e.scalar(1), y))),
  Softplus: elementwise(({ e }, x) => e.op('Sigmoid', [x])),
  Relu: elementwise((ctx, x) => indicator(ctx, x, 0, Number.POSITIVE_INFINITY)),
  Elu: elementwise(({ e }, x, y, node) =>
    e.op('Where', [
      e.op('Greater', [x, e.scalar(0)]),
      e.scalar(1),
      e.add(y, e.scalar(node.float('alpha') ?? 1)),
    ]),
  ),
  LeakyRelu: elementwise(({ e }, x, _y, node) =>
    e.op('Where', [
      e.op('Greater', [x, e.scalar(0)]),
      e.scalar(1),
      e.scalar(node.float('alpha') ?? 0.01),
    ]),
  ),
  HardSigmoid: elementwise((ctx, _x, y, node) =>
    ctx.e.mul(indicator(ctx, y, 0, 1), ctx.e.scalar(node.float('alpha') ?? 0.2)),
  ),
  HardSwish: elementwise((ctx, x) => {
    const { e } = ctx;
    const ramp = e.add(e.mul(x, e.scalar(1 / 3)), e.scalar(0.5));
    const above = e.cast(e.op('Greater', [x, e.scalar(3)]), 'float32');
    return e.add(e.mul(indicator(ctx, x, -3, 3), ramp), above);
  }),
  Erf: elementwise(({ e }, x) =>
    e.mul(e.op('Exp', [e.op('Neg', [e.mul(x, x)])]), e.scalar(2 / Math.sqrt(Math.PI))),
  ),
  Gelu: gelu,

  Softmax: softmax,
  LogSoftmax: logSoftmax,
  LayerNormalization: layerNormalization,
  ReduceSum: (ctx, node, [dy]) => [spread(ctx, node, dy!)],
  ReduceMean: (ctx, node, [dy]) => {
    const dims = ctx.dims(node.inputs[0]!);
    const count = reducedAxes(ctx, node).reduce((n, a) => n * dims[a]!, 1);
    return [spread(ctx, node, dy!, 1 / count)];
  },

  MatMul: matmul,
  Gemm: gemm,

  Identity: passed,
  Dropout: passed,
  Cast: cast,
  Reshape: reshaped,
  Flatten: reshaped,
  Squeeze: reshaped,
  Unsqueeze: reshaped,
  Expand: (ctx, node, [dy]) => [
    ctx.reduceTo(dy!, ctx.dims(node.outputs[0]!), ctx.dims(node.inputs[0]!)),
  ],
  Transpose: transpose,
  Concat: concat,
  Split: split,
  Slice: slice,
  Gather: gather,
};
