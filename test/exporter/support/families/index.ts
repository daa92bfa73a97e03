import { DECOMPOSED } from './decomposed.js';
import { ENCODERS } from './encoders.js';
import { LANGUAGE } from './language.js';
import { MICROSOFT } from './microsoft.js';
import { ONNX } from './onnx.js';
import type { Family } from './writer.js';

export { genaiLengths } from './microsoft.js';
export * from './writer.js';

export const FAMILIES: readonly Family[] = [
  ...DECOMPOSED,
  ...ENCODERS,
  ...LANGUAGE,
  ...ONNX,
  ...MICROSOFT,
];
