import path from 'node:path';
import {
  buildGraph,
  buildModel,
  Emitter,
  freshNames,
  loadModel,
  type Model,
  modelBytes,
  parseModel,
  type ValueSpec,
} from '../../../exporter/index.js';
import { toNumber } from '../../../exporter/ir/index.js';
import { BodyEmitter } from '../../../ops/function/emitter.js';
import { ROOT } from '../../support/models.js';

/** What export.py and function_bodies.py of test/fixtures/loops made. */
export const loadLoop = (name: string): Model =>
  loadModel(path.join(ROOT, 'test/fixtures/loops', `${name}.onnx`));

/** Those that the models here are written with. */
const [H, K, V] = [2, 4, 3];

/** The same model with other numbers of heads, key and value dimensions: none of its nodes know them. */
export function withSizes(model: Model, sizes: Readonly<Record<'H' | 'K' | 'V', number>>): Model {
  const become = new Map([
    [H, sizes.H],
    [K, sizes.K],
    [V, sizes.V],
  ]);
  const graphs = [model.graph, ...[...model.graph.walk()].flatMap((n) => n.subgraphs)];
  for (const { proto } of graphs) {
    for (const { type } of [...proto.input, ...proto.output, ...proto.valueInfo]) {
      for (const dim of type?.tensorType?.shape?.dim ?? []) {
        const length = become.get(toNumber(dim.dimValue ?? 0));
        if (length !== undefined) dim.dimValue = length;
      }
    }
  }
  return parseModel(modelBytes(model));
}

/**
 * A cell of Keras in an RNN, as tf2onnx writes its while loop: tensors turned to time first, a counter of its own in int32, conditions
 * over it and over the number of steps both before the Loop and in it, the number of tokens handed through, scan outputs.
 */
export function kerasLoop(odd: { stop?: boolean } = {}): Model {
  const outer = new BodyEmitter(17, freshNames());
  const timeFirst = ['q', 'k', 'v', 'g'].map((x) =>
    outer.transpose(x, x === 'g' ? [1, 0, 2] : [1, 0, 2, 3]),
  );
  const [q, k, v, g] = timeFirst as [string, string, string, string];
  const count = outer.op('Cast', [outer.squeeze(outer.dim('q', 1), 0)], { to: 6 });
  const zero = outer.constant('int32', [0], []);
  const starts = outer.op('And', [
    outer.op('Less', [zero, count]),
    outer.op('Less', [zero, count]),
  ]);
  const e = new Emitter(freshNames(), 'while/');
  const at = (x: string) => e.op('Gather', [x, 'time'], { axis: 0 });
  const along = (x: string, ...axes: number[]) => e.op('Unsqueeze', [x, e.ints(...axes)]);
  const kept = e.op('Mul', ['S', along(e.op('Exp', [at(g)]), 2, 3)]);
  const written = e.op('MatMul', [along(at(k), 3), along(at(v), 2)]);
  const state = e.op('Add', [kept, written]);
  const read = e.op('MatMul', [along(at(q), 2), state]);
  e.op('Squeeze', [read, e.ints(2)], {}, { output: 'o_t' });
  e.op('Identity', [state], {}, { output: 'S_next' });
  e.op('Add', ['time', e.constant('int32', [1], [])], {}, { output: 'time_next' });
  e.op('Identity', ['count'], {}, { output: 'count_same' });
  const limits = [
    e.op('Less', [e.op('Cast', ['i'], { to: 6 }), 'count_same']),
    e.op('Less', [
      'time_next',
      odd.stop
        ? e.op('Cast', [e.op('ReduceSum', [state], { keepdims: 0 })], { to: 6 })
        : 'count_same',
    ]),
  ];
  e.op('And', limits, {}, { output: 'goes_on' });
  const scalar: ValueSpec = ['int32', []];
  const states: ValueSpec = ['float32', ['B', H, K, V]];
  const body = buildGraph({
    inputs: { i: ['int64', []], go: ['bool', []], time: scalar, S: states, count: scalar },
    outputs: {
      goes_on: ['bool', []],
      ...{ time_next: scalar, S_next: states, count_same: scalar },
      o_t: ['float32', ['B', H, V]],
    },
    nodes: e.nodes,
  });
  const steps = outer.op('Cast', [count], { to: 7 });
  outer.ops('Loop', [steps, starts, zero, 'S0', count], ['while:0', 'S_T', 'while:2', 'outs'], {
    body: { graph: body },
  });
  outer.op('Transpose', ['outs'], { perm: [1, 0, 2, 3] }, { output: 'o' });
  return buildModel({
    inputs: {
      q: ['float32', ['B', 'T', H, K]],
      k: ['float32', ['B', 'T', H, K]],
      v: ['float32', ['B', 'T', H, V]],
      g: ['float32', ['B', 'T', H]],
      S0: states,
    },
    outputs: { o: ['float32', ['B', 'T', H, V]], S_T: states },
    nodes: outer.nodes,
  });
}
