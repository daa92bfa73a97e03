/** com.microsoft.LinearAttention in onnxruntime-web's WebGPU execution provider, on our device and on our buffers. */
import * as ort from 'onnxruntime-web/webgpu';
import { buildModel, makeNode, modelBytes, type ValueSpec } from '../../exporter/ir/index.js';

export interface Shape {
  readonly rule: string;
  readonly T: number;
  readonly H: number;
  readonly d: number;
  readonly dtype: 'float32' | 'float16';
}

const usesDecay = (rule: string): boolean => rule.startsWith('gated');
const usesBeta = (rule: string): boolean => rule.endsWith('delta');

/** Names and shapes of a call's tensors, batch 1. */
export function tensorShapes({ rule, T, H, d }: Shape): Record<string, number[]> {
  return {
    query: [1, T, H * d],
    key: [1, T, H * d],
    value: [1, T, H * d],
    past_state: [1, H, d, d],
    ...(usesDecay(rule) && { decay: [1, T, H] }),
    ...(usesBeta(rule) && { beta: [1, T, H] }),
    output: [1, T, H * d],
    present_state: [1, H, d, d],
  };
}

export interface Peer {
  run(): Promise<unknown>;
  release(): Promise<void>;
}

export async function openPeer(
  device: GPUDevice,
  shape: Shape,
  buffers: Readonly<Record<string, GPUBuffer>>,
): Promise<Peer> {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = 'error';
  const shapes = tensorShapes(shape);
  const spec = (name: string): ValueSpec => [shape.dtype, shapes[name]!];
  const outputs = ['output', 'present_state'];
  const inputs = Object.keys(shapes).filter((name) => !outputs.includes(name));
  const model = buildModel({
    inputs: Object.fromEntries(inputs.map((name) => [name, spec(name)])),
    outputs: Object.fromEntries(outputs.map((name) => [name, spec(name)])),
    nodes: [
      makeNode(
        'LinearAttention',
        ['query', 'key', 'value', 'past_state', 'decay', 'beta'].map((name) =>
          inputs.includes(name) ? name : '',
        ),
        outputs,
        {
          q_num_heads: shape.H,
          kv_num_heads: shape.H,
          update_rule: shape.rule,
          scale: { float: 0 },
        },
        { domain: 'com.microsoft' },
      ),
    ],
    opsets: { '': 17, 'com.microsoft': 1 },
  });
  const session = await ort.InferenceSession.create(modelBytes(model), {
    executionProviders: [
      { name: 'webgpu', device } as ort.InferenceSession.WebGpuExecutionProviderOption,
    ],
    preferredOutputLocation: 'gpu-buffer',
    logSeverityLevel: 3,
  });
  const tensor = (name: string) =>
    ort.Tensor.fromGpuBuffer(buffers[name]! as never, {
      dataType: shape.dtype,
      dims: shapes[name]!,
    });
  const named = (names: string[]) => Object.fromEntries(names.map((name) => [name, tensor(name)]));
  const [feeds, fetches] = [named(inputs), named(outputs)];
  return { run: () => session.run(feeds, fetches), release: () => session.release() };
}
