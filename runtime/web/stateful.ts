import type { Tensor } from 'onnxruntime-web';
import type { Feeds as CommonFeeds } from '../common/feeds.js';
import {
  type PrefillOptions as CommonPrefillOptions,
  checkSizes,
  Stateful,
  type StateOptions,
} from '../common/stateful.js';
import type { MakeTensor } from '../common/values.js';
import type { DeviceTensor } from './device_tensor.js';
import type { SessionOptions } from './options.js';
import { ort } from './ort.js';
import { FlaSession } from './session.js';

/** Tensors by input name, time along axis 1. */
export type Feeds = CommonFeeds<Tensor>;

export interface StatefulOptions extends SessionOptions, StateOptions {}

export type PrefillOptions = CommonPrefillOptions<Tensor>;

const make: MakeTensor<Tensor> = (type, data, dims) =>
  new (ort().Tensor)(type as Tensor.Type, data as never, dims) as Tensor;

/** A model with memory on onnxruntime-web: the state stays on the GPU from run to run. */
export class StatefulSession extends Stateful<Tensor, DeviceTensor, FlaSession> {
  /** @param options Session options (`executionProviders` included), the batch, and what calls give back. */
  static async create(
    model: string | Uint8Array | ArrayBuffer,
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
