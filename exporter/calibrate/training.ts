import type * as Ort from 'onnxruntime-node';
import { BodyEmitter } from '../../ops/function/emitter.js';
import { loadOnnxRuntime, sessionOptions } from '../compare/session.js';
import {
  buildModel,
  type Graph,
  type Model,
  makeValueInfo,
  modelBytes,
  parseModel,
} from '../ir/index.js';
import { appendGradients } from './gradient.js';
import {
  emitNearAndFar,
  emitStudent,
  type HeadSizes,
  type HybridForm,
  PARAMETER_NAMES,
  type ParameterName,
  parameterShapes,
} from './student.js';
import type { TappedHeads } from './taps.js';

/** What a training step is made for: everything has a fixed shape. */
export interface StepShape extends HeadSizes {
  readonly batch: number;
  readonly tokens: number;
  /** Queries looked at in one step. */
  readonly rows: number;
  /** 0: all rows count alike; 1: by how much they look up few far keys, the sum of squared far weights. */
  readonly focus: number;
}

/** How much each part of the loss counts. */
export interface LossWeights {
  /** Cross-entropy of the attention weights, per row. */
  readonly weights: number;
  /** The same among far keys alone, as if there were no window; rows count by their far share. */
  readonly far: number;
  /** Squared error of the output against the square of the teacher's. */
  readonly output: number;
}

export type Values = Record<ParameterName, Float32Array>;

const LOSS = 'loss';

/**
 * The training step of one layer as a model: parameters, heads and rows in, loss and gradients out.
 *
 *     A = softmax(scale q k'), T = the student's weights
 *     loss = w0 CE(A, T) + w1 CE(A far, T far) + w2 |T v - A v|^2 / |A v|^2
 */
async function stepModel(form: HybridForm, shape: StepShape): Promise<Model> {
  const { batch: B, tokens: T, rows: R, HQ, HV, K, V, D } = shape;
  const e = new BodyEmitter(17);
  const G = HQ / HV;
  const shapes = parameterShapes(shape, form);
  const query = e.op('Gather', ['query', 'rows'], { axis: 2 });
  const columns = e.constant(
    'int64',
    Array.from({ length: T }, (_, i) => i),
  );
  const queryFeatures = e.op('Gather', ['query_features', 'rows'], { axis: 2 });
  const inputs = {
    query,
    key: 'key',
    queryFeatures,
    keyFeatures: 'key_features',
    rows: 'rows',
    columns,
  };
  const names = Object.fromEntries(PARAMETER_NAMES.map((n) => [n, n])) as Record<
    ParameterName,
    string
  >;
  const { near, far } = form.bidirectional
    ? {
        near: e.constant('bool', [0]),
        far: e.op('Reshape', [e.op('Greater', ['visible', e.scalar(0.5)]), e.ints(B, 1, 1, 1, T)]),
      }
    : emitNearAndFar(e, form, inputs);
  const student = emitStudent(e, form, shape, inputs, names, { near, far });
  const grouped = e.reshape(query, [B, HV, G, R, K]);
  const keys = e.transpose(e.unsqueeze('key', 2), [0, 1, 2, 4, 3]);
  const scores = e.mul(e.matmul(grouped, keys), e.scalar(form.scale));
  const hidden = e.scalar(-1e9);
  const visible = e.op('Or', [near, far]);
  const only = (which: string, x: string) => e.op('Where', [which, x, hidden]);
  const softmax = (x: string) => e.op('Softmax', [x], { axis: 4 });
  const log = (x: string) => e.op('LogSoftmax', [x], { axis: 4 });
  const A = softmax(only(visible, scores));
  const isFar = e.cast(far, 'float32');
  const farShare = e.sum(e.mul(A, isFar), 4);
  const scalar = (x: string, n: number) =>
    e.mul(e.op('ReduceSum', [x], { keepdims: 0 }), e.scalar(1 / n));
  const count = B * HQ * R;
  // Less the teacher's entropy, so that 0 is the best there is.
  const kl = (a: string, teacher: string, mine: string) => e.mul(a, e.sub(log(teacher), log(mine)));
  // Rows that look up a few far keys may count more than those that look around.
  const lookup = e.sum(e.mul(e.mul(A, A), isFar), 4);
  const average = e.op('Max', [e.op('ReduceMean', [lookup], { keepdims: 0 }), e.scalar(1e-6)]);
  // Padding asks for nothing.
  const asks = (x: string) =>
    form.bidirectional
      ? e.mul(
          x,
          e.op('Reshape', [
            e.op('Gather', ['visible', 'rows'], { axis: 1 }),
            e.ints(B, 1, 1, R, 1),
          ]),
        )
      : x;
  const rowWeight = asks(
    e.add(e.mul(e.div(lookup, average), e.scalar(shape.focus)), e.scalar(1 - shape.focus)),
  );
  const ce = scalar(e.mul(rowWeight, kl(A, only(visible, scores), student)), count);
  const farTeacher = only(far, scores);
  const farStudent = only(far, student);
  const ceFar = scalar(
    e.mul(e.mul(rowWeight, farShare), kl(softmax(farTeacher), farTeacher, farStudent)),
    count,
  );
  const v = e.unsqueeze('value', 2);
  const Y = asks(e.matmul(A, v));
  const error = e.sub(asks(e.matmul(softmax(student), v)), Y);
  const square = (x: string) => e.op('ReduceSum', [e.mul(x, x)], { keepdims: 0 });
  const mse = e.div(square(error), square(Y));
  const losses = e.op(
    'Concat',
    [ce, ceFar, mse].map((x) => e.op('Reshape', [x, e.ints(1)])),
    { axis: 0 },
  );
  e.op('ReduceSum', [e.mul(losses, 'loss_weights')], { keepdims: 0 }, { output: LOSS });
  e.op('Identity', [losses], {}, { output: 'losses' });
  const model = buildModel({
    inputs: {
      ...Object.fromEntries(PARAMETER_NAMES.map((n) => [n, ['float32', shapes[n]] as const])),
      query: ['float32', [B, HQ, T, K]],
      key: ['float32', [B, HV, T, K]],
      value: ['float32', [B, HV, T, V]],
      query_features: ['float32', [B, HQ, T, D]],
      key_features: ['float32', [B, HV, T, D]],
      rows: ['int64', [R]],
      ...(form.bidirectional && { visible: ['float32', [B, T]] as const }),
      loss_weights: ['float32', [3]],
    },
    outputs: { [LOSS]: ['float32', []], losses: ['float32', [3]] },
    nodes: e.nodes,
  });
  const ort = await loadOnnxRuntime();
  const { dims } = await probeValues(model, zeroFeeds(ort, model));
  const gradients = appendGradients(model.graph, LOSS, [...PARAMETER_NAMES], {
    dims: (value) => dims.get(value) ?? [],
    known: () => [],
  });
  for (const g of gradients) model.graph.addOutput(makeValueInfo(g, 1));
  return model;
}

