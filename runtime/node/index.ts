import { register } from './backend.js';

register();

export { FlaError, type FlaErrorCode } from '../../ops/error.js';
export { nativeInfo, type RuntimeInfo } from './addon.js';
export type { DType } from './dtypes.js';
export { NativeTensor } from './native_tensor.js';
export type { FlaExecutionProviderOption, SessionOptions } from './options.js';
export { type AnyTensor, FlaSession, type RunOptions, type ValueInfo } from './session.js';
