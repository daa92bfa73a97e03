import type * as Ort from 'onnxruntime-node';
import { BodyEmitter } from '../../ops/function/emitter.js';
import { loadOnnxRuntime, sessionOptions } from '../compare/session.js';
import { buildModel, type Model, makeValueInfo, modelBytes } from '../ir/index.js';
import { type GateForm, gateShapes } from './gate_parameters.js';
import { appendGradients } from './gradient.js';
import { type CallSizes, emitRecurrence } from './recurrence.js';
import type { TappedHeads } from './taps.js';
import { probeValues, zeroFeeds } from './training.js';

const LOSS = 'loss';

/** What one step finds. */
export interface GateStepResult {
  /** Squared error of the output against the square of the teacher's, after the best gain of every head. */
  readonly loss: number;
  readonly gradients: Record<string, Float32Array>;
  /** By query head: sums over the batch of the output times the teacher's, and times itself; their ratio is the best gain. */
  readonly products: Float32Array;
  readonly squares: Float32Array;
}

/**
 * The training step of one layer's gates as a model: parameters and heads in, loss and gradients out. O being the recurrence's output
 * and Y that of causal softmax attention,
 *
 *     loss = sum_h min_c |c O_h - Y_h|^2 / |Y|^2 = 1 - sum_h (O_h . Y_h)^2 / |O_h|^2 / |Y|^2
 */
async function stepModel(form: GateForm, sizes: CallSizes, scale: number): Promise<Model> {
  const { batch: B, tokens: T, HQ, HV, K, V } = sizes;
  const e = new BodyEmitter(17);
  const names = Object.keys(gateShapes(form));
  const inputs = {
    query: 'query',
    key: 'key',
    value: 'value',
    ...(form.hidden > 0 && { hidden: 'hidden' }),
  };
  const O = emitRecurrence(e, form, sizes, scale, inputs, (name) => name);
  const G = HQ / HV;
  const grouped = e.op('Reshape', ['query', e.ints(B, HV, G * T, K)]);
  const scores = e.matmul(grouped, e.transpose('key', [0, 1, 3, 2]));
  const square = e.mul(e.op('Reshape', [scores, e.ints(B, HQ, T, T)]), e.scalar(scale));
  const places = e.constant(
    'int64',
    Array.from({ length: T }, (_, i) => i),
  );
  const future = e.op('Less', [e.unsqueeze(places, 1), e.unsqueeze(places, 0)]);
  const A = e.op('Softmax', [e.op('Where', [future, e.scalar(-1e9), square])], { axis: 3 });
  const rows = e.op('Reshape', [A, e.ints(B, HV, G * T, T)]);
  const Y = e.op('Reshape', [e.matmul(rows, 'value'), e.ints(B, HQ, T, V)]);
  const perHead = (a: string, b: string) =>
    e.op('Reshape', [[3, 2, 0].reduce((x, axis) => e.sum(x, axis), e.mul(a, b)), e.ints(HQ)]);
  const [products, squares] = [perHead(O, Y), perHead(O, O)];
  const explained = e.div(e.mul(products, products), e.add(squares, e.scalar(1e-12)));
  const all = e.op('ReduceSum', [e.mul(Y, Y)], { keepdims: 0 });
  const share = e.div(e.op('ReduceSum', [explained], { keepdims: 0 }), all);
  e.op('Sub', [e.scalar(1), share], {}, { output: LOSS });
  e.op('Identity', [products], {}, { output: 'products' });
  e.op('Identity', [squares], {}, { output: 'squares' });
  const model = buildModel({
    inputs: {
      ...Object.fromEntries(names.map((n) => [n, ['float32', gateShapes(form)[n]!] as const])),
      query: ['float32', [B, HQ, T, K]],
      key: ['float32', [B, HV, T, K]],
      value: ['float32', [B, HV, T, V]],
      ...(form.hidden > 0 && { hidden: ['float32', [B, T, form.hidden]] as const }),
    },
    outputs: {
      [LOSS]: ['float32', []],
      products: ['float32', [HQ]],
      squares: ['float32', [HQ]],
    },
    nodes: e.nodes,
  });
  const ort = await loadOnnxRuntime();
  const { dims } = await probeValues(model, zeroFeeds(ort, model));
  const gradients = appendGradients(model.graph, LOSS, names, {
    dims: (value) => dims.get(value) ?? [],
    known: (value) => model.graph.numbers(value) ?? [],
  });
  for (const g of gradients) model.graph.addOutput(makeValueInfo(g, 1));
  return model;
}

/** Runs the training step of one layer's gates. */
export class GateStep {
  private constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly form: GateForm,
    private readonly gradientNames: readonly string[],
  ) {}

  static async create(
    form: GateForm,
    sizes: CallSizes,
    scale: number,
    options: { threads?: number } = {},
  ): Promise<GateStep> {
    const model = await stepModel(form, sizes, scale);
    const ort = await loadOnnxRuntime();
    const session = await ort.InferenceSession.create(modelBytes(model), sessionOptions(options));
    return new GateStep(ort, session, form, session.outputNames.slice(3));
  }

  async run(
    values: Readonly<Record<string, Float32Array>>,
    { query, key, value, hidden }: Pick<TappedHeads, 'query' | 'key' | 'value' | 'hidden'>,
  ): Promise<GateStepResult> {
    const feeds: Record<string, Ort.Tensor> = { query, key, value };
    if (this.form.hidden > 0) feeds.hidden = hidden!;
    const shapes = gateShapes(this.form);
    for (const [name, dims] of Object.entries(shapes)) {
      feeds[name] = new this.ort.Tensor('float32', values[name]!, dims);
    }
    const result = await this.session.run(feeds);
    const data = (name: string) => result[name]!.data as Float32Array;
    const names = Object.keys(shapes);
    return {
      loss: data(LOSS)[0]!,
      products: data('products'),
      squares: data('squares'),
      gradients: Object.fromEntries(names.map((n, i) => [n, data(this.gradientNames[i]!)])),
    };
  }

  async release(): Promise<void> {
    await this.session.release();
  }
}
