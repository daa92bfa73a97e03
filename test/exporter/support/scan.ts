/** Recurrences of linear attention as exporters write them: a Scan, one token a step. */
import {
  buildGraph,
  buildModel,
  freshNames,
  type Model,
  makeNode,
  type ValueSpec,
} from '../../../exporter/index.js';
import { BodyEmitter } from '../../../ops/function/emitter.js';

export interface ScanForm {
  rule: 'linear' | 'gated' | 'delta' | 'gated_delta';
  perKey?: boolean;
  /** The decay comes as its exponential. */
  direct?: boolean;
  /** The state is [B,H,V,K]. */
  transposed?: boolean;
  read?: 'before' | 'after';
  /** [N,K,V], time first. */
  flat?: boolean;
  /** Where time lies. */
  axis?: number;
  scale?: number;
  /** What is written goes through tanh: values, or, with a delta rule, something that no rule does. */
  odd?: boolean;
}

/** What each rule may look like. */
export const SCAN_FORMS: readonly ScanForm[] = [
  { rule: 'linear' },
  { rule: 'linear', transposed: true, scale: 0.25 },
  { rule: 'gated' },
  { rule: 'gated', perKey: true, transposed: true },
  { rule: 'gated', direct: true, read: 'before' },
  { rule: 'gated', odd: true, axis: 1 },
  { rule: 'gated', perKey: true, direct: true, flat: true },
  { rule: 'delta', axis: 1 },
  { rule: 'delta', transposed: true, flat: true },
  { rule: 'gated_delta', axis: 2 },
  { rule: 'gated_delta', perKey: true, scale: 0.125 },
  { rule: 'gated_delta', direct: true, transposed: true, read: 'before', axis: 2 },
];

/** Inputs S0, k, beta, v, g, q; outputs S_T, o. */
export function scanModel(
  f: ScanForm,
  { H, K, V }: Readonly<Record<'H' | 'K' | 'V', number>>,
): Model {
  const lead = f.flat ? ['N'] : ['B', H];
  const axis = f.axis ?? 0;
  const spec = (step: (number | string)[]): ValueSpec => [
    'float32',
    [...step.slice(0, axis), 'T', ...step.slice(axis)],
  ];
  const gated = f.rule === 'gated' || f.rule === 'gated_delta';
  const delta = f.rule === 'delta' || f.rule === 'gated_delta';
  const names = ['k', ...(delta ? ['beta'] : []), 'v', ...(gated ? ['g'] : []), 'q'];
  const sizes: Record<string, (number | string)[]> = {
    q: [...lead, K],
    k: [...lead, K],
    v: [...lead, V],
    g: [...lead, f.perKey ? K : 1],
    beta: [...lead, 1],
  };
  const state: (number | string)[] = [...lead, ...(f.transposed ? [V, K] : [K, V])];
  const e = new BodyEmitter(17, freshNames());
  const rank = lead.length;
  const [keyAxis, valueAxis] = f.transposed ? [rank + 1, rank] : [rank, rank + 1];
  const alongKeys = (x: string) => e.unsqueeze(x, valueAxis);
  const alongValues = (x: string) => e.unsqueeze(x, keyAxis);
  let s = 'S';
  if (gated) {
    const factor = f.direct ? 'g_t' : e.op('Exp', ['g_t']);
    s = e.mul(s, f.perKey ? alongKeys(factor) : e.unsqueeze(factor, rank + 1));
  }
  const seen = (from: string, x: string) =>
    e.squeeze(e.sum(e.mul(from, alongKeys(x)), keyAxis), keyAxis);
  let write = 'v_t';
  if (delta) write = e.mul('beta_t', e.sub('v_t', seen(s, 'k_t')));
  if (f.odd) write = e.op('Tanh', [write]);
  const next = e.op(
    'Add',
    [s, e.mul(alongKeys('k_t'), alongValues(write))],
    {},
    { output: 'S_next' },
  );
  e.op(
    'Mul',
    [seen(f.read === 'before' ? 'S' : next, 'q_t'), e.scalar(f.scale ?? 1)],
    {},
    { output: 'o_t' },
  );
  const body = buildGraph({
    name: 'token',
    inputs: {
      S: ['float32', state],
      ...Object.fromEntries(names.map((n) => [`${n}_t`, ['float32', sizes[n]!] as ValueSpec])),
    },
    outputs: { S_next: ['float32', state], o_t: ['float32', [...lead, V]] },
    nodes: e.nodes,
  });
  const axes = names.map(() => axis);
  return buildModel({
    inputs: {
      S0: ['float32', state],
      ...Object.fromEntries(names.map((n) => [n, spec(sizes[n]!)])),
    },
    outputs: { S_T: ['float32', state], o: ['float32', spec([...lead, V])[1]!] },
    nodes: [
      makeNode(
        'Scan',
        ['S0', ...names],
        ['S_T', 'o'],
        {
          body: { graph: body },
          num_scan_inputs: names.length,
          scan_input_axes: axes,
          scan_output_axes: [axis],
        },
        { name: 'scan' },
      ),
    ],
  });
}
