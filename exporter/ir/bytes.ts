import { Model } from './graph.js';
import { decodeModel, encodeModel } from './proto.js';

/** Parses a model held in memory. @param what how errors name it */
export function parseModel(bytes: Uint8Array, what = 'model'): Model {
  return new Model(decodeModel(bytes, what));
}

/** Serializes a model without touching its external data references. */
export function modelBytes(model: Model): Uint8Array {
  return encodeModel(model.proto);
}
