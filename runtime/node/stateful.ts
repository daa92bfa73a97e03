import { Tensor } from 'onnxruntime-node';
import type { Feeds as CommonFeeds } from '../common/feeds.js';
import {
  type PrefillOptions as CommonPrefillOptions,
  checkSizes,
  Stateful,
  type StateOptions,
} from '../common/stateful.js';
import type { MakeTensor } from '../common/values.js';
import { NativeTensor } from './native_tensor.js';
import type { SessionOptions } from './options.js';
import { type AnyTensor, FlaSession } from './session.js';

/** Tensors by input name, time along axis 1. */
export type Feeds = CommonFeeds<Tensor>;

export interface StatefulOptions extends SessionOptions, StateOptions {}

export type PrefillOptions = CommonPrefillOptions<Tensor>;

/** bfloat16 only a NativeTensor can hold. */
const make: MakeTensor<Tensor> = (type, data, dims) =>
  type === 'bfloat16'
    ? (NativeTensor.from(type, data, dims) as AnyTensor as Tensor)
    : new Tensor(type, data as never, dims);

/**
 * A model with memory on onnxruntime-node: the state is in native memory, on the GPU with device `cuda`.
 */
export class StatefulSession extends Stateful<Tensor, NativeTensor, FlaSession> {
  /** @param options Session options (`executionProviders` included), the batch, and what calls give back. */
  static async create(
    model: string | Uint8Array,
    options: StatefulOptions = {},
  ): Promise<StatefulSession> {
    checkSizes(options);
    const session = await FlaSession.create(model, options);
    try {
      return new StatefulSession(session, options, make);
    } catch (thrown) {
      await session.dispose();
      throw thrown;
    }
  }
}
