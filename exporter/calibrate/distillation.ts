import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { analyse } from '../analysis.js';
import { loadOnnxRuntime, sessionOptions } from '../compare/session.js';
import { type Model, makeValueInfo, modelBytes } from '../ir/index.js';
import { beforeRotation } from '../match/rotation.js';
import type { Runner } from '../match/runner.js';
import { SiteEmitter } from '../variants/emit.js';
import { copyModel, weightOf } from './copy.js';
import { appendGradients } from './gradient.js';
import { outputProjection } from './projection.js';
import {
  emitNearAndFar,
  emitStudent,
  type HybridForm,
  PARAMETER_NAMES,
  parameterShapes,
} from './student.js';
import { probeValues } from './training.js';

/** One converted layer: its form, and how many columns its weights have. */
export interface DistilledLayer {
  readonly layer: number;
  readonly form: Omit<HybridForm, 'scale'>;
  readonly M: number;
  readonly unrotated: boolean;
}

const name = (layer: number, what: string) => `student.${layer}.${what}`;

/**
 * A step of training a whole rewritten model to predict what the original predicts:
 *
 *     loss = mean over tokens of KL(teacher || student)
 *
 * The trained values are the parameters of the converted layers, and the matrices that mix their heads.
 */
export class DistillationStep {
  private constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    readonly shapes: ReadonlyMap<string, readonly number[]>,
    private readonly gradients: readonly string[],
  ) {}

  static async create(
    model: Model,
    layers: readonly DistilledLayer[],
    example: Readonly<Record<string, Ort.Tensor>>,
    logits: string,
    vocabulary: number,
    options: { runner?: Runner; threads?: number; train?: (name: string) => boolean } = {},
  ): Promise<DistillationStep> {
    const copy = copyModel(model);
    const { graph } = copy;
    const analysis = await analyse(copy, options);
    const shapes = new Map<string, readonly number[]>();
    const tokens = Object.values(example)[0]!.dims[1]!;
    for (const { layer, form: given, M, unrotated } of layers) {
      const sdpa = analysis.sites.find((s) => s.layer === layer)?.sdpa;
      if (!sdpa) throw new FlaError('invalid_argument', `layer ${layer} is no known attention`);
      const form: HybridForm = { ...given, scale: sdpa.scale };
      const projection = outputProjection(graph, sdpa);
      const e = new SiteEmitter(graph, analysis.facts, `student.${layer}`);
      const [HQ, HV, K, V] = [sdpa.q.heads, sdpa.v.heads, sdpa.k.dim, sdpa.v.dim];
      const sizes = { HQ, HV, K, V, D: K, M };
      const own = parameterShapes(sizes, form);
      for (const p of PARAMETER_NAMES) {
        shapes.set(name(layer, p), own[p]);
        graph.addInput(makeValueInfo(name(layer, p), 1, own[p]));
      }
      const [query, key, value] = [sdpa.q, sdpa.k, sdpa.v].map((h) => e.bhtd(h)) as [
        string,
        string,
        string,
      ];
      const [queryFeatures, keyFeatures] = unrotated
        ? ([sdpa.q, sdpa.k].map((h) => e.bhtd(beforeRotation(graph, h)!)) as [string, string])
        : [query, key];
      const positions = e.constant(
        'int64',
        Array.from({ length: tokens }, (_, i) => i),
      );
      const inputs = {
        query,
        key,
        queryFeatures,
        keyFeatures,
        rows: positions,
        columns: positions,
      };
      const parameters = Object.fromEntries(
        PARAMETER_NAMES.map((p) => [p, name(layer, p)]),
      ) as Record<(typeof PARAMETER_NAMES)[number], string>;
      const weights = e.op(
        'Softmax',
        [emitStudent(e, form, sizes, inputs, parameters, emitNearAndFar(e, form, inputs))],
        { axis: 4 },
      );
      const o = e.matmul(weights, e.unsqueeze(value, 2)); // [B,HV,G,T,V]
      const heads = e.reshape(o, [0, HQ, tokens, V]);
      const packed = e.reshape(e.transpose(heads, [0, 2, 1, 3]), [0, 0, HQ * V]);
      const { output } = sdpa;
      if (output.layout === 'packed') e.op('Identity', [packed], {}, { output: output.value });
      else e.fromPacked(packed, HQ, V, { ...output, layout: output.layout });
      e.presents(sdpa);
      graph.remove(sdpa.replaced);
      graph.insert(e.nodes);
      if (projection) {
        const dims = weightOf(graph, projection.weight)!.dims;
        const input = name(layer, 'output_weight');
        shapes.set(input, dims);
        graph.addInput(makeValueInfo(input, 1, dims));
        const { node, index } = graph.uses(projection.weight)[0]!;
        graph.setInput(node, index, input);
      }
    }
    const e = new SiteEmitter(graph, analysis.facts, 'distil');
    const logs = e.op('LogSoftmax', [logits], { axis: -1 });
    const p = e.op('Exp', ['teacher']);
    const kl = e.mul(p, e.sub('teacher', logs));
    const count = example[Object.keys(example)[0]!]!.dims.reduce((a, b) => a * b, 1);
    e.op(
      'ReduceSum',
      [e.mul(e.mul(kl, e.unsqueeze('token_weights', 2)), e.scalar(1 / count))],
      { keepdims: 0 },
      { output: 'loss' },
    );
    graph.addInput(makeValueInfo('teacher', 1, [undefined, undefined, vocabulary]));
    graph.addInput(makeValueInfo('token_weights', 1, [undefined, undefined]));
    graph.insert(e.nodes);
    graph.proto.output = [makeValueInfo('loss', 1, [])];
    graph.removeDead();
    graph.sort();
    const ort = await loadOnnxRuntime();
    const zeros = (dims: readonly number[]) =>
      new ort.Tensor('float32', new Float32Array(dims.reduce((a, b) => a * b, 1)), dims);
    const first = example[Object.keys(example)[0]!]!.dims;
    const feeds: Record<string, Ort.Tensor> = {
      ...example,
      teacher: zeros([...first, vocabulary]),
      token_weights: zeros(first),
    };
    for (const [n, dims] of shapes) feeds[n] = zeros(dims);
    const { dims, numbers } = await probeValues(copy, feeds);
    const trained = [...shapes.keys()].filter(options.train ?? (() => true));
    const gradients = appendGradients(graph, 'loss', trained, {
      dims: (v) =>
        dims.get(v) ?? (graph.dims(v) as number[]) ?? graph.initializer(v)!.dims.map(Number),
      known: (v) => numbers.get(v) ?? graph.numbers(v) ?? [],
    });
    for (const g of gradients) graph.addOutput(makeValueInfo(g, 1));
    const session = await ort.InferenceSession.create(modelBytes(copy), sessionOptions(options));
    return new DistillationStep(
      ort,
      session,
      new Map(trained.map((n) => [n, shapes.get(n)!])),
      gradients,
    );
  }

  async run(
    values: ReadonlyMap<string, Float32Array>,
    feeds: Readonly<Record<string, Ort.Tensor>>,
    teacher: Ort.Tensor, // log-probabilities
    tokenWeights: Ort.Tensor,
  ): Promise<{ loss: number; gradients: Map<string, Float32Array> }> {
    const all: Record<string, Ort.Tensor> = { ...feeds, teacher, token_weights: tokenWeights };
    for (const [n, dims] of this.shapes)
      all[n] = new this.ort.Tensor('float32', values.get(n)!, dims);
    const wanted = Object.fromEntries(this.session.inputNames.map((n) => [n, all[n]!]));
    const result = await this.session.run(wanted);
    const loss = (result.loss!.data as Float32Array)[0]!;
    const names = [...this.shapes.keys()];
    const gradients = new Map(
      names.map((n, i) => [n, result[this.gradients[i]!]!.data as Float32Array]),
    );
    return { loss, gradients };
  }

  async release(): Promise<void> {
    await this.session.release();
  }
}
