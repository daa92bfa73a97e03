/** `npm run bench:quality [set ...]`: measures what rewriting does to real models, into bench/results/quality. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { compareModels, type Report } from '../../exporter/compare/index.js';
import { loadModel, saveModel } from '../../exporter/index.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { measureEmbeddings } from './embeddings.js';
import { measureOcr } from './ocr.js';
import { EMBEDDING_RESULTS, OCR_RESULTS, QUALITY } from './results.js';
import { type QualitySet, SETS } from './sets.js';

async function measure(set: QualitySet): Promise<Report> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-quality-'));
  try {
    const rewritten = [];
    for (const [i, { name, about, make }] of set.rewrites.entries()) {
      let model = loadModel(set.original);
      model = (await make(model)) ?? model;
      const file = path.join(folder, `${i}.onnx`);
      saveModel(model, file);
      rewritten.push({ file, name, about });
    }
    const { text, tasks } = set;
    const book = text && fs.readFileSync(text.file, 'utf8');
    return await compareModels(set.original, rewritten, {
      ...(text && {
        text: { name: text.name, ids: loadTokenizer(text.tokenizer).encode(book!) },
        maxTokens: text.maxTokens,
        context: text.context,
      }),
      ...(tasks && { tasks }),
    });
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

function write(name: string, value: unknown): void {
  const file = path.join(QUALITY, `${name}.json`);
  fs.mkdirSync(QUALITY, { recursive: true });
  fs.writeFileSync(`${file}.tmp`, `${JSON.stringify(value)}\n`);
  fs.renameSync(`${file}.tmp`, file);
  console.log(file);
}

const wanted = process.argv.slice(2);
const chosen = (name: string) => wanted.length === 0 || wanted.includes(name);
for (const set of SETS) if (chosen(set.name)) write(set.name, await measure(set));
if (chosen(OCR_RESULTS)) write(OCR_RESULTS, await measureOcr());
if (chosen(EMBEDDING_RESULTS)) write(EMBEDDING_RESULTS, await measureEmbeddings());
process.exit(0); // the native side may hold threads that keep us alive
