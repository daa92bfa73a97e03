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
import { distance, random } from './support/run.js';
import { SCAN_FORMS, type ScanForm, scanModel as scanOf } from './support/scan.js';

const [B, T, H, K, V] = [2, 9, 3, 8, 4];
const scanModel = (form: ScanForm) => scanOf(form, { H, K, V });

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

describe.each(SCAN_FORMS)('%o', (form) => {
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
    expect(await raiseModel(scanModel({ rule: 'delta', odd: true }))).toMatchObject([
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
