import { register } from './backend.js';

register();

export { FlaError, type FlaErrorCode } from '../../ops/error.js';
export { nativeInfo, type RuntimeInfo } from './addon.js';
export type { DType } from './dtypes.js';
export type { Feeds, TokenList, Tokens } from './feeds.js';
export { NativeTensor } from './native_tensor.js';
export type { FlaExecutionProviderOption, SessionOptions } from './options.js';
export { type AnyTensor, FlaSession, type RunOptions, type ValueInfo } from './session.js';
export type { StatePair } from './state.js';
export {
  type Outputs,
  type PrefillOptions,
  type StatefulOptions,
  StatefulSession,
  type StateSnapshot,
  type StepOptions,
} from './stateful.js';
