import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  buildModel,
  type Dim,
  Emitter,
  freshNames,
  makeTensor,
  modelBytes,
  type ValueSpec,
} from '../../../exporter/index.js';
import { Facts } from '../../../exporter/match/facts.js';

interface Case {
  readonly name: string;
  readonly write: (e: Emitter) => string;
  /** Shape in terms of B and T. */
  readonly dims: Dim[];
}

const INPUTS: Record<string, ValueSpec> = { x: ['float32', ['B', 'T', 12]] };
const dim = (e: Emitter, value: string, axis: number) =>
  e.op('Unsqueeze', [
    e.op('Gather', [e.op('Shape', [value]), e.constant('int64', [axis], [])], { axis: 0 }),
    e.ints(0),
  ]);
const heads = (e: Emitter) =>
  e.op('Reshape', [
    'x',
    e.op('Concat', [dim(e, 'x', 0), dim(e, 'x', 1), e.ints(-1), e.ints(3)], { axis: 0 }),
  ]);

const CASES: Case[] = [
  { name: 'Reshape by Shape, Gather, Concat; -1 solved', write: heads, dims: ['B', 'T', 4, 3] },
  {
    name: 'Reshape with 0',
    write: (e) => e.op('Reshape', ['x', e.ints(0, 0, 4, -1)]),
    dims: ['B', 'T', 4, 3],
  },
  {
    name: 'Reshape to rows',
    write: (e) => e.op('Reshape', ['x', e.ints(-1, 12)]),
    dims: ['?Reshape[0]', 12],
  },
  {
    name: 'heads counted by -1, after lengths that have no name',
    write: (e) => {
      const rows = e.op('Reshape', ['x', e.ints(2, -1, 12)]);
      const target = e.op('Concat', [dim(e, rows, 0), dim(e, rows, 1), e.ints(-1, 3)], { axis: 0 });
      return e.op('Reshape', [e.op('Neg', [rows]), target]);
    },
    dims: [2, '?Reshape[1]', 4, 3],
  },
  {
    name: 'Shape, a part of it',
    write: (e) => {
      const part = e.op('Shape', ['x'], { start: 1, end: 3 });
      return e.op('Cast', [part], { to: 1 });
    },
    dims: [2],
  },
  {
    name: 'Conv',
    write: (e) => {
      const lines = e.op('Transpose', ['x'], { perm: [0, 2, 1] });
      const weight = e.constant('float32', Array(36).fill(1), [6, 2, 3]);
      return e.op('Conv', [lines, weight], { group: 6, strides: [2], pads: [1, 1] });
    },
    dims: ['B', 6, '?Conv[2]'],
  },
  {
    name: 'Transpose',
    write: (e) => e.op('Transpose', [heads(e)], { perm: [0, 2, 3, 1] }),
    dims: ['B', 4, 3, 'T'],
  },
  {
    name: 'MatMul',
    write: (e) => e.op('MatMul', ['x', e.constant('float32', Array(60).fill(1), [12, 5])]),
    dims: ['B', 'T', 5],
  },
  {
    name: 'Slice to the end, and a stretch',
    write: (e) =>
      e.op('Slice', [
        e.op('Slice', ['x', e.ints(0), e.ints(2 ** 53), e.ints(1)]),
        e.ints(-8),
        e.ints(-2),
        e.ints(2),
      ]),
    dims: ['B', 'T', 6],
  },
  {
    name: 'Split',
    write: (e) => e.ops('Split', ['x', e.ints(4, 8)], 2, { axis: -1 })[1]!,
    dims: ['B', 'T', 8],
  },
  {
    name: 'Gather of a scalar',
    write: (e) => e.op('Gather', ['x', e.constant('int64', [0], [])], { axis: 1 }),
    dims: ['B', 12],
  },
  {
    name: 'Unsqueeze and Squeeze',
    write: (e) => e.op('Squeeze', [e.op('Unsqueeze', ['x', e.ints(0, 3)]), e.ints(0)]),
    dims: ['B', 'T', 1, 12],
  },
  { name: 'Concat', write: (e) => e.op('Concat', ['x', 'x'], { axis: -1 }), dims: ['B', 'T', 24] },
  {
    name: 'broadcasting',
    write: (e) => e.op('Add', ['x', e.constant('float32', [1, 2], [2, 1, 1, 1])]),
    dims: [2, 'B', 'T', 12],
  },
  {
    name: 'Expand',
    write: (e) => e.op('Expand', [e.op('Unsqueeze', ['x', e.ints(2)]), e.ints(1, 1, 5, 1)]),
    dims: ['B', 'T', 5, 12],
  },
  {
    name: 'ReduceMean without its axis',
    write: (e) => e.op('ReduceMean', ['x'], { axes: [-1], keepdims: 0 }),
    dims: ['B', 'T'],
  },
  {
    name: 'ConstantOfShape',
    write: (e) =>
      e.op('ConstantOfShape', [e.op('Concat', [dim(e, 'x', 1), e.ints(7)], { axis: 0 })]),
    dims: ['T', 7],
  },
];

