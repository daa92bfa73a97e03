import type {
  AttributeProto,
  GraphProto,
  ModelProto,
  NodeProto,
  TensorProto,
  TypeProto,
} from '../../exporter/ir/proto.js';

/** A whole number in [0, n). */
export type Below = (n: number) => number;

/** Files that external data is made to point at; the folder of the model holds only those that start with `in`. */
export const EXTERNAL = { data: 'in.bin', sparse: 'in.sparse', link: 'in.link' } as const;

const NAMES = [
  '',
  '__proto__',
  'constructor',
  'toString',
  'x\ny',
  '\u0000',
  'ü😀',
  'n'.repeat(5000),
];
const INTEGERS = [
  0,
  1,
  -1,
  2,
  3,
  7,
  64,
  2 ** 31 - 1,
  -(2 ** 31),
  2 ** 31,
  2 ** 40,
  2 ** 53,
  -(2 ** 53),
  2 ** 62,
];
const LOCATIONS = [
  EXTERNAL.data,
  EXTERNAL.sparse,
  EXTERNAL.link,
  '../secret.bin',
  '..',
  '.',
  '',
  '/etc/passwd',
  '/dev/zero',
  'sub/../../secret.bin',
  './../model/in.bin',
  '..\\secret.bin',
  'file:///etc/passwd',
  'in.bin\u0000.onnx',
  'a'.repeat(5000),
];
const OFFSETS = [
  '0',
  '1',
  '-1',
  '4096',
  '18446744073709551615',
  '9007199254740993',
  '1e3',
  ' 0',
  'abc',
  '',
  'NaN',
  '0x10',
];
const OPS = [
  'Softmax',
  'MatMul',
  'Transpose',
  'Reshape',
  'Add',
  'Where',
  'Constant',
  'Identity',
  'If',
  'Loop',
  'Scan',
  'Concat',
  'Split',
  'Slice',
  'Attention',
  'MultiHeadAttention',
  'GroupQueryAttention',
  'LinearAttention',
  'CausalConvWithState',
  'HybridAttention',
  'WindowAttention',
  'Conv',
  'Shape',
  'Gather',
  'Expand',
  'Range',
  'Cast',
  '',
  'NoSuchOp',
];
/** Values of attributes of linear attention. */
const WORDS = [
  'linear',
  'gated',
  'delta',
  'gated_delta',
  'before',
  'after',
  'silu',
  'elu1',
  'softmax',
];
const HEADS = [
  'num_heads',
  'q_num_heads',
  'kv_num_heads',
  'update_rule',
  'num_scan_inputs',
  'group',
];
const DOMAINS = ['', 'ai.onnx', 'com.microsoft', 'com.fla', 'x'];

type Pick = <T>(from: readonly T[]) => T;

/** Everything of a model that a mutation may hit. */
interface Parts {
  graphs: GraphProto[];
  nodes: NodeProto[];
  tensors: TensorProto[];
  attributes: AttributeProto[];
  types: TypeProto[];
  names: string[];
}

function partsOf(model: ModelProto): Parts {
  const parts: Parts = { graphs: [], nodes: [], tensors: [], attributes: [], types: [], names: [] };
  const nodes = (list: NodeProto[], depth: number) => {
    for (const node of list) {
      parts.nodes.push(node);
      parts.names.push(...node.input, ...node.output);
      for (const a of node.attribute) {
        parts.attributes.push(a);
        if (a.t) parts.tensors.push(a.t);
        for (const g of [...(a.g ? [a.g] : []), ...(a.graphs ?? [])]) graph(g, depth + 1);
      }
    }
  };
  const graph = (g: GraphProto, depth: number) => {
    if (depth > 20) return;
    parts.graphs.push(g);
    parts.tensors.push(...g.initializer);
    parts.names.push(...g.initializer.map((t) => t.name ?? ''));
    for (const v of [...g.input, ...g.output, ...g.valueInfo]) if (v.type) parts.types.push(v.type);
    nodes(g.node, depth);
  };
  graph(model.graph, 0);
  for (const f of model.functions) nodes(f.node, 0);
  return parts;
}

type Mutation = (parts: Parts, pick: Pick, below: Below, model: ModelProto) => void;

