/** What rewriting does to a sentence encoder: how far embeddings turn, and whether the order of similarities stays. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { numberTensor, tensorValues } from '../../exporter/compare/feeds.js';
import { loadOnnxRuntime, openSession } from '../../exporter/compare/session.js';
import { cosine, mean, rankCorrelation } from '../../exporter/compare/statistics.js';
import { type CalibrationData, mixedData, saveModel, tokenData } from '../../exporter/index.js';
import { TINYLM } from '../../test/support/models.js';
import { calibratedWay, ENCODER_WAYS, type Way } from './controls.js';
import { LONGEST, useLite, useLiteTokenizer } from './use_lite.js';

export interface EmbeddingRow extends Pick<Way, 'name' | 'role'> {
  /** 1 - cosine of a text's embedding to that of the original. */
  drift_mean: number;
  drift_max: number;
  /** Spearman's, of the similarities of all pairs of texts with those of the original. */
  rank_correlation: number;
}

export interface EmbeddingResult {
  texts: number;
  pairs: number;
  /** Mean tokens of a text. */
  tokens: number;
  rows: EmbeddingRow[];
}

const TEXTS = 48;
const EVERY = 2; // paragraphs between two that are taken
const SHORTEST = 40; // tokens

/** Every other paragraph, as ids; those between them are for calibration. */
function paragraphs(which: 'measured' | 'fit'): number[][] {
  const tokenizer = useLiteTokenizer();
  const all = fs.readFileSync(TINYLM.text, 'utf8').split(/\n\s*\n/);
  return all
    .filter((_, i) => (i % EVERY === 0) === (which === 'measured'))
    .map((p) => tokenizer.encode(p.replace(/\s+/g, ' ').trim()));
}

/** Paragraphs cut where the encoder cuts. */
function texts(): number[][] {
  const long = paragraphs('measured')
    .map((ids) => ids.slice(0, LONGEST))
    .filter((ids) => ids.length >= SHORTEST);
  return long.slice(0, TEXTS);
}

/** Pieces of the other paragraphs, of several lengths. */
function fitData(): CalibrationData {
  const ids = paragraphs('fit').flat();
  const sources = [LONGEST, LONGEST, 96, 64].map((length) => ({
    data: tokenData(ids, { length, repeated: 0 }),
    examples: 1,
  }));
  return mixedData(sources);
}

const WAYS: Way[] = [
  ...ENCODER_WAYS,
  calibratedWay('calibrated, 512 features', fitData, { features: 512, steps: 1500 }),
];

async function embed(file: string, all: readonly number[][]): Promise<Float32Array[]> {
  const ort = await loadOnnxRuntime();
  const { session } = await openSession(file);
  const found: Float32Array[] = [];
  for (const ids of all) {
    const input_ids = numberTensor(ort, 'int64', ids, [1, ids.length]);
    const { embedding } = await session.run({ input_ids });
    found.push(Float32Array.from(tensorValues(embedding as never)));
  }
  await session.release();
  return found;
}

const similarities = (embeddings: readonly Float32Array[]) =>
  embeddings.flatMap((a, i) => embeddings.slice(i + 1).map((b) => cosine(a, b)));

/** Embeds paragraphs with the encoder, its controls and its rewrites. */
export async function measureEmbeddings(): Promise<EmbeddingResult> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-quality-'));
  const all = texts();
  const rows: EmbeddingRow[] = [];
  let original: Float32Array[] = [];
  try {
    for (const [i, { name, role, make }] of WAYS.entries()) {
      let model = useLite();
      model = (await make(model)) ?? model;
      const file = path.join(folder, `${i}.onnx`);
      saveModel(model, file);
      const embeddings = await embed(file, all);
      if (i === 0) original = embeddings;
      const drift = embeddings.map((e, k) => Math.max(1 - cosine(original[k]!, e), 0));
      rows.push({
        name,
        role,
        drift_mean: mean(drift),
        drift_max: Math.max(...drift),
        rank_correlation: rankCorrelation(similarities(original), similarities(embeddings)),
      });
    }
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
  const pairs = (all.length * (all.length - 1)) / 2;
  return { texts: all.length, pairs, tokens: mean(all.map((ids) => ids.length)), rows };
}