function modelOf({ write }: Case) {
  const e = new Emitter(freshNames());
  const value = write(e);
  e.op('Identity', [value], {}, { output: 'y' });
  return buildModel({ inputs: INPUTS, outputs: { y: ['float32'] }, nodes: e.nodes });
}

describe.each(CASES)('$name', (c) => {
  it('gives the shape in symbols', () => {
    expect(new Facts(modelOf(c).graph).dims('y')).toEqual(c.dims);
  });

  it('gives the shape that ONNX Runtime gives, when inputs have lengths', async () => {
    const model = modelOf(c);
    const facts = new Facts(model.graph, { x: [2, 5, 12] });
    const session = await ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 3 });
    const { y } = await session.run({
      x: new ort.Tensor('float32', new Float32Array(120), [2, 5, 12]),
    });
    expect(facts.numeric('y')).toEqual(y!.dims);
  });
});

describe('known values', () => {
  const known = (write: (e: Emitter) => string) => {
    const e = new Emitter(freshNames());
    const value = write(e);
    const { graph } = buildModel({ inputs: INPUTS, outputs: {}, nodes: e.nodes });
    return new Facts(graph).known(value)?.items;
  };
  const last = (e: Emitter) => e.op('Slice', [e.op('Shape', ['x']), e.ints(-1), e.ints(2 ** 53)]);

  it('follow the scale that torch computes from a shape', () => {
    const scale = known((e) => {
      const root = e.op('Sqrt', [e.op('Cast', [last(e)], { to: 1 })]);
      return e.op('Sqrt', [e.op('Div', [e.scalar(1), root])]);
    });
    expect(scale).toEqual([1 / 12 ** 0.25]);
  });
  it('divide integers as integers', () => {
    expect(known((e) => e.op('Div', [last(e), e.ints(5)]))).toEqual([2]);
    expect(known((e) => e.op('Div', [e.scalar(1), e.scalar(4)]))).toEqual([0.25]);
  });
  it('keep symbols, and know that a dimension is never -1', () => {
    const chosen = known((e) => {
      const shape = e.op('Concat', [dim(e, 'x', 0), e.ints(-1, 3)], { axis: 0 });
      const ones = e.op('ConstantOfShape', [e.op('Shape', [shape])], {
        value: makeTensor('', 'int64', [1], [1]),
      });
      const minus = e.op('Mul', [ones, e.constant('int64', [-1], [])]);
      return e.op('Where', [e.op('Equal', [shape, minus]), ones, shape]);
    });
    expect(chosen).toEqual(['B', 1, 3]);
  });
  it('are unknown where an input has values', () => {
    expect(known((e) => e.op('Sqrt', ['x']))).toBeUndefined();
  });
});
