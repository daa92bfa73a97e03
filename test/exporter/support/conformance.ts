/** The nodes of ONNX's conformance cases as models. */
import {
  buildModel,
  DATA_TYPE,
  type Model,
  makeNode,
  type ValueSpec,
} from '../../../exporter/index.js';
import type { ConformanceCase } from '../../cases/conformance.js';

const NAMES = {
  LinearAttention: ['query', 'key', 'value', 'past_state', 'decay', 'beta'],
  CausalConvWithState: ['input', 'weight', 'bias', 'past_state'],
} as const;
export const OUTPUTS = ['output', 'present_state'];

/** One node in the type of the case; inputs and outputs of the model are float32, their dimensions open unless `fixed`. */
export function modelOf(c: ConformanceCase, domain: string, opset: number, fixed = true): Model {
  const names = NAMES[c.opType as keyof typeof NAMES];
  const inputs: Record<string, ValueSpec> = {};
  for (const [name, { shape }] of Object.entries(c.inputs)) {
    inputs[name] = ['float32', shape.map((d, i) => (fixed || i === 2 ? d : `${name}_${i}`))];
  }
  const to = { to: DATA_TYPE[c.dtype as 'float32'] };
  const given = names.map((name) => (c.inputs[name] ? `${name}/typed` : ''));
  const values = Object.entries(c.attributes).map(([name, value]) => [
    name,
    name === 'scale' ? { float: value as number } : value,
  ]);
  return buildModel({
    inputs,
    outputs: { output: ['float32'], present_state: ['float32'] },
    nodes: [
      ...Object.keys(c.inputs).map((name) => makeNode('Cast', [name], [`${name}/typed`], to)),
      makeNode(
        c.opType,
        given,
        OUTPUTS.map((o) => `${o}/typed`),
        Object.fromEntries(values),
        { domain, name: 'node' },
      ),
      ...OUTPUTS.map((o) => makeNode('Cast', [`${o}/typed`], [o], { to: DATA_TYPE.float32 })),
    ],
    opsets: { '': opset, ...(domain && { [domain]: 1 }) },
  });
}
