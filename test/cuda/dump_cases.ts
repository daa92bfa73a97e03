/**
 * Writes the shared LinearAttention cases, each in float32 and in one of the 16-bit combinations of types in turn, to a
 * file that the CUDA harness reads:
 *   npx tsx test/cuda/dump_cases.ts cases.bin
 * Per case: name, sizes and options as int32, scale as float32, then ten tensors (int64 byte count or -1, bytes): the eight
 * inputs in their own types, output and present_state expected by the float64 reference, as float32.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import type { DType } from '../../ops/define.js';
import {
  type CaseTypes,
  dtypeOf,
  expectedOf,
  inputsIn,
  type LinearAttentionCase,
  linearAttentionCases,
  typesOf,
} from '../cases/linear_attention.js';
import { encode } from '../cases/tensors.js';

const MAX_HEAD_SIZE = 256;
const rules = ['linear', 'gated', 'delta', 'gated_delta'];
const featureMaps = ['identity', 'elu1', 'relu', 'exp', 'silu', 'l2norm', 'softmax'];
const reads = ['after', 'before', 'bonus'];
const dtypes: DType[] = ['float32', 'float16', 'bfloat16', 'bool'];
const inputNames = ['query', 'key', 'value', 'past_state', 'decay', 'beta', 'mask', 'bonus'];

function int32(...values: number[]): Uint8Array {
  return new Uint8Array(Int32Array.from(values).buffer);
}

function tensor(bytes: Uint8Array | undefined): Uint8Array[] {
  const size = new Uint8Array(BigInt64Array.of(BigInt(bytes?.length ?? -1)).buffer);
  return bytes ? [size, bytes] : [size];
}

function record(testCase: LinearAttentionCase, types: CaseTypes): Uint8Array[] {
  const { attributes, sizes, decay, beta } = testCase;
  const inputs = inputsIn(testCase, types);
  const expected = expectedOf(testCase, inputs);
  const name = new TextEncoder().encode(testCase.name);
  const options = [
    rules.indexOf(attributes.update_rule ?? 'gated_delta'),
    featureMaps.indexOf(attributes.feature_map ?? 'identity'),
    reads.indexOf(attributes.read ?? 'after'),
    attributes.causal ?? 1,
    attributes.normalize ?? 0,
    attributes.qk_l2norm ?? 0,
    decay ? (decay.per === 'head' ? 1 : 2) : 0,
    beta ? (beta === 'head' ? 1 : 2) : 0,
    ...[types.T, types.S, types.TD, types.TB, types.M, types.TU].map((type) =>
      dtypes.indexOf(type),
    ),
  ];
  const { B, T, HQ, HK, HV, K, V } = sizes;
  return [
    int32(name.length),
    name,
    int32(B, T, HQ, HK, HV, K, V, ...options),
    new Uint8Array(Float32Array.of(attributes.scale ?? 0).buffer),
    ...inputNames.flatMap((input) => {
      const value = inputs[input as keyof typeof inputs];
      return tensor(value && encode(value.data, dtypeOf(input, types)));
    }),
    ...tensor(encode(expected.output.data, 'float32')),
    ...tensor(encode(expected.presentState.data, 'float32')),
  ];
}

const path = process.argv[2];
if (!path) throw new Error('usage: dump_cases.ts <file>');
const file = openSync(path, 'w');
let count = 0;
for (const [i, testCase] of linearAttentionCases.entries()) {
  if (Math.max(testCase.sizes.K, testCase.sizes.V) > MAX_HEAD_SIZE) continue;
  const [float32, ...halves] = typesOf(testCase);
  for (const types of [float32, halves[i % halves.length]]) {
    for (const part of record(testCase, types)) writeSync(file, part);
    count += 1;
  }
}
closeSync(file);
console.log(`${count} cases`);
