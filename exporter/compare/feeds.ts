import { Float16Array } from '@petamoriken/float16';
import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { RowLengths, TOLD } from '../../runtime/common/row_lengths.js';
import type { Model } from '../ir/index.js';
import { normal, seededRandom } from '../random.js';

/** A model input as ONNX Runtime describes it; named dimensions are strings. */
export interface TensorInput {
  name: string;
  type: string;
  shape: readonly (number | string)[];
}

/** The tensor inputs (or outputs) of a session. @throws FlaError `unsupported` for sequences and maps */
export function tensorInputs(
  metadata: readonly Ort.InferenceSession.ValueMetadata[],
): TensorInput[] {
  return metadata.map((m) => {
    if (!m.isTensor) {
      throw new FlaError(
        'unsupported',
        `input '${m.name}' must be a tensor, received another type`,
      );
    }
    return { name: m.name, type: m.type, shape: m.shape };
  });
}

/** How long and how large the inputs are to be. */
export interface FeedOptions {
  /** What every dimension gets that is neither a batch nor a past length. */
  length: number;
  /** Lengths of named dimensions; they win over everything else. */
  dims?: Readonly<Record<string, number>>;
  seed?: number;
  /** Names of inputs that carry state from run to run; they start empty, or as zeros. */
  state?: ReadonlySet<string>;
  /** Ids of integer inputs are drawn below this, by input name. */
  vocabularies?: ReadonlyMap<string, number>;
}

/** Is it an image, [N, C, H, W] with one or three channels? */
export function isImage(input: TensorInput): boolean {
  return input.shape.length === 4 && (input.shape[1] === 3 || input.shape[1] === 1);
}

/** The length that suits a model when the caller gives none: pixels for images, tokens otherwise. */
export function defaultLength(inputs: readonly TensorInput[]): number {
  return inputs.some(isImage) ? 320 : 128;
}

/** The shape an input gets. Axis 0 is a batch of one; `past` lengths are 0; the rest is `length`. */
export function inputShape(input: TensorInput, options: FeedOptions): number[] {
  return input.shape.map((dim, axis) => {
    if (typeof dim === 'number' && dim >= 0) return dim;
    const given = options.dims?.[String(dim)];
    if (given !== undefined) return given;
    const isState = options.state?.has(input.name) ?? false;
    if (axis === 0 && (isState || input.shape.length > 1)) return 1;
    if (isState || /past/i.test(String(dim))) return 0;
    return options.length;
  });
}

/**
 * Random inputs for a model. A value depends on the seed and the input's own name only, so that two
 * models receive the same data where their inputs agree.
 */
export function makeFeeds(
  ort: typeof Ort,
  inputs: readonly TensorInput[],
  options: FeedOptions,
): Record<string, Ort.Tensor> {
  const feeds: Record<string, Ort.Tensor> = {};
  const count = tokenCount(inputs, options);
  for (const input of inputs) {
    if (LENGTHS.has(input.name)) {
      const rows = new RowLengths(1);
      const { dims, at } = rows.told(input.name, input.shape.length, { past: 0, count });
      feeds[input.name] = numberTensor(ort, input.type, [at(0)], dims);
      continue;
    }
    const dims = inputShape(input, options);
    const size = dims.reduce((a, b) => a * b, 1);
    const values = options.state?.has(input.name)
      ? new Array<number>(size).fill(0)
      : drawValues(input, size, dims.at(-1) ?? 1, options);
    feeds[input.name] = numberTensor(ort, input.type, values, dims);
  }
  return feeds;
}

/** Inputs with one number for each row, or one for all. */
const LENGTHS = new Set(
  [...TOLD].filter((name) => !/^(attention_mask|position_ids|cache_position)$/.test(name)),
);

/** Is it, by its name, an input of token ids? */
export function isTokenIds(name: string): boolean {
  return /^(input_?ids|tokens|ids)$/i.test(name);
}

/** New tokens in a call, as the first input of token ids has them. */
function tokenCount(inputs: readonly TensorInput[], options: FeedOptions): number {
  const ids = inputs.find((i) => isTokenIds(i.name) && i.shape.length === 2);
  return ids ? inputShape(ids, options)[1]! : options.length;
}

