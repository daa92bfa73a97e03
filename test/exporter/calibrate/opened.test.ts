import { expect, it } from 'vitest';
import {
  arrayData,
  assemble,
  calibrate,
  calibrateModel,
  type FunctionProto,
  loadModel,
  type Model,
  makeNode,
  modelBytes,
  parseModel,
} from '../../../exporter/index.js';
import { Random } from '../../../exporter/random.js';
import { TINYRECALL } from '../../support/models.js';
import { DECODERS, decoder, merged, VOCABULARY } from '../support/decoder.js';
import { recallSequence } from './sequences.js';

const short = { window: 8, sinks: 1, features: 8, steps: 2, refitBatches: 1, layers: [0] } as const;
const reread = (model: Model) => parseModel(modelBytes(model));

/** The same model, its nodes in a function. */
function asFunction(model: Model): Model {
  const { graph } = model;
  const input = [
    ...graph.inputs.map((i) => i.name),
    ...graph.proto.initializer.map((t) => t.name!),
  ];
  const output = graph.outputs.map((o) => o.name);
  model.addFunction({
    ...{ domain: 'pkg', name: 'Decoder', overload: '', input, output, node: graph.proto.node },
    ...{ opsetImport: [{ domain: '', version: model.opset()! }] },
    ...{ attribute: [], attributeProto: [], valueInfo: [] },
  } as FunctionProto);
  model.requireOpset('pkg', 1);
  graph.proto.node = [makeNode('Decoder', input, output, {}, { domain: 'pkg', name: 'decoder' })];
  return reread(model);
}

it('takes a merged decoder apart first', async () => {
  const { spec } = DECODERS[0]!;
  const random = new Random(1);
  const ids = Float64Array.from({ length: 8 * 24 }, () => random.below(VOCABULARY));
  const data = arrayData(new Map([['input_ids', { dims: [8, 24], data: ids }]]));
  const plain = await calibrate(reread(decoder(spec)), data, short);
  const whole = reread(merged(spec));
  const opened = await calibrate(whole, data, short);
  expect(opened.losses).toEqual(plain.losses);
  expect(opened.projections).toEqual(plain.projections);
  expect(whole.graph.isInput('use_cache_branch')).toBe(true); // it is left as it is
  const { model, report } = await assemble(whole, opened);
  expect(report.sites).toMatchObject([{ rewritten: true }]);
  expect(model.graph.isInput('use_cache_branch')).toBe(false);
});

it('opens model-local functions first', async () => {
  const T = 48;
  const rows = Array.from({ length: 12 }, (_, i) => recallSequence(new Random(3, i), T).ids);
  const data = arrayData(
    new Map([['input_ids', { dims: [12, T], data: Float64Array.from(rows.flat()) }]]),
  );
  const options = { ...short, batches: 1 };
  const plain = await calibrateModel(loadModel(TINYRECALL), data, options);
  const whole = await calibrateModel(asFunction(loadModel(TINYRECALL)), data, options);
  expect(whole.report.losses).toEqual(plain.report.losses);
  const [a, b] = [plain, whole].map(({ report: { pareto } }) =>
    pareto.map(({ speed: _, ...row }) => row),
  );
  expect(b).toEqual(a);
  expect(whole.model.functions.map((f) => f.domain)).not.toContain('pkg');
});
