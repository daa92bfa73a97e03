import { type Node, tensorNumbers } from '../ir/index.js';
import { scoresOf, sumOf } from '../match/einsum.js';
import type { Facts } from '../match/facts.js';
import {
  headMismatch,
  headsOf,
  shown,
  siteOutput,
  unscale,
  untransposeKeys,
} from '../match/heads.js';
import {
  any,
  either,
  type Found,
  isMiss,
  lazy,
  lookThrough,
  match,
  note,
  number,
  op,
  type Pattern,
} from '../match/pattern.js';
import { notAttention, type Rule, unsupported } from '../match/rule.js';
import type { MaskStep, RuleResult, Sdpa, Sink } from '../match/sdpa.js';
import { crossAttention, weightLike } from '../match/sources.js';
import { flatten } from './decomposed_flat.js';
import { keysAndValues } from './decomposed_keys.js';

/** What happens to the scores between MatMul and Softmax, from Softmax upwards. */
type Step =
  | MaskStep
  | { readonly kind: 'scale'; readonly factor: number }
  | { readonly kind: 'tanh' }
  /** A column more, and its removal from the weights. */
  | { readonly kind: 'sink'; readonly logits: string }
  | { readonly kind: 'cut' }
  /** Weights are set to 0 where the condition is not `keep`. */
  | { readonly kind: 'zeroed'; readonly cond: string; readonly keep: boolean };
type P = Pattern<Step>;

/** The lowest number of float16: what is cut off there is hidden anyway. */
const LOWEST_HALF = -65504;

/** ONNX Runtime's optimizer folds scale and transpositions into the product, as far as [T,B*H,D] to [B*H,T,D]. */
function productOfRows(node: Node, facts: Facts): string | undefined {
  const set = (name: string) => node.int(name) === 1;
  const batches = set('transBatchA') || set('transBatchB');
  const ranks = node.inputs.slice(0, 2).map((v) => facts.rank(v));
  if (set('transA')) return `'${node.name}' must not transpose its first factor`;
  return batches && ranks.some((r) => r !== 3)
    ? `'${node.name}' must not transpose batches of rank ${ranks.join(' and ')}`
    : undefined;
}
/** The layout of a factor of rank 3. */
function layoutOf(node: Node, factor: 'A' | 'B'): 'ntd' | 'tnd' {
  return node.int(`transBatch${factor}`) === 1 ? 'tnd' : 'ntd';
}

/**
 * The scores: q k', then in any order factors, added masks and Where masks.
 *
 *     [Concat(sink)] <- [Add(mask) | Where(cond, scores, fill) | Mul | Div | Tanh | Reshape]* <- MatMul(q, k')
 */
const scores: P = lazy(() =>
  either<Step>(
    op('MatMul', [any('q'), any('keys')]),
    op('com.microsoft.FusedMatMul', [any('q'), any('keys')], productOfRows),
    op('Einsum', [any('q'), any('keys')], (node) =>
      scoresOf(node)?.q === 0 ? undefined : noScores(node),
    ),
    op('Einsum', [any('keys'), any('q')], (node) =>
      scoresOf(node)?.q === 1 ? undefined : noScores(node),
    ),
    note(op('Div', [scores, number('factor')]), (v, facts) => ({
      kind: 'scale',
      factor: 1 / facts.scalar(v.factor!)!,
    })),
    note(op('Mul', [scores, number('factor')]), (v, facts) => ({
      kind: 'scale',
      factor: facts.scalar(v.factor!)!,
    })),
    // torch.baddbmm adds what it got for the result, 0 times.
    op('Add', [scores, any('nothing')], (node, facts) =>
      addsZeros(node, facts) ? undefined : `'${node.name}' adds a mask`,
    ),
    note(op('Add', [scores, any('mask')]), (v, facts, sum) => ({
      kind: 'add',
      value: v.mask!,
      ...(perHeadOfBatch(v.mask!, sum, facts) && { flat: true }),
    })),
    note(op('Where', [any('cond'), scores, any('fill')]), (v) => ({
      kind: 'where',
      cond: v.cond!,
      keep: true,
      fill: v.fill!,
    })),
    note(op('Where', [any('cond'), any('fill'), scores]), (v) => ({
      kind: 'where',
      cond: v.cond!,
      keep: false,
      fill: v.fill!,
    })),
    op('Reshape', [scores]),
    // OPT cuts scores off at the lowest number.
    op('Max', [scores, number('floor')], (node, facts) =>
      node.inputs.some((v) => (facts.scalar(v) ?? 0) <= LOWEST_HALF)
        ? undefined
        : `'${node.name}' must cut off at the lowest number`,
    ),
    note(op('Tanh', [scores]), () => ({ kind: 'tanh' })),
  ),
);

