import { register } from './backend.js';

register();

export { FlaError, type FlaErrorCode } from '../../ops/error.js';
export type { DType } from '../common/dtypes.js';
export type { TokenList, Tokens } from '../common/feeds.js';
export type { StatePair } from '../common/state.js';
export type { Outputs, StateSnapshot, StepOptions } from '../common/stateful.js';
export type { ValueInfo } from '../common/values.js';
export { nativeInfo, type RuntimeInfo } from './addon.js';

export { NativeTensor } from './native_tensor.js';
export type { FlaExecutionProviderOption, SessionOptions } from './options.js';
export { type AnyTensor, FlaSession, type RunOptions } from './session.js';
export {
  type Feeds,
  type PrefillOptions,
  type StatefulOptions,
  StatefulSession,
} from './stateful.js';
