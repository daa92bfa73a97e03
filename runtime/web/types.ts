import type { InferenceSession } from 'onnxruntime-web';
import { FlaError } from '../../ops/error.js';
import { dtypeCode } from '../common/dtypes.js';
import { toFlaError } from '../common/errors.js';
import type { OnnxModel } from './onnx/model.js';
import { type TypedValue, writePart } from './onnx/write.js';
import { ort } from './ort.js';
import { ancestors } from './partition.js';

/** How onnxruntime-web writes a size that it does not know. */
const UNKNOWN_SIZE = 2 ** 32 - 1;

/** Types and, as far as they are known, shapes by name. */
export type Types = ReadonlyMap<string, TypedValue>;

function outputType(info: InferenceSession.ValueMetadata): TypedValue {
  const { name } = info;
  if (!info.isTensor) return { name, type: 0 };
  // No sizes: a scalar, or nothing is known.
  const shape = info.shape.length
    ? info.shape.map((size) => (size === UNKNOWN_SIZE ? '' : size))
    : undefined;
  return { name, type: dtypeCode(info.type), shape };
}

type Providers = NonNullable<InferenceSession.SessionOptions['executionProviders']>;

/** What ONNX Runtime says of a model's outputs; the next providers are tried where some node runs on none of these. */
async function askFor(
  model: Uint8Array,
  [first, ...others]: readonly Providers[],
): Promise<readonly InferenceSession.ValueMetadata[]> {
  try {
    const session = await ort().InferenceSession.create(model, {
      executionProviders: first,
      graphOptimizationLevel: 'disabled',
      logSeverityLevel: others.length > 0 ? 4 : 3,
    });
    const { outputMetadata } = session;
    await session.release();
    return outputMetadata;
  } catch (thrown) {
    if (others.length > 0) return askFor(model, others);
    throw toFlaError(thrown);
  }
}

/**
 * Finds the types of inner values by asking ONNX Runtime: it loads the part of the model that makes them, without its
 * large constants, for which inputs stand in.
 *
 * @param providers What to try one after the other.
 * @throws FlaError when ONNX Runtime does not take the model
 */
export async function findTypes(
  model: OnnxModel,
  values: readonly string[],
  providers: readonly Providers[] = [['wasm']],
): Promise<Types> {
  const types = new Map<string, TypedValue>();
  for (const input of model.inputs) types.set(input.name, input);
  for (const { name, type, dims } of model.initializers.values())
    types.set(name, { name, type, shape: dims });
  const unknown = values.filter((value) => !types.has(value));
  if (unknown.length === 0) return types;
  const { nodes, initializers } = ancestors(model, unknown);
  const isLarge = ({ data, external }: (typeof initializers)[number]) =>
    data !== undefined || external !== undefined;
  const part = writePart(
    {
      nodes,
      initializers: initializers.filter((constant) => !isLarge(constant)),
      inputs: [
        ...model.inputs,
        ...initializers
          .filter(isLarge)
          .map(({ name, type, dims }) => ({ name, type, shape: dims })),
      ],
      outputs: unknown.map((name) => ({ name, type: 0 })),
    },
    model,
  );
  for (const info of await askFor(part, providers)) types.set(info.name, outputType(info));
  const missing = unknown.find((value) => types.get(value)?.type === 0);
  if (missing === undefined) return types;
  throw new FlaError(
    'unsupported',
    `Session: value '${missing}', where the model is cut, must be a tensor; it is a sequence, a map or an optional`,
  );
}