function drawValues(
  input: TensorInput,
  size: number,
  lastDim: number,
  options: FeedOptions,
): number[] {
  const random = seededRandom(nameSeed(input.name, options.seed ?? 0));
  const make = (value: (i: number) => number) => Array.from({ length: size }, (_, i) => value(i));
  if (input.type === 'bool') return make(() => 0);
  if (/float|double/.test(input.type)) return make(() => normal(random));
  if (/mask/i.test(input.name)) return make(() => 1);
  if (/position/i.test(input.name)) return make((i) => i % lastDim);
  const vocabulary = options.vocabularies?.get(input.name) ?? 1;
  if (/type|segment/i.test(input.name)) return make(() => 0);
  return make(() => Math.floor(random() * vocabulary));
}

function nameSeed(name: string, seed: number): number {
  let hash = seed;
  for (const char of name) hash = (Math.imul(hash, 31) + char.codePointAt(0)!) | 0;
  return hash;
}

/** A tensor of any numeric type from plain numbers. @throws FlaError `unsupported` for other types */
export function numberTensor(
  ort: typeof Ort,
  type: string,
  values: readonly number[],
  dims: readonly number[],
): Ort.Tensor {
  switch (type) {
    case 'float32':
      return new ort.Tensor('float32', Float32Array.from(values), dims);
    case 'float64':
      return new ort.Tensor('float64', Float64Array.from(values), dims);
    case 'float16':
      return new ort.Tensor('float16', toHalf(values), dims);
    case 'int64':
      return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), dims);
    case 'int32':
      return new ort.Tensor('int32', Int32Array.from(values), dims);
    case 'uint8':
      return new ort.Tensor('uint8', Uint8Array.from(values), dims);
    case 'int8':
      return new ort.Tensor('int8', Int8Array.from(values), dims);
    case 'bool':
      return new ort.Tensor('bool', Uint8Array.from(values), dims);
    default:
      throw new FlaError('unsupported', `inputs of type ${type} cannot be made up`);
  }
}

function toHalf(values: readonly number[]): Uint16Array {
  return new Uint16Array(Float16Array.from(values).buffer);
}

/** A tensor's elements as numbers, whatever its type. */
export function tensorValues(tensor: Ort.Tensor): ArrayLike<number> {
  const { data, type } = tensor;
  if (type === 'float16' && data instanceof Uint16Array) {
    return Float32Array.from(new Float16Array(data.buffer, data.byteOffset, data.length));
  }
  if (data instanceof BigInt64Array || data instanceof BigUint64Array) {
    return Float64Array.from(data as BigInt64Array, Number);
  }
  return data as Float32Array;
}

/** The sizes of the embedding tables that integer inputs index, by input name. */
export function inputVocabularies(model: Model): Map<string, number> {
  const found = new Map<string, number>();
  for (const { name = '' } of model.graph.inputs) {
    const size = embeddingRows(model, name);
    if (size !== undefined) found.set(name, size);
  }
  return found;
}

const PASS_THROUGH = new Set(['Cast', 'Identity', 'Reshape', 'Unsqueeze', 'Squeeze', 'Flatten']);

function embeddingRows(model: Model, input: string): number | undefined {
  const pending = [input];
  for (let i = 0; i < pending.length; i++) {
    for (const { node, index } of model.graph.uses(pending[i]!)) {
      if (node.is('Gather') && index === 1) {
        const dim = constantDims(model, node.inputs[0]!)?.[node.int('axis') ?? 0];
        if (typeof dim === 'number') return dim;
      }
      if (PASS_THROUGH.has(node.opType) && index === 0) pending.push(node.outputs[0]!);
    }
  }
  return undefined;
}

/** The shape of a constant, or of one that is only converted (stored as float16, used as float32). */
function constantDims(model: Model, value: string): readonly unknown[] | undefined {
  if (model.graph.constant(value)) return model.graph.dims(value);
  const node = model.graph.producer(value);
  const converts = node?.is('Cast') || node?.is('DequantizeLinear');
  return converts ? constantDims(model, node!.inputs[0]!) : undefined;
}
