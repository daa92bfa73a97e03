/** As `onnx-fla/web`, for `onnxruntime-web/jspi`: the smaller bundle, where the browser has JSPI. */
import * as ort from 'onnxruntime-web/jspi';
import { register } from './register.js';

register(ort);

export * from './exports.js';
