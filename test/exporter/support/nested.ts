import {
  buildModel,
  DATA_TYPE,
  type FunctionProto,
  type Model,
  makeNode,
  makeTensor,
  makeValueInfo,
} from '../../../exporter/index.js';
import { FAMILIES, Writer } from './families.js';
import { makeLayer } from './layer.js';

const SHAPE = ['batch', 'sequence', 12] as const;
const family = (start: string) => FAMILIES.find((f) => f.name.startsWith(start))!;
export const plain = (seed = 7) =>
  family('ViT: separate').build(new Writer(makeLayer(12, 4, 4, 3, seed)));
export const masked = (seed = 7) =>
  family('BERT: Div').build(new Writer(makeLayer(12, 4, 4, 3, seed)));

/** A model's graph as the body of If: it reads x (and its mask) from outside. */
function branch({ graph }: Model) {
  const { node, initializer } = graph.proto;
  return {
    graph: { name: 'branch', node, initializer, input: [], output: [{ name: 'y' }], valueInfo: [] },
  };
}

export function conditional(one: Model, other: Model): Model {
  return buildModel({
    inputs: {
      x: ['float32', SHAPE],
      c: ['bool', []],
      ...(one.graph.isInput('attention_mask') && { attention_mask: ['int64', SHAPE.slice(0, 2)] }),
    },
    outputs: { z: ['float32', SHAPE] },
    nodes: [makeNode('If', ['c'], ['z'], { then_branch: branch(one), else_branch: branch(other) })],
  });
}

/** x -> attention(x), three times, as the body of Loop. */
export function loop(): Model {
  const { node, initializer } = plain().graph.proto;
  const info = (name: string, type: number) => makeValueInfo(name, type, []);
  const input = [
    info('i', DATA_TYPE.int64),
    info('go', DATA_TYPE.bool),
    makeValueInfo('x', DATA_TYPE.float32, SHAPE),
  ];
  const body = {
    name: 'body',
    node: [...node, makeNode('Identity', ['go'], ['go_on'])],
    initializer,
    input,
    output: [info('go_on', DATA_TYPE.bool), makeValueInfo('y', DATA_TYPE.float32, SHAPE)],
    valueInfo: [],
  };
  return buildModel({
    inputs: { start: ['float32', SHAPE] },
    outputs: { z: ['float32', SHAPE] },
    nodes: [makeNode('Loop', ['count', '', 'start'], ['z'], { body: { graph: body } })],
    initializers: [makeTensor('count', 'int64', [], [3])],
  });
}

/** Attention as a function of the module, called by another, with the weights as inputs. */
export function functions(opset = 17): Model {
  const { graph } = plain();
  const weights = graph.proto.initializer.map((t) => t.name!);
  const scale = { ref: 'scale', type: 'float' } as const;
  const inner: FunctionProto = {
    name: 'Attention',
    domain: 'pkg.torch',
    input: ['x', ...weights],
    output: ['scaled'],
    attribute: ['scale'],
    node: [
      ...graph.proto.node,
      makeNode('Constant', [], ['factor'], { value_float: scale }),
      makeNode('Mul', ['y', 'factor'], ['scaled']),
    ],
    opsetImport: [{ domain: '', version: opset }],
  };
  const outer: FunctionProto = {
    name: 'Layer',
    domain: 'pkg.torch',
    input: ['x', ...weights],
    output: ['sum'],
    attribute: [],
    node: [
      makeNode(
        'Attention',
        ['x', ...weights],
        ['attended'],
        { scale: { float: 0.5 } },
        {
          domain: 'pkg.torch',
        },
      ),
      makeNode('Add', ['x', 'attended'], ['sum']),
    ],
    opsetImport: [
      { domain: '', version: opset },
      { domain: 'pkg.torch', version: 1 },
    ],
  };
  const other: FunctionProto = {
    name: 'Twice',
    domain: 'pkg.torch',
    input: ['x'],
    output: ['y'],
    attribute: [],
    node: [makeNode('Add', ['x', 'x'], ['y'])],
    opsetImport: [{ domain: '', version: 17 }],
  };
  const more = { domain: 'pkg.torch' };
  return buildModel({
    inputs: { x: ['float32', SHAPE] },
    outputs: { z: ['float32', SHAPE] },
    nodes: [
      makeNode('Layer', ['x', ...weights], ['h'], {}, { ...more, name: 'layers.0' }),
      makeNode('Layer', ['h', ...weights], ['g'], {}, { ...more, name: 'layers.1' }),
      makeNode('Twice', ['g'], ['z'], {}, { ...more, name: 'twice' }),
    ],
    initializers: graph.proto.initializer,
    functions: [inner, outer, other],
    opsets: { '': 17, 'pkg.torch': 1 },
  });
}
