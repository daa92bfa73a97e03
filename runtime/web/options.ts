import type { InferenceSession } from 'onnxruntime-web';
import { FlaError } from '../../ops/error.js';
import type { FlaProviderOption, WebProviderOption } from '../common/provider.js';

export type { WebProviderOption as FlaExecutionProviderOption } from '../common/provider.js';

declare module 'onnxruntime-web' {
  namespace InferenceSession {
    interface ExecutionProviderOptionMap {
      fla: FlaProviderOption;
    }
  }
}

/** Everything `ort.InferenceSession.create` takes. */
export type SessionOptions = InferenceSession.SessionOptions;

/** The `fla` entry of `executionProviders`. */
export function flaProvider(options: SessionOptions): WebProviderOption {
  for (const provider of options.executionProviders ?? []) {
    if (typeof provider !== 'string' && provider.name === 'fla')
      return provider as WebProviderOption;
  }
  return { name: 'fla' };
}

/** @throws FlaError `invalid_argument` for a device that is none */
export function checkProvider({ device, kernels }: WebProviderOption): void {
  const isDevice = typeof device === 'object' && typeof device?.createBuffer === 'function';
  if (device !== undefined && device !== 'wasm' && !isDevice) {
    throw new FlaError(
      'invalid_argument',
      `session options: device must be a GPUDevice or 'wasm', received ${String(device)}`,
    );
  }
  if (kernels === undefined || typeof kernels === 'boolean') return;
  throw new FlaError(
    'invalid_argument',
    `session options: kernels must be true or false, received ${String(kernels)}`,
  );
}

/** Options of ONNX Runtime's WebGPU provider for sessions on `device`. */
export function webgpuProvider(
  { name: _, device: __, kernels: ___, ...rest }: WebProviderOption,
  device: GPUDevice,
): InferenceSession.WebGpuExecutionProviderOption {
  return { ...rest, name: 'webgpu', device };
}

/**
 * The caller's options as far as they make sense for a part of the model. ONNX Runtime warns of every node that it puts on the
 * host, which is what happens to shapes: by default it is not heard.
 */
export function partOptions(options: SessionOptions): SessionOptions {
  const {
    executionProviders: _,
    externalData: __,
    preferredOutputLocation: ___,
    optimizedModelFilePath: ____,
    enableGraphCapture: _____,
    ...rest
  } = options;
  return { logSeverityLevel: 3, ...rest };
}

/** The outputs, by name, that stay on the GPU. */
export function outputsOnGpu({
  preferredOutputLocation: preferred,
}: SessionOptions): (name: string) => boolean {
  if (preferred === undefined) return () => false;
  for (const place of typeof preferred === 'string' ? [preferred] : Object.values(preferred)) {
    if (place !== 'cpu' && place !== 'gpu-buffer') {
      throw new FlaError(
        'invalid_argument',
        `session options: preferredOutputLocation must be 'cpu' or 'gpu-buffer', received ${place}`,
      );
    }
  }
  return (name) => (typeof preferred === 'string' ? preferred : preferred[name]) === 'gpu-buffer';
}
