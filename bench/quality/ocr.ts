/** What rewriting does to a text recogniser: characters that it reads otherwise than the original does. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { align } from '../../examples/demo/edits.js';
import {
  decodeCtc,
  drawLine,
  type LineImage,
  loadAlphabet,
} from '../../examples/demo/line_image.js';
import { RECOGNISER_KEYS } from '../../examples/demo/paths.js';
import { numberTensor, tensorInputs, tensorValues } from '../../exporter/compare/feeds.js';
import { difference } from '../../exporter/compare/outputs.js';
import { loadOnnxRuntime, openSession } from '../../exporter/compare/session.js';
import { loadModel, saveModel } from '../../exporter/index.js';
import { OCR_RECOGNISER } from '../../test/support/models.js';
import { ENCODER_WAYS, type Way } from './controls.js';

export interface OcrRow extends Pick<Way, 'name' | 'role'> {
  /** Share of characters wrong: edits over the original's characters. */
  wrong: number;
  max_abs: number;
  cosine: number | null;
}

const LINES = [
  'The quick brown fox jumps over 13 lazy dogs',
  'Invoice No. 2024-0193, total 1,284.50 EUR',
  'Call me Ishmael. Some years ago - never mind how long',
  'https://example.org/a?b=c&d=42',
  'Linear attention, no KV cache: 200,000 tokens',
  'Sphinx of black quartz, judge my vow (7:45 pm)',
  'A window of 64 tokens and 4 sinks is not enough',
  'Tel. +44 20 7946 0958, Room B-12, 3rd floor',
];

interface Reading {
  text: string;
  probabilities: ArrayLike<number>;
}

async function read(file: string, images: readonly LineImage[]): Promise<Reading[]> {
  const ort = await loadOnnxRuntime();
  const alphabet = loadAlphabet(RECOGNISER_KEYS);
  const { session } = await openSession(file);
  const [input] = tensorInputs(session.inputMetadata);
  const found: Reading[] = [];
  for (const { pixels, height, width } of images) {
    const x = numberTensor(ort, input!.type, Array.from(pixels), [1, 3, height, width]);
    const result = await session.run({ [input!.name]: x });
    const values = tensorValues(result[session.outputNames[0]!] as never);
    const probabilities = Float32Array.from(values);
    found.push({ text: decodeCtc(probabilities, alphabet), probabilities });
  }
  await session.release();
  return found;
}

/** Reads rendered lines with the recogniser, its controls and its rewrites. */
export async function measureOcr(): Promise<OcrRow[]> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-quality-'));
  const images = LINES.map(drawLine);
  const truth: Reading[] = [];
  const rows: OcrRow[] = [];
  try {
    for (const [i, { name, role, make }] of ENCODER_WAYS.entries()) {
      const model = loadModel(OCR_RECOGNISER);
      await make(model);
      const file = path.join(folder, `${i}.onnx`);
      saveModel(model, file);
      const found = await read(file, images);
      if (i === 0) truth.push(...found);
      const edits = found.map((f, k) => align(truth[k]!.text, f.text).distance);
      const characters = truth.map((t) => [...t.text].length);
      const apart = found.map((f, k) => difference(truth[k]!.probabilities, f.probabilities));
      const cosines = apart.map((d) => d.cosine);
      rows.push({
        name,
        role,
        wrong: edits.reduce((a, b) => a + b) / characters.reduce((a, b) => a + b),
        max_abs: Math.max(...apart.map((d) => d.max_abs)),
        cosine: cosines.includes(null) ? null : Math.min(...(cosines as number[])),
      });
    }
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
  return rows;
}
