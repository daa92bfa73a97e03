/** ONNX Runtime and onnx-fla: the smaller bundle where the browser can suspend WebAssembly, the other one elsewhere. */
import type * as Web from '../../../../runtime/web/exports.js';
import type { Ort } from '../../../../runtime/web/ort.js';
import type { DeviceFacts } from '../protocol.js';

export interface Runtime {
  readonly ort: Ort;
  readonly fla: typeof Web;
}

async function load(): Promise<Runtime> {
  if ('Suspending' in WebAssembly) {
    const [ort, fla] = await Promise.all([
      import('onnxruntime-web/jspi'),
      import('../../../../runtime/web/jspi.js'),
    ]);
    return { ort, fla };
  }
  const [ort, fla] = await Promise.all([
    import('onnxruntime-web/webgpu'),
    import('../../../../runtime/web/index.js'),
  ]);
  return { ort, fla };
}

let loading: Promise<Runtime> | undefined;

export function runtime(): Promise<Runtime> {
  loading ??= load().then((loaded) => {
    loaded.ort.env.logLevel = 'error';
    return loaded;
  });
  return loading;
}

/** What the browser says about its GPU. */
export async function deviceFacts(): Promise<DeviceFacts> {
  const threads = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return { webgpu: false, name: '', threads };
  const { vendor, architecture, device, description } = adapter.info;
  const name = [vendor, architecture || device].filter(Boolean).join(' ') || description || 'GPU';
  return { webgpu: true, name, threads };
}
