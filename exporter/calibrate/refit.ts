import type * as Ort from 'onnxruntime-node';
import { BodyEmitter } from '../../ops/function/emitter.js';
import type { SessionChoice } from '../compare/session.js';
import { type Model, makeValueInfo } from '../ir/index.js';
import { copyModel, weightOf } from './copy.js';
import { solve } from './linear_algebra.js';
import { openModel } from './student_session.js';

/** A matrix that mixes the heads of a layer: value `input` times the constant `weight`. */
export interface Projection {
  readonly input: string;
  readonly weight: string;
  readonly output: string;
}

/** Names in the models that are cut out for the refit. */
export const TEACHER = 'refit/teacher';
const HEADS = 'refit/heads';

/** Numbered batches of feeds for the inputs of a session. */
export interface Batches {
  readonly count: number;
  feeds(session: Ort.InferenceSession, index: number): Promise<Record<string, Ort.Tensor>>;
}

/**
 * Refits a projection W so that the student's heads X yield what the teacher's layer yields, R = X_teacher W:
 *
 *     W' = (X'X + l I)^-1 (X'R + l W),  l = ridge * tr(X'X) / D
 *
 * Heads and targets are streamed; only X'X and X'R are kept.
 */
export async function refitProjection(
  teacher: Model,
  student: Model,
  at: Projection,
  batches: Batches,
  { ridge = 0.01, ...choice }: SessionChoice & { ridge?: number } = {},
): Promise<Float32Array> {
  const w = weightOf(teacher.graph, at.weight)!;
  const [D, N] = w.dims as [number, number];
  const before = w.numbers();
  const target = await openModel(cut(teacher, [[at.input, D]], 'heads'), choice);
  const mine = await openModel(cut(student, [[at.input, D]], 'gram'), choice);
  const xx = new Float64Array(D * D);
  const xy = new Float64Array(D * D); // X' X_teacher; times W it is X'R
  try {
    for (let i = 0; i < batches.count; i++) {
      const seen = await target.session.run(await batches.feeds(target.session, i));
      const own = await batches.feeds(mine.session, i);
      const result = await mine.session.run({ ...own, [TEACHER]: seen[HEADS]! });
      accumulate(xx, result['refit/xx']!.data as Float32Array);
      accumulate(xy, result['refit/xy']!.data as Float32Array);
    }
  } finally {
    await target.session.release();
    await mine.session.release();
  }
  let trace = 0;
  for (let i = 0; i < D; i++) trace += xx[i * D + i]!;
  const l = (ridge * trace) / D + 1e-12;
  const right = new Float64Array(D * N);
  for (let i = 0; i < D; i++) {
    for (let k = 0; k < D; k++) {
      const f = xy[i * D + k]!;
      for (let j = 0; j < N; j++) right[i * N + j]! += f * before[k * N + j]!;
    }
    for (let j = 0; j < N; j++) right[i * N + j]! += l * before[i * N + j]!;
  }
  return Float32Array.from(solve(xx, right, D, N, l));
}

function accumulate(into: Float64Array, part: Float32Array): void {
  for (let i = 0; i < part.length; i++) into[i]! += part[i]!;
}

/** The part of a model that computes a value of D columns, as rows; or the products of those rows with the teacher's. */
function cut(model: Model, [[value, D]]: [[string, number]], what: 'heads' | 'gram'): Model {
  const copy = copyModel(model);
  const { graph } = copy;
  const e = new BodyEmitter(copy.opset() ?? 17, (stem) => graph.fresh(`refit/${stem}`));
  const rows = e.op(
    'Reshape',
    [value, e.ints(-1, D)],
    {},
    { output: what === 'heads' ? HEADS : undefined },
  );
  graph.proto.output = [];
  if (what === 'heads') graph.addOutput(makeValueInfo(HEADS, 1, [undefined, D]));
  else {
    graph.addInput(makeValueInfo(TEACHER, 1, [undefined, D]));
    const t = e.transpose(rows, [1, 0]);
    e.op('MatMul', [t, rows], {}, { output: 'refit/xx' });
    e.op('MatMul', [t, TEACHER], {}, { output: 'refit/xy' });
    for (const name of ['refit/xx', 'refit/xy']) graph.addOutput(makeValueInfo(name, 1, [D, D]));
  }
  graph.insert(e.nodes);
  graph.removeDead();
  graph.sort();
  return copy;
}
