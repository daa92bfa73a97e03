/** The small reader and writer of models against the rewriter's, on every model that there is, and on broken ones. */
import fs from 'node:fs';
import path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  FolderReader,
  type Graph,
  loadModel,
  type Model,
  modelBytes,
  type Node,
  parseModel,
  rewriteModel,
  saveModel,
  tensorBytes,
  tensorDims,
} from '../../exporter/index.js';
import {
  externalLocation,
  type TensorProto,
  toNumber,
  type ValueInfoProto,
  valueDims,
} from '../../exporter/ir/index.js';
import { FlaError } from '../../ops/error.js';
import {
  callKey,
  type OnnxModel,
  readModel,
  scalarAttributes,
  type ValueType,
} from '../../runtime/web/onnx/model.js';
import { MODEL_FILE, writePart } from '../../runtime/web/onnx/write.js';
import { random } from '../exporter/support/run.js';
import { OCR_DETECTOR, OCR_RECOGNISER, ROOT, TINYLM } from '../support/models.js';
import { mutate } from '../support/mutate.js';
import { gpuOnlyModel, hardModel, smallModel, tiedModel } from './support/calls.js';
import { GATED_DELTA, rewriteTinylm, temporaryFolder } from './support/models.js';

const folder = temporaryFolder();
afterAll(() => fs.rmSync(folder, { recursive: true }));

const TORCH = path.join(ROOT, 'test/fixtures/torch');
const exported = fs.readdirSync(TORCH).filter((name) => name.endsWith('.onnx'));
const inFolder = (name: string) => path.join(folder, name);

function write(name: string, model: Model): string {
  fs.writeFileSync(inFolder(name), modelBytes(model));
  return inFolder(name);
}

async function rewritten(source: string): Promise<string> {
  const model = loadModel(source);
  await rewriteModel(model, { variant: 'linear' });
  const file = inFolder(path.basename(source));
  saveModel(model, file);
  return file;
}

/** Every model of the fixtures, rewritten ones, and those of these tests. */
const MODELS: [name: string, file: () => string | Promise<string>][] = [
  ...exported.map((name): [string, () => string] => [name, () => path.join(TORCH, name)]),
  ['tinylm', () => TINYLM.model],
  ['tinylm with a cache', () => TINYLM.modelKv],
  ['PP-OCRv4 recogniser', () => OCR_RECOGNISER],
  ['PP-OCRv4 detector', () => OCR_DETECTOR],
  ['tinylm, rewritten', () => rewriteTinylm(folder, 'tinylm.onnx', GATED_DELTA)],
  ['PP-OCRv4 recogniser, rewritten', () => rewritten(OCR_RECOGNISER)],
  ['hard', () => write('hard.onnx', hardModel())],
  ['small', () => write('small.onnx', smallModel())],
  ['tied', () => write('tied.onnx', tiedModel())],
  ['gpu', () => write('gpu.onnx', gpuOnlyModel())],
];

/** A Constant node with a tensor counts as an initializer in the small reader. */
function held(node: Node): TensorProto | undefined {
  return node.is('Constant') ? node.tensor('value') : undefined;
}

function calls(nodes: Iterable<Node>): string[] {
  const keys = [...nodes].map(({ domain, opType, proto }) =>
    callKey(domain, opType, proto.overload ?? ''),
  );
  return [...new Set(keys)].sort();
}

/** What nested graphs read of the graphs around them. */
function captured(node: Node): string[] {
  const outside = (graph: Graph): string[] => {
    const own = new Set([
      ...graph.nodes.flatMap(({ outputs }) => outputs),
      ...graph.inputs.map(({ name }) => name),
      ...graph.proto.initializer.map(({ name }) => name),
    ]);
    const read = [
      ...graph.nodes.flatMap((inner) => [...inner.inputs, ...captured(inner)]),
      ...graph.outputs.map(({ name }) => name),
    ];
    return read.filter((value) => value !== '' && !own.has(value));
  };
  return [...new Set(node.subgraphs.flatMap(outside))].sort();
}

function theirNode(node: Node) {
  const { proto, domain, opType, inputs, outputs } = node;
  const below = node.subgraphs.flatMap((graph) => [...graph.walk()]);
  const values = proto.attribute.flatMap(({ name, type, f, i, s }) => {
    if (type === 1) return [[name, f]];
    if (type === 2) return [[name, toNumber(i)]];
    return type === 3 ? [[name, new TextDecoder().decode(s)]] : [];
  });
  return {
    op: opType,
    domain,
    overload: proto.overload ?? '',
    name: proto.name ?? '',
    inputs: [...inputs],
    outputs: [...outputs],
    captured: captured(node),
    calls: calls([node, ...below]),
    attributes: Object.fromEntries(values),
  };
}