/** gpt-oss: a learned score of each head behind those of the keys. */
const withSink: P = note(
  op('Concat', [scores, any('sink')], (node, facts) =>
    node.inputs.length === 2 && isLast(node.int('axis') ?? 0, node.outputs[0]!, facts)
      ? undefined
      : `'${node.name}' must add a column to the scores`,
  ),
  (v, facts) => ({ kind: 'sink', logits: beforeExpand(v.sink!, facts) }),
);
const joined: P = either(scores, withSink);
const columns: P = either(
  joined,
  // The largest is subtracted, which changes nothing.
  op('Sub', [joined, op('ReduceMax', [any('reduced')])], (node, facts) => {
    const [minuend, largest] = node.inputs;
    return facts.graph.producer(largest!)?.inputs[0] === minuend
      ? undefined
      : `'${node.name}' must subtract the largest score`;
  }),
);

const softmax: P = op('Softmax', [columns], (node, facts) =>
  overLastAxis(node, facts) ? undefined : `'${node.name}' must run over the last axis`,
);

/** Softmax over a row, the column of the sink cut off again. */
const rows: P = either(
  note(
    op('Slice', [softmax], (node, facts) => {
      const [part, ...more] = facts.sliceOf(node) ?? [];
      const all = part?.start === 0 && part.end === -1 && part.step === 1 && more.length === 0;
      return all && isLast(part.axis, node.outputs[0]!, facts)
        ? undefined
        : `'${node.name}' must cut off the last column`;
    }),
    () => ({ kind: 'cut' }),
  ),
  softmax,
);

function isLast(axis: number, value: string, facts: Facts): boolean {
  return axis === -1 || axis + 1 === facts.rank(value);
}

/** Are zeros added to scores that have as many dimensions without them? */
function addsZeros(node: Node, facts: Facts): boolean {
  const [a, b] = node.inputs as [string, string];
  const rank = facts.rank(node.outputs[0]!);
  return (
    (isZeros(b, facts) && facts.rank(a) === rank) || (isZeros(a, facts) && facts.rank(b) === rank)
  );
}

/** Zeros of any shape, or such times a number. */
function isZeros(value: string, facts: Facts): boolean {
  if (facts.scalar(value) === 0) return true;
  const { node } = lookThrough(value, facts);
  if (node?.is('Mul')) {
    const [a, b] = node.inputs as [string, string];
    return (
      (facts.scalar(b) !== undefined && isZeros(a, facts)) ||
      (facts.scalar(a) !== undefined && isZeros(b, facts))
    );
  }
  if (!node?.is('ConstantOfShape')) return false;
  const fill = node.tensor('value');
  return !fill || tensorNumbers(fill, facts.graph.model.external)[0] === 0;
}

/** Is a value added to [B*H,Tq,Tk] scores [B*H,..] itself? */
function perHeadOfBatch(value: string, sum: string, facts: Facts): boolean {
  const dims = facts.dims(value);
  return facts.rank(sum) === 3 && dims?.length === 3 && dims[0] !== 1;
}

/** What is repeated for the batch and every query. */
function beforeExpand(value: string, facts: Facts): string {
  const { node } = lookThrough(value, facts);
  return node && /^(Expand|Tile|Reshape|Unsqueeze)$/.test(node.opType)
    ? beforeExpand(node.inputs[0]!, facts)
    : value;
}

function noScores(node: Node): string {
  return `'${node.name}' (${node.string('equation')}) must be queries times keys`;
}

