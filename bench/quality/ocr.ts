/** What rewriting does to a text recogniser: characters that it reads otherwise than the original does. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { align } from '../../examples/demo/edits.js';
import { decodeCtc, type LineImage, loadAlphabet } from '../../examples/demo/line_image.js';
import { RECOGNISER_KEYS } from '../../examples/demo/paths.js';
import { numberTensor, tensorInputs, tensorValues } from '../../exporter/compare/feeds.js';
import { difference, type OutputDifference } from '../../exporter/compare/outputs.js';
import { loadOnnxRuntime, openSession } from '../../exporter/compare/session.js';
import { loadModel, saveModel } from '../../exporter/index.js';
import { OCR_RECOGNISER } from '../../test/support/models.js';
import { calibratedWay, ENCODER_WAYS, type Way } from './controls.js';
import { drawnLines, lineData, lineTexts } from './lines.js';

export interface OcrRow extends Pick<Way, 'name' | 'role'> {
  /** Share of characters wrong: edits over the original's characters. */
  wrong: number;
  /** The same against what was drawn. */
  wrong_truth: number;
  max_abs: number;
  cosine: number | null;
}

/** Lines that are read; calibration sees others, from another half of the book. */
export const LINES = 120;

const WAYS: Way[] = [
  ...ENCODER_WAYS,
  calibratedWay('calibrated, 128 features', () => lineData(240, 4), { features: 128, steps: 160 }),
];

interface Reading {
  text: string;
  probabilities: Float32Array;
}

async function* read(file: string, images: readonly LineImage[]): AsyncGenerator<Reading> {
  const ort = await loadOnnxRuntime();
  const alphabet = loadAlphabet(RECOGNISER_KEYS);
  const { session } = await openSession(file);
  const [input] = tensorInputs(session.inputMetadata);
  for (const { pixels, height, width } of images) {
    const x = numberTensor(ort, input!.type, Array.from(pixels), [1, 3, height, width]);
    const result = await session.run({ [input!.name]: x });
    const probabilities = Float32Array.from(tensorValues(result[session.outputNames[0]!] as never));
    yield { text: decodeCtc(probabilities, alphabet), probabilities };
  }
  await session.release();
}

/** Edits over characters. */
function wrong(truth: readonly string[], found: readonly string[]): number {
  const edits = truth.map((t, i) => align(t, found[i]!).distance);
  return edits.reduce((a, b) => a + b) / truth.reduce((sum, t) => sum + [...t].length, 0);
}

/** Reads rendered lines with the recogniser, its controls and its rewrites. */
export async function measureOcr(): Promise<OcrRow[]> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-quality-'));
  const images = drawnLines('measured', LINES);
  const drawn = lineTexts('measured', LINES);
  const original: Reading[] = [];
  const rows: OcrRow[] = [];
  try {
    for (const [i, { name, role, make }] of WAYS.entries()) {
      let model = loadModel(OCR_RECOGNISER);
      model = (await make(model)) ?? model;
      const file = path.join(folder, `${i}.onnx`);
      saveModel(model, file);
      const texts: string[] = [];
      const apart: OutputDifference[] = [];
      for await (const reading of read(file, images)) {
        if (i === 0) original.push(reading);
        const { text, probabilities } = reading;
        apart.push(difference(original[texts.length]!.probabilities, probabilities));
        texts.push(text);
      }
      const cosines = apart.map((d) => d.cosine);
      rows.push({
        name,
        role,
        wrong: wrong(
          original.map((o) => o.text),
          texts,
        ),
        wrong_truth: wrong(drawn, texts),
        max_abs: Math.max(...apart.map((d) => d.max_abs)),
        cosine: cosines.includes(null) ? null : Math.min(...(cosines as number[])),
      });
    }
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
  return rows;
}