const MUTATIONS: Readonly<Record<string, Mutation>> = {
  'a node is gone': ({ graphs }, pick, below) => {
    const { node } = pick(graphs);
    node.splice(below(node.length), 1);
  },
  'a node comes twice': ({ graphs }, pick, below) => {
    const { node } = pick(graphs);
    if (node.length) node.splice(below(node.length), 0, structuredClone(pick(node)));
  },
  'nodes change places': ({ graphs }, pick, below) => {
    const { node } = pick(graphs);
    const [i, j] = [below(node.length), below(node.length)];
    if (node.length) [node[i], node[j]] = [node[j]!, node[i]!];
  },
  'a node reads something else': ({ nodes, names }, pick, below) => {
    const { input } = pick(nodes);
    if (input.length) input[below(input.length)] = pick(names); // its own output at times: a cycle
  },
  'inputs change places': ({ nodes }, pick) => {
    pick(nodes).input.reverse();
  },
  'a node has fewer inputs': ({ nodes }, pick) => {
    pick(nodes).input.pop();
  },
  'a node has many inputs': ({ nodes, names }, pick, below) => {
    const { input } = pick(nodes);
    for (let i = below(2000); i >= 0; i--) input.push(pick(names));
  },
  'a node has fewer outputs': ({ nodes }, pick) => {
    pick(nodes).output.pop();
  },
  'an output has another name': ({ nodes, names }, pick, below) => {
    const { output } = pick(nodes);
    output[below(output.length + 1)] = below(2) ? pick(names) : pick(NAMES);
  },
  'an input has a strange name': ({ nodes }, pick, below) => {
    const { input } = pick(nodes);
    input[below(input.length + 1)] = pick(NAMES);
  },
  'a value has a strange name everywhere': ({ nodes, names, graphs }, pick) => {
    const [from, to] = [pick(names), pick(NAMES.slice(1))];
    const renamed = (list: string[]) =>
      list.forEach((name, i) => void (name === from && (list[i] = to)));
    for (const node of nodes) [node.input, node.output].forEach(renamed);
    for (const g of graphs) {
      for (const v of [...g.initializer, ...g.input, ...g.output]) if (v.name === from) v.name = to;
    }
  },
  'another operator': ({ nodes }, pick) => {
    const node = pick(nodes);
    node.opType = pick(OPS);
    node.domain = pick(DOMAINS);
  },
  'an attribute is gone': ({ nodes }, pick) => {
    pick(nodes).attribute.pop();
  },
  'an attribute of another node': ({ nodes, attributes }, pick) => {
    if (attributes.length) pick(nodes).attribute.push(structuredClone(pick(attributes)));
  },
  'an attribute has another value': ({ attributes }, pick, below) => {
    if (!attributes.length) return;
    const a = pick(attributes);
    const integers = () => Array.from({ length: below(6) }, () => pick(INTEGERS));
    const values: (() => Partial<AttributeProto>)[] = [
      () => ({ i: pick(INTEGERS) }),
      () => ({ ints: integers() }),
      () => ({ f: pick([0, -1, Number.NaN, Number.POSITIVE_INFINITY, 1e-38, 3e38]) }),
      () => ({ s: new TextEncoder().encode(pick(NAMES)) }),
      () => ({ s: new TextEncoder().encode(pick(WORDS)) }),
      () => ({ type: below(16) }),
      () => ({ name: pick([...NAMES, 'axis', 'perm', 'to', ...HEADS]) }),
      () => ({ t: {} as TensorProto }),
      () => ({ refAttrName: pick(NAMES) }),
    ];
    Object.assign(a, pick(values)());
  },
  'another element type': ({ types }, pick) => {
    const tensor = types.length ? pick(types).tensorType : undefined;
    if (tensor) tensor.elemType = pick([0, 1, 6, 7, 8, 9, 10, 11, 16, 20, 99]);
  },
  'another shape': ({ types }, pick, below) => {
    const tensor = types.length ? pick(types).tensorType : undefined;
    if (!tensor) return;
    if (below(4) === 0) delete tensor.shape;
    else {
      tensor.shape = {
        dim: Array.from({ length: below(9) }, () =>
          below(2) ? { dimValue: pick(INTEGERS) } : { dimParam: pick(NAMES) },
        ),
      };
    }
  },
  'no type': ({ graphs }, pick) => {
    const g = pick(graphs);
    for (const v of [...g.input, ...g.output]) delete v.type;
  },
  'a tensor has other dimensions': ({ tensors }, pick, below) => {
    if (tensors.length) pick(tensors).dims = Array.from({ length: below(9) }, () => pick(INTEGERS));
  },
  'a tensor has another type': ({ tensors }, pick) => {
    if (tensors.length) pick(tensors).dataType = pick([0, 1, 6, 7, 8, 9, 10, 11, 14, 16, 21, 99]);
  },
  'a tensor has less data': ({ tensors }, pick, below) => {
    const t = tensors.length ? pick(tensors) : undefined;
    if (t?.rawData?.length) t.rawData = t.rawData.subarray(0, below(t.rawData.length + 1));
  },
  'a tensor has data twice': ({ tensors }, pick) => {
    if (tensors.length)
      Object.assign(pick(tensors), { floatData: [1, 2], int64Data: [3], int32Data: [4] });
  },
  'a tensor lies in another file': ({ tensors }, pick, below) => {
    if (!tensors.length) return;
    const t = pick(tensors);
    if (below(2)) delete t.rawData;
    t.dataLocation = 1;
    const entries = [
      { key: 'location', value: pick(LOCATIONS) },
      { key: 'offset', value: pick(OFFSETS) },
      { key: 'length', value: below(2) ? pick(OFFSETS) : String(2 ** below(50)) },
    ];
    t.externalData = entries.filter(() => below(5) > 0);
  },
  'a large tensor lies in a sparse file': ({ tensors }, pick, below) => {
    if (!tensors.length) return;
    const t = pick(tensors);
    delete t.rawData;
    Object.assign(t, { dataLocation: 1, dataType: 1, dims: [2 ** below(12), 2 ** below(10)] });
    t.externalData = [{ key: 'location', value: EXTERNAL.sparse }];
  },
  'a weight is gone': ({ graphs }, pick, below) => {
    const { initializer } = pick(graphs);
    initializer.splice(below(initializer.length), 1);
  },
  'a graph in a graph in a graph': ({ graphs, names }, pick, below) => {
    const g = pick(graphs);
    let inner: GraphProto = {
      node: [],
      initializer: [],
      input: [],
      output: [{ name: pick(names) }],
      valueInfo: [],
    };
    for (let depth = below(40); depth >= 0; depth--) {
      const branch = (name: string): AttributeProto => ({ name, type: 5, g: inner });
      const node: NodeProto = {
        opType: pick(['If', 'Loop']),
        input: [pick(names)],
        output: [`nested_${depth}`],
        attribute: [branch('then_branch')],
      };
      if (depth < 4) node.attribute.push(branch('else_branch'), branch('body'));
      inner = {
        node: [node],
        initializer: [],
        input: [],
        output: [{ name: `nested_${depth}` }],
        valueInfo: [],
      };
    }
    g.node.push(...inner.node);
  },
  'a function that calls itself': ({ nodes }, pick, _below, model) => {
    const node = pick(nodes);
    Object.assign(node, { domain: 'x', opType: 'F' });
    model.functions.push({
      name: 'F',
      domain: 'x',
      input: [...node.input],
      output: [...node.output],
      attribute: [],
      node: [structuredClone(node)],
      opsetImport: [{ domain: '', version: 17 }],
    });
  },
  'another opset': (_parts, pick, below, model) => {
    model.opsetImport = Array.from({ length: below(3) }, () => ({
      domain: pick(DOMAINS),
      version: pick(INTEGERS),
    }));
  },
  'metadata of an earlier rewrite': (_parts, pick, _below, model) => {
    model.metadataProps = ['onnx_fla.state', 'onnx_fla.sites', 'onnx_fla.format'].map((key) => ({
      key,
      value: pick(['', '{', '[]', '{}', 'null', '[{"input":1}]', '[null]', '"x"', '9'.repeat(400)]),
    }));
  },
  'states of an earlier rewrite': ({ names, graphs }, pick, below, model) => {
    const g = graphs[0]!;
    const name = (of: readonly { name: string }[]) =>
      of.length && below(4) ? pick(of).name : pick(names.length ? names : NAMES);
    const states = Array.from({ length: 1 + below(3) }, () => ({
      ...{ past: name(g.input), present: name(g.output) },
      ...{
        shape: pick([['B', 4, 8], [1], [], [-1, 2 ** 53]]),
        dtype: pick(['float32', 'int64', 'x']),
      },
      in_place: below(2) === 0,
    }));
    model.metadataProps = [{ key: 'onnx_fla.state', value: JSON.stringify(states) }];
  },
  'outputs and inputs are swapped': ({ graphs }, pick) => {
    const g = pick(graphs);
    [g.input, g.output] = [g.output, g.input];
  },
};

/**
 * One to three changes that keep the file readable, in place: nodes, values, attributes, types, shapes, weights and where they
 * lie, nested graphs, functions, opsets, metadata. Returns what was done, for the report of a failure.
 */
export function mutateModel(model: ModelProto, below: Below): string {
  const pick: Pick = (from) => from[below(from.length)]!;
  const done: string[] = [];
  for (let left = 1 + below(3); left > 0; left--) {
    const name = pick(Object.keys(MUTATIONS));
    const parts = partsOf(model);
    if (parts.nodes.length === 0) break;
    try {
      MUTATIONS[name]!(parts, pick, below, model);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error; // a copy of what is nested too deep
    }
    done.push(name);
  }
  return done.join(', then ');
}