/** What exporters put between Softmax and the product with the values. */
const weights: P = lazy(() =>
  either<Step>(
    rows,
    op('Reshape', [rows]),
    // Rows without any visible key are NaN; newer exporters zero them.
    op('Where', [op('IsNaN', [any('weights')]), number('zero'), rows]),
    // Speech models zero what is masked once more.
    note(op('Where', [any('zeroed'), number('zero'), rows]), (v) => ({
      kind: 'zeroed',
      cond: v.zeroed!,
      keep: false,
    })),
    note(op('Where', [any('zeroed'), rows, number('zero')]), (v) => ({
      kind: 'zeroed',
      cond: v.zeroed!,
      keep: true,
    })),
  ),
);

/** The weighted sum: MatMul(weights, v). */
const product: P = op('MatMul|com.microsoft.FusedMatMul', [weights, any('v')], (node, facts) => {
  if (node.is('MatMul')) return undefined;
  const plain = (node.float('alpha') ?? 1) === 1 && layoutOf(node, 'A') === 'ntd';
  return plain && node.int('transB') !== 1
    ? productOfRows(node, facts)
    : `'${node.name}' must be the product of weights and values as they are`;
});
const attention: P = either(
  product,
  op('Einsum', [weights, any('v')], (node) => (sumOf(node, 0) ? undefined : noSum(node))),
  op('Einsum', [any('v'), weights], (node) => (sumOf(node, 1) ? undefined : noSum(node))),
);

function noSum(node: Node): string {
  return `'${node.name}' (${node.string('equation')}) must be weights times values`;
}

/** Attention written out as MatMul, Softmax, MatMul, as PyTorch, TensorFlow and Paddle export it. */
export const decomposed: Rule = {
  name: 'decomposed',
  anchors: (node) => node.is('Softmax'),
  match: matchDecomposed,
};

function matchDecomposed(anchor: Node, facts: Facts): RuleResult {
  if (!overLastAxis(anchor, facts)) {
    return notAttention(`Softmax must run over the last axis, received axis ${anchor.int('axis')}`);
  }
  const upward = match(softmax, anchor.outputs[0]!, facts);
  if (isMiss(upward)) {
    if (/received .*(DequantizeLinear|QLinear|MatMulInteger)/.test(upward.reason))
      return unsupported(`its scores are products of 8 bits: ${upward.reason}`);
    const gemm = lookThrough(anchor.inputs[0]!, facts).node;
    return gemm?.is('Gemm') && weightLike(gemm.inputs[1], facts)
      ? notAttention(classifier(gemm.inputs[1]!, facts))
      : notAttention(`no attention scores behind it: ${upward.reason}`);
  }
  const keys = upward.values.keys!;
  if (weightLike(keys, facts)) return notAttention(classifier(keys, facts));
  const root = weightedSum(anchor, facts);
  if (typeof root === 'string') return notAttention(root);
  const found = match(attention, root.outputs[0]!, facts);
  if (isMiss(found)) return unsupported(found.reason);
  const interior = found.nodes.filter((n) => n !== root);
  const shared = sharedIntermediate(interior, root, facts);
  if (shared) return unsupported(shared);
  return normalise(anchor, root, found, facts);
}

function classifier(weight: string, facts: Facts): string {
  const dims = facts.dims(weight);
  return `the scores are a product with the constant weight '${weight}' [${shown(dims)}]: a classifier, CTC or router head, not attention`;
}

function isProduct(node: Node): boolean {
  return node.is('MatMul') || node.is('FusedMatMul', 'com.microsoft');
}

/** The MatMul that multiplies the weights with the values, or why there is none. */
function weightedSum(anchor: Node, facts: Facts): Node | string {
  const { graph } = facts;
  let value = anchor.outputs[0]!;
  for (;;) {
    const uses = graph.uses(value);
    const found = uses.find((u) => (isProduct(u.node) && u.index === 0) || u.node.is('Einsum'));
    if (found) return found.node;
    const next = uses.find((u) =>
      /^(Cast|Identity|Dropout|Expand|QuantizeLinear|DequantizeLinear|Reshape|Slice|Where)$/.test(
        u.node.opType,
      ),
    );
    if (!next) {
      const readers = uses.map((u) => `${u.node.opType} '${u.node.name}'`);
      if (graph.isOutput(value)) readers.push('the graph output');
      return `its result is not multiplied with values: it goes to ${readers.join(', ') || 'nothing'}`;
    }
    value = next.node.outputs[0]!;
  }
}

