import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  buildGraph,
  buildModel,
  Emitter,
  freshNames,
  type Model,
  makeNode,
  modelBytes,
  parseModel,
  raiseModel,
  type ValueSpec,
} from '../../exporter/index.js';
import { BodyEmitter } from '../../ops/function/emitter.js';
import { distance, random } from './support/run.js';

interface Form {
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
  /** Something that no rule does. */
  odd?: boolean;
}

const [B, T, H, K, V] = [2, 9, 3, 8, 4];

/** A recurrence as exporters write it, one token a step. */
function scanModel(f: Form): Model {
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

function feeds(model: Model): Record<string, ort.Tensor> {
  const next = random(5);
  const sizes: Record<string, number> = { B, T, N: B * H };
  return Object.fromEntries(
    model.graph.inputs.map(({ name }) => {
      const dims = model.graph.dims(name)!.map((d) => (typeof d === 'number' ? d : sizes[d!]!));
      const count = dims.reduce((a, b) => a * b, 1);
      const draw = () =>
        name === 'g' ? -0.5 + next() / 4 : name === 'beta' ? 0.5 + next() / 3 : next();
      const data = Float32Array.from({ length: count }, draw);
      return [name, new ort.Tensor('float32', name === 'g' ? data.map((x) => x) : data, dims)];
    }),
  );
}

async function run(model: Model, given: Record<string, ort.Tensor>) {
  const session = await ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 3 });
  const { S_T, o } = await session.run(given);
  await session.release();
  return { S_T: S_T!, o: o! };
}

const FORMS: Form[] = [
  { rule: 'linear' },
  { rule: 'linear', transposed: true, scale: 0.25 },
  { rule: 'gated' },
  { rule: 'gated', perKey: true, transposed: true },
  { rule: 'gated', direct: true, read: 'before' },
  { rule: 'gated', perKey: true, direct: true, flat: true },
  { rule: 'delta', axis: 1 },
  { rule: 'delta', transposed: true, flat: true },
  { rule: 'gated_delta', axis: 2 },
  { rule: 'gated_delta', perKey: true, scale: 0.125 },
  { rule: 'gated_delta', direct: true, transposed: true, read: 'before', axis: 2 },
];

describe.each(FORMS)('%o', (form) => {
  it('becomes LinearAttention', async () => {
    const model = scanModel(form);
    const given = feeds(model);
    if (form.direct) {
      given.g = new ort.Tensor(
        'float32',
        (given.g!.data as Float32Array).map((x) => Math.exp(x)),
        given.g!.dims,
      );
    }
    const expected = await run(model, given);
    expect(await raiseModel(model)).toEqual([
      { node: 'scan', from: 'ai.onnx.Scan', to: 'com.fla', reason: null },
    ]);
    const node = [...model.graph.walk()].find((n) => n.domain === 'com.fla')!;
    expect([node.string('update_rule'), node.string('read')]).toEqual([
      form.rule,
      form.read ?? 'after',
    ]);
    const got = await run(parseModel(modelBytes(model)), given);
    for (const name of ['S_T', 'o'] as const) {
      expect(got[name].dims).toEqual(expected[name].dims);
      expect(
        distance(got[name].data as Float32Array, expected[name].data as Float32Array),
      ).toBeLessThan(2e-5);
    }
  });
});

describe('left alone, with the reason', () => {
  it('a recurrence of another kind', async () => {
    expect(await raiseModel(scanModel({ rule: 'gated', odd: true }))).toMatchObject([
      { to: null, reason: 'its body is none of the rules linear, gated, delta and gated_delta' },
    ]);
  });
  it('a Scan that is no recurrence of matrices', async () => {
    const e = new Emitter(freshNames());
    e.op('Add', ['s', 'x'], {}, { output: 'next' });
    e.op('Identity', ['next'], {}, { output: 'y' });
    const one: ValueSpec = ['float32', [4]];
    const body = buildGraph({
      inputs: { s: one, x: one },
      outputs: { next: one, y: one },
      nodes: e.nodes,
    });
    const model = buildModel({
      inputs: { s0: one, xs: ['float32', ['T', 4]] },
      outputs: { sT: one, ys: ['float32', ['T', 4]] },
      nodes: [
        makeNode('Scan', ['s0', 'xs'], ['sT', 'ys'], { body: { graph: body }, num_scan_inputs: 1 }),
      ],
    });
    expect(await raiseModel(model)).toMatchObject([
      { to: null, reason: 'its state must be [B,H,K,V] or [N,K,V], received [4]' },
    ]);
  });
});
