/** What every entry of the package for browsers exports. */
export { FlaError, type FlaErrorCode } from '../../ops/error.js';
export type { DType } from '../common/dtypes.js';
export type { TokenList, Tokens } from '../common/feeds.js';
export type { StatePair } from '../common/state.js';
export type { Outputs, StateSnapshot, StepOptions } from '../common/stateful.js';
export type { ValueInfo } from '../common/values.js';
export { requestDevice } from './device.js';
export { DeviceTensor } from './device_tensor.js';
export { type GpuMemory, watchMemory } from './memory.js';
export type { FlaExecutionProviderOption, SessionOptions } from './options.js';
export { exclusive, type Ort } from './ort.js';
export { register } from './register.js';
export { type AnyTensor, FlaSession, type RunOptions } from './session.js';
export {
  type Feeds,
  type PrefillOptions,
  type StatefulOptions,
  StatefulSession,
} from './stateful.js';