/** Scores and weights must serve this attention only, their shape may serve its mask; says who else reads one. */
function sharedIntermediate(
  interior: readonly Node[],
  root: Node,
  facts: Facts,
): string | undefined {
  const inside = new Set([...interior, root]);
  for (const node of interior) {
    if (node.is('IsNaN')) continue;
    for (const value of node.outputs) {
      if (!value) continue;
      if (facts.graph.isOutput(value)) {
        return `'${value}' (${node.opType}) is a graph output: attention weights or scores cannot be kept`;
      }
      const own = (other: Node) => inside.has(other) || other.is('IsNaN') || other.is('Shape');
      const other = facts.graph.uses(value).find((u) => !own(u.node));
      if (other) {
        return `'${value}' (${node.opType}) is also read by ${other.node.opType} '${other.node.name}'`;
      }
    }
  }
  return undefined;
}

function normalise(
  anchor: Node,
  root: Node,
  { values, notes: steps, nodes }: Found<Step>,
  facts: Facts,
): RuleResult {
  const fused = nodes.find((n) => n !== root && n.is('FusedMatMul', 'com.microsoft'));
  const einsum = nodes.find((n) => n !== root && n.is('Einsum'));
  const letters = einsum && scoresOf(einsum)!;
  const sum = root.is('Einsum')
    ? sumOf(root, root.inputs[0] === values.v ? 1 : 0)!
    : { values: 'bhtd' as const, result: 'bhtd' as const };
  const keys = letters
    ? { ...unscale(values.keys!, facts), layout: letters.keys }
    : keysOf(values.keys!, fused, facts);
  if (typeof keys === 'string') return unsupported(keys);
  const query = unscale(values.q!, facts);
  const rank = facts.rank(query.value);
  const is3d = rank === 3 || keys.layout === 'ntd' || keys.layout === 'tnd';
  const loose = {
    q: { value: query.value, layout: fused ? layoutOf(fused, 'A') : 'ntd' },
    k: keys,
    v: { value: values.v!, layout: layoutOf(root, 'B') },
  };
  const flat = is3d ? flatten(loose, root, facts) : undefined;
  if (typeof flat === 'string') return unsupported(flat);

  const ofQueries = letters && letters.queries !== 'ntd' ? letters.queries : 'bhtd';
  const q = flat?.q ?? headsOf(query.value, ofQueries, facts);
  const k = flat?.k ?? { value: keys.value, layout: keys.layout as 'bhtd' | 'bthd' };
  const v = flat?.v ?? { value: values.v!, layout: sum.values === 'ntd' ? 'bhtd' : sum.values };
  if (!q) {
    const dims = facts.dims(query.value);
    return unsupported(
      `query '${query.value}' must be [B,H,T,D] with known H and D, received [${shown(dims)}]`,
    );
  }
  const kv = keysAndValues(k, v, facts);
  if ('reason' in kv) return unsupported(kv.reason, { q_num_heads: q.heads, head_dim: q.dim });
  const partial = {
    q_num_heads: q.heads,
    kv_num_heads: kv.v.heads,
    head_dim: q.dim,
    cache: kv.cache !== undefined,
  };
  const mismatch = headMismatch(q, kv.k, kv.v);
  if (mismatch) return unsupported(mismatch, partial);
  const cross = crossAttention(q, kv.k, kv.v, facts);
  if (cross) return unsupported(cross, partial);
  const factor = query.scale * keys.scale * (fused?.float('alpha') ?? 1);
  const found = scoreSteps(steps, factor, is3d, facts);
  if ('reason' in found) return unsupported(found.reason, partial);
  const sink = sinkOf(steps, q.heads, facts);
  if (typeof sink === 'string') return unsupported(sink, partial);
  const dtype = facts.dtype(root.outputs[0]!) ?? 'float32';
  const sdpa: Sdpa = {
    rule: 'decomposed',
    anchor,
    q,
    k: kv.k,
    v: kv.v,
    ...found,
    ...(sink && { sink }),
    ...(kv.cache && { cache: kv.cache }),
    output:
      flat?.timeFirst ??
      (sum.result === 'bthd'
        ? { value: root.outputs[0]!, layout: 'bthd' }
        : siteOutput((flat?.output ?? root).outputs[0]!, facts)),
    replaced: [],
    interior: nodes.filter((n) => n !== root),
    sum: root,
    dtype,
    scoreDtype: facts.dtype(anchor.inputs[0]!) ?? dtype,
  };
  const made = [sdpa.output.value, ...(kv.cache?.stacked ? [kv.cache.presentKey] : [])];
  return { sdpa: { ...sdpa, replaced: made.map((value) => facts.graph.producer(value)!) } };
}