export function zeroFeeds(ort: typeof Ort, { graph }: Model): Record<string, Ort.Tensor> {
  return Object.fromEntries(
    graph.inputs.map(({ name }) => {
      const dims = graph.dims(name) as number[];
      const size = dims.reduce((a, b) => a * b, 1);
      return [
        name,
        graph.dtype(name) === 'int64'
          ? new ort.Tensor('int64', new BigInt64Array(size), dims)
          : new ort.Tensor('float32', new Float32Array(size), dims),
      ];
    }),
  );
}

/** Shapes of all values of a model in one run, and the elements of those that are short lists of integers. */
export async function probeValues(
  model: Model,
  feeds: Readonly<Record<string, Ort.Tensor>>,
): Promise<{ dims: Map<string, readonly number[]>; numbers: Map<string, readonly number[]> }> {
  const copy = parseModel(modelBytes(model));
  const { graph } = copy;
  const values = graph.nodes.flatMap((n) => n.outputs).filter((v) => v);
  const opset = copy.opset() ?? 17;
  const e = new BodyEmitter(opset, (stem) => graph.fresh(`probe/${stem}`));
  const shapes = values.map((v) => e.op('Shape', [v]));
  const indices = indexValues(graph);
  graph.proto.output = [
    ...shapes.map((n) => makeValueInfo(n, 7)),
    ...indices.map((v) => makeValueInfo(e.cast(v, 'int64', `probe/${v}`), 7)),
  ];
  graph.insert(e.nodes);
  graph.touch();
  const ort = await loadOnnxRuntime();
  const session = await ort.InferenceSession.create(modelBytes(copy), { logSeverityLevel: 4 });
  const wanted = Object.fromEntries(session.inputNames.map((n) => [n, feeds[n]!]));
  const result = await session.run(wanted);
  await session.release();
  const list = (v: string) => Array.from(result[v]!.data as BigInt64Array, Number);
  const dims = new Map(Object.entries(wanted).map(([n, t]) => [n, t.dims]));
  values.forEach((v, i) => {
    dims.set(v, list(shapes[i]!));
  });
  return { dims, numbers: new Map(indices.map((v) => [v, list(`probe/${v}`)])) };
}

/** Computed values by which others are cut or picked. */
function indexValues(graph: Graph): string[] {
  const found = graph.nodes.flatMap((n) =>
    n.is('Slice') ? n.inputs.slice(1) : n.is('Gather') ? [n.inputs[1]!] : [],
  );
  return [...new Set(found)].filter((v) => v && graph.producer(v));
}

/** Runs the training step of one layer. */
export class TrainingStep {
  private constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly form: HybridForm,
    private readonly shapes: Record<ParameterName, readonly number[]>,
    private readonly gradientNames: readonly string[],
  ) {}

  static async create(
    form: HybridForm,
    shape: StepShape,
    options: { threads?: number } = {},
  ): Promise<TrainingStep> {
    const model = await stepModel(form, shape);
    const ort = await loadOnnxRuntime();
    const session = await ort.InferenceSession.create(modelBytes(model), sessionOptions(options));
    const names = session.outputNames.slice(2);
    return new TrainingStep(ort, session, form, parameterShapes(shape, form), names);
  }

  async run(
    values: Values,
    heads: TappedHeads,
    rows: readonly number[],
    weights: LossWeights,
  ): Promise<{ losses: Float32Array; gradients: Values }> {
    const { Tensor } = this.ort;
    const feeds: Record<string, Ort.Tensor> = {
      query: heads.query,
      key: heads.key,
      value: heads.value,
      query_features: heads.queryFeatures,
      key_features: heads.keyFeatures,
      rows: new Tensor('int64', BigInt64Array.from(rows, BigInt), [rows.length]),
      loss_weights: new Tensor('float32', [weights.weights, weights.far, weights.output], [3]),
    };
    if (this.form.bidirectional) {
      const [B, , T] = heads.key.dims as [number, number, number];
      feeds.visible =
        heads.visible ?? new Tensor('float32', new Float32Array(B * T).fill(1), [B, T]);
    }
    for (const name of PARAMETER_NAMES) {
      feeds[name] = new Tensor('float32', values[name], this.shapes[name]);
    }
    const result = await this.session.run(feeds);
    const gradients = Object.fromEntries(
      PARAMETER_NAMES.map((n, i) => [n, result[this.gradientNames[i]!]!.data as Float32Array]),
    ) as Values;
    return { losses: result.losses!.data as Float32Array, gradients };
  }

  async release(): Promise<void> {
    await this.session.release();
  }
}