function theirValue(info: ValueInfoProto) {
  return {
    name: info.name,
    type: info.type?.tensorType?.elemType ?? 0,
    shape: valueDims(info)?.map((size) => size ?? ''),
  };
}

function theirTensor(name: string, tensor: TensorProto) {
  const place = externalLocation(tensor);
  return {
    name,
    type: tensor.dataType,
    dims: tensorDims(tensor),
    external: place && { location: place.location, offset: place.offset },
  };
}

/** A model as the rewriter's reader sees it. */
function theirs({ graph, proto }: Model) {
  const constants = graph.nodes.flatMap((node) => {
    const tensor = held(node);
    return tensor ? [theirTensor(node.outputs[0], tensor)] : [];
  });
  const named = new Set(proto.graph.initializer.map(({ name }) => name));
  return {
    graphName: proto.graph.name ?? '',
    nodes: graph.nodes.filter((node) => !held(node)).map(theirNode),
    constants: [
      ...constants,
      ...proto.graph.initializer.map((tensor) => theirTensor(tensor.name!, tensor)),
    ].sort(byName),
    inputs: graph.inputs.filter(({ name }) => !named.has(name)).map(theirValue),
    outputs: graph.outputs.map(theirValue),
    infos: proto.graph.valueInfo.map(theirValue),
    functions: proto.functions.map((fn) => callKey(fn.domain ?? '', fn.name, fn.overload ?? '')),
    metadata: Object.fromEntries(proto.metadataProps.map(({ key, value }) => [key, value])),
  };
}

/** The same as the small reader sees it. */
function ours(model: OnnxModel) {
  const value = ({ name, type, shape }: ValueType) => ({ name, type, shape });
  return {
    graphName: model.graphName,
    nodes: model.nodes.map((node) => {
      const { op, domain, overload, name, inputs, outputs } = node;
      const sets = { captured: [...node.captured].sort(), calls: [...node.calls].sort() };
      const attributes = scalarAttributes(node);
      return { op, domain, overload, name, inputs, outputs, ...sets, attributes };
    }),
    constants: [...model.initializers.values()]
      .map(({ name, type, dims, external }) => ({ name, type, dims, external }))
      .sort(byName),
    inputs: model.inputs.map(value),
    outputs: model.outputs.map(value),
    infos: [...model.infos.values()].map(value),
    functions: [...model.functions.keys()],
    metadata: model.metadata,
  };
}

/** As JSON, in which it is all the same what kind of array bytes lie in. */
function messages({ proto }: Model, nodes: readonly Node[]): unknown {
  const { opsetImport, functions } = proto;
  return JSON.parse(
    JSON.stringify({ nodes: nodes.map((node) => node.proto), opsetImport, functions }),
  );
}

function byName(a: { name: string }, b: { name: string }): number {
  return a.name < b.name ? -1 : 1;
}

describe.each(MODELS)('%s', (_, make) => {
  it('is read alike, and written whole', async () => {
    const file = await make();
    const bytes = new Uint8Array(fs.readFileSync(file));
    const model = loadModel(file);
    const small = readModel(bytes);
    expect(ours(small)).toEqual(theirs(model));

    const { nodes, inputs, outputs } = small;
    const initializers = [...small.initializers.values()];
    const again = parseModel(writePart({ nodes, initializers, inputs, outputs }, small));
    const kept = model.graph.nodes.filter((node) => !held(node));
    expect(messages(again, again.graph.nodes)).toEqual(messages(model, kept));
    // Large tensors became references into the model's own bytes.
    const beside = new FolderReader(path.dirname(file));
    const places = {
      read: (location: string, offset: number, length: number | undefined) =>
        location === MODEL_FILE
          ? bytes.subarray(offset, offset + length!)
          : beside.read(location, offset, length),
    };
    for (const tensor of again.proto.graph.initializer) {
      const source = model.graph.constant(tensor.name!)!;
      const same = Buffer.compare(tensorBytes(tensor, places), tensorBytes(source, beside)) === 0;
      expect(same, tensor.name).toBe(true);
    }
  });
});

it('broken models are read, or refused with an error that says why', () => {
  const next = random(20261);
  const below = (n: number) => Math.min(n - 1, Math.floor(((next() + 1) / 2) * n));
  const COUNT = 500;
  let read = 0;
  for (let i = 0; i < COUNT; i++) {
    const name = exported[below(exported.length)];
    const bytes = mutate(fs.readFileSync(path.join(TORCH, name)), below);
    try {
      const model = readModel(bytes);
      const { nodes, inputs, outputs } = model;
      writePart({ nodes, initializers: [...model.initializers.values()], inputs, outputs }, model);
      read++;
    } catch (error) {
      if (!(error instanceof FlaError)) throw new Error(`mutation ${i}, ${name}`, { cause: error });
      expect(error.code).toBe('invalid_model');
    }
  }
  expect(read).toBeGreaterThan(COUNT / 10);
});
