/**
 * Runs one LinearAttention body once in a process of its own and prints by how much that raised the peak resident memory:
 * `{"inputs": bytes, "peak": bytes, "ms": number}`. Arguments: T, update_rule, `head` or `key`, target.
 */
import { readFileSync } from 'node:fs';
import * as ort from 'onnxruntime-node';
import { modelBytes } from '../../exporter/ir/index.js';
import { checkAttributes } from '../../ops/define.js';
import type { FunctionTarget } from '../../ops/function/define.js';
import { linearAttentionFunction } from '../../ops/linear_attention/function.js';
import { linearAttention, type UpdateRule } from '../../ops/linear_attention/schema.js';
import { siteModel } from './function_support.js';

const [length, rule, decayKind, target] = process.argv.slice(2);
const T = Number(length);
const H = 8;
const D = 64;
const attributes = checkAttributes(linearAttention, {
  q_num_heads: H,
  kv_num_heads: H,
  update_rule: rule as UpdateRule,
});
const widths = {
  query: H * D,
  key: H * D,
  value: H * D,
  ...(rule.startsWith('gated') && { decay: decayKind === 'key' ? H * D : H }),
  ...(rule.endsWith('delta') && { beta: H }),
};
const body = linearAttentionFunction(
  {
    attributes,
    present: {
      past_state: false,
      decay: 'decay' in widths,
      beta: 'beta' in widths,
      mask: false,
    },
    decayKind: decayKind as 'head' | 'key',
    betaKind: 'head',
    dtype: 'float32',
    stateDtype: 'float32',
    opset: 17,
  },
  { target: target as FunctionTarget },
);

const names = Object.keys(widths);
const site = {
  op: linearAttention,
  attributes,
  types: Object.fromEntries(names.map((name) => [name, 'float32' as const])),
  inputs: Object.fromEntries(
    names.map((name) => [name, { shape: [1, T, 1], data: new Float64Array() }]),
  ),
};
const session = await ort.InferenceSession.create(modelBytes(siteModel(site, body)), {
  logSeverityLevel: 3,
  intraOpNumThreads: 2,
});
const feeds = Object.fromEntries(
  Object.entries(widths).map(([name, width]) => [
    name,
    new ort.Tensor('float32', new Float32Array(T * width).fill(-0.01), [1, T, width]),
  ]),
);

const before = peakBytes();
const start = performance.now();
await session.run(feeds);
const ms = Math.round(performance.now() - start);
const inputs = Object.values(widths).reduce((sum, width) => sum + 4 * T * width, 0);
console.log(JSON.stringify({ inputs, peak: peakBytes() - before, ms }));

function peakBytes(): number {
  return 1024 * Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
}
