/** A GPUDevice where the types of WebGPU are known. */
type Device = typeof globalThis extends { GPUDevice: { prototype: infer D } } ? D : object;

type CacheMode = 'disabled' | 'lazyRelease' | 'simple' | 'bucket';

/** `{ name: 'fla', ... }` in `executionProviders` of onnxruntime-node. */
export interface NodeProviderOption {
  readonly name: 'fla';
  /**
   * Default `cpu`. `cuda` needs an onnxruntime-node that was installed with its CUDA libraries, and for the kernels of
   * com.fla an operator library built with CUDA.
   */
  readonly device?: 'cpu' | 'cuda';
  /** Which GPU; default 0. */
  readonly deviceId?: number;
  /**
   * The operator library: a path, or `false` for none, in which case the function bodies in the model are run. Default: the
   * one this package builds.
   */
  readonly library?: string | false;
  /** Folder of the external data of a model that is given as bytes. */
  readonly modelFolder?: string;
  /** Further options of ONNX Runtime's CUDA execution provider, by the names in its documentation. */
  readonly cuda?: Readonly<Record<string, string | number | boolean>>;
}

/** `{ name: 'fla', ... }` in `executionProviders` of onnxruntime-web. */
export interface WebProviderOption {
  readonly name: 'fla';
  /**
   * The device that everything runs on. Default: one that all sessions share, with what the adapter has. `'wasm'` keeps away from
   * the GPU: function bodies run on the CPU.
   */
  readonly device?: Device | 'wasm';
  /** `false`: function bodies in place of our kernels, the whole model in one session of ONNX Runtime on the GPU. */
  readonly kernels?: boolean;
  // Options of ONNX Runtime's WebGPU provider, which they are handed to.
  readonly preferredLayout?: 'NCHW' | 'NHWC';
  readonly forceCpuNodeNames?: readonly string[];
  readonly validationMode?: 'disabled' | 'wgpuOnly' | 'basic' | 'full';
  readonly storageBufferCacheMode?: CacheMode;
  readonly uniformBufferCacheMode?: CacheMode;
  readonly queryResolveBufferCacheMode?: CacheMode;
  readonly defaultBufferCacheMode?: CacheMode;
}

/** Both modules re-export one map of provider options, so that the entry has one type. */
export type FlaProviderOption = NodeProviderOption | WebProviderOption;
