import { DECOMPOSED } from './families/decomposed.js';
import { ENCODERS } from './families/encoders.js';
import { LANGUAGE } from './families/language.js';
import { MICROSOFT } from './families/microsoft.js';
import { ONNX } from './families/onnx.js';
import { SCORES } from './families/scores.js';
import type { Family } from './families/writer.js';

export { genaiLengths } from './families/microsoft.js';
export { BIASED, t5Decoder } from './families/scores.js';
export * from './families/writer.js';

export const FAMILIES: readonly Family[] = [
  ...DECOMPOSED,
  ...ENCODERS,
  ...LANGUAGE,
  ...SCORES,
  ...ONNX,
  ...MICROSOFT,
];
