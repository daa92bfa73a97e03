import type { Node } from '../ir/index.js';
import type { TokenLoop } from './token_loop.js';

/** A Scan as a loop over tokens, or why it is none. */
export function readScan(node: Node): TokenLoop[] | string {
  const opset = node.graph.model.opset() ?? 1;
  const [body] = node.subgraphs;
  const count = node.int('num_scan_inputs');
  if (!body || opset < 9 || count === undefined) return 'it is no Scan of opset 9 or later';
  const states = node.inputs.length - count;
  if (states !== 1 || node.outputs.length !== 2 || !node.outputs[1]) {
    return `it must have one state and one output a token, received ${states} and ${node.outputs.length - states}`;
  }
  const directions = [
    ...(node.ints('scan_input_directions') ?? []),
    ...(node.ints('scan_output_directions') ?? []),
  ];
  if (directions.some((d) => d !== 0)) return 'it runs backwards';
  const axes = node.ints('scan_input_axes') ?? [];
  const [initial, ...values] = node.inputs as [string, ...string[]];
  const [before, ...names] = body.inputs.map((i) => i.name) as [string, ...string[]];
  const [after, output] = body.outputs.map((o) => o.name) as [string, string];
  return [
    {
      node,
      body,
      state: { initial, final: node.outputs[0] ?? '', before, after },
      tokens: values.map((value, i) => ({
        value,
        axis: axes[i] ?? 0,
        name: names[i]!,
        kept: false,
      })),
      output: {
        kind: 'stack',
        value: output,
        result: node.outputs[1],
        axis: node.ints('scan_output_axes')?.[0] ?? 0,
      },
      ...{ again: [], steps: [], counters: [], reads: [], same: [] },
    },
  ];
}
