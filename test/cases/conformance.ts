/** The ONNX opset-27 node cases of LinearAttention and CausalConvWithState (Apache-2.0, from onnx/onnx). */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { DType } from '../../ops/define.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import { ROOT } from '../support/models.js';
import { decode } from './tensors.js';

interface StoredTensor {
  dtype: DType;
  shape: number[];
  data: string;
}

interface StoredCase {
  name: string;
  node: {
    op_type: string;
    inputs: string[];
    outputs: string[];
    attributes: Record<string, number | string>;
  };
  inputs: Record<string, StoredTensor>;
  outputs: Record<string, StoredTensor>;
}

export interface ConformanceCase {
  readonly name: string;
  readonly opType: string;
  readonly attributes: Readonly<Record<string, number | string>>;
  readonly dtype: DType;
  readonly inputs: Readonly<Record<string, Tensor64>>;
  readonly outputs: Readonly<Record<string, Tensor64>>;
}

export const conformanceCases: readonly ConformanceCase[] = [
  ...load('linear_attention'),
  ...load('causal_conv_with_state'),
];

function load(op: string): ConformanceCase[] {
  const file = path.join(ROOT, 'test/fixtures/conformance', `${op}.json`);
  const { cases } = JSON.parse(readFileSync(file, 'utf8')) as { cases: StoredCase[] };
  return cases.map(({ name, node, inputs, outputs }) => ({
    name,
    opType: node.op_type,
    attributes: node.attributes,
    dtype: outputs.output.dtype,
    inputs: decodeAll(inputs),
    outputs: decodeAll(outputs),
  }));
}

function decodeAll(tensors: Record<string, StoredTensor>): Record<string, Tensor64> {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { dtype, shape, data }]) => [
      name,
      { shape, data: decode(Buffer.from(data, 'base64'), dtype) },
    ]),
  );
}