function keysOf(value: string, fused: Node | undefined, facts: Facts) {
  if (fused?.int('transB') !== 1) return untransposeKeys(value, facts);
  const layout = facts.rank(value) === 3 ? layoutOf(fused, 'B') : ('bhtd' as const);
  return { ...unscale(value, facts), layout };
}

/** Folds all factors into one, those after an added mask into the mask too. */
function scoreSteps(
  notes: readonly Step[],
  outside: number,
  is3d: boolean,
  facts: Facts,
): Pick<Sdpa, 'scale' | 'softcap' | 'masks'> | { reason: string } {
  let scale = outside;
  let softcap: number | undefined;
  let masks: MaskStep[] = [];
  // Notes run from Softmax towards the product; computation runs the other way.
  for (const step of [...notes].reverse()) {
    switch (step.kind) {
      case 'sink':
      case 'cut':
        break;
      case 'tanh':
        if (masks.length > 0 || softcap !== undefined)
          return { reason: 'scores go through Tanh after a mask or another Tanh' };
        softcap = 1;
        break;
      case 'zeroed': {
        const same = (m: MaskStep) =>
          m.kind === 'where' && m.cond === step.cond && m.keep === step.keep;
        if (masks.some(same)) break;
        return {
          reason: `weights are set to 0 by '${step.cond}', which is not what masks the scores`,
        };
      }
      case 'scale': {
        const { factor } = step;
        if (masks.some((m) => m.kind !== 'add'))
          return { reason: `scores are multiplied by ${factor} after a mask` };
        masks = masks.map((m) =>
          m.kind === 'add' ? { ...m, factor: factor * (m.factor ?? 1) } : m,
        );
        if (softcap === undefined) scale *= factor;
        else softcap *= factor;
        break;
      }
      default:
        masks.push(step);
    }
  }
  for (const step of masks) {
    const value = step.kind === 'where' ? step.cond : step.kind === 'add' ? step.value : '';
    if (!is3d || !value || (step.kind === 'add' && step.flat)) continue;
    const dims = facts.dims(value);
    if (!dims) facts.wanted.add(value);
    if (!dims || (dims.length === 3 && dims[0] !== 1)) {
      return { reason: `mask '${value}' [${shown(dims)}] counts batch and heads in one dimension` };
    }
  }
  if (softcap === undefined) return { scale, masks };
  // cap tanh(x) = cap tanh(cap x / cap)
  return softcap > 0
    ? { scale: scale * softcap, softcap, masks }
    : { reason: `scores behind Tanh must be multiplied by a positive number, received ${softcap}` };
}

/** The sink among the keys, if there is one; or why it is none. */
function sinkOf(notes: readonly Step[], heads: number, facts: Facts): Sink | string | undefined {
  const cut = notes.some((n) => n.kind === 'cut');
  const sink = notes.find((n) => n.kind === 'sink');
  if (!sink)
    return cut ? 'the last column of the weights is cut off, and is that of a key' : undefined;
  if (!cut) return `the column '${sink.logits}' of the weights is multiplied with values`;
  const dims = facts.dims(sink.logits);
  const count = dims?.reduce((n: number, d) => n * (typeof d === 'number' ? d : Number.NaN), 1);
  if (count === heads) return { logits: sink.logits };
  if (!dims) facts.wanted.add(sink.logits);
  return `sink '${sink.logits}' must hold ${heads} numbers, one for each head, received [${shown(dims)}]`;
}

function overLastAxis(node: Node, facts: Facts): boolean {
  const old = (facts.graph.model.opset() ?? 0) < 13;
  const axis = node.int('axis') ?? (old ? 1 : -1);
  return axis === -1 || axis + 1 === facts.rank(node.inputs[0]!);
}
