import fs from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { printInspection } from '../../exporter/cli/commands/inspect.js';
import { formatNumber } from '../../exporter/cli/format.js';
import { printTable } from '../../exporter/cli/io.js';
import { maxAbsDifference } from '../../exporter/compare/statistics.js';
import {
  type FeatureMapName,
  inspectModel,
  loadModel,
  type RewriteOptions,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { align } from './edits.js';
import { decodeCtc, drawLine, type LineImage, loadAlphabet } from './line_image.js';
import { OUTPUT, RECOGNISER, RECOGNISER_KEYS } from './paths.js';
import { io, say, title } from './print.js';

const SHOWN = 'Linear attention, no KV cache: 200,000 tokens';
/** Other lines, to choose a feature map by. */
const CHOOSING = [
  'The quick brown fox jumps over 13 lazy dogs',
  'Invoice No. 2024-0193, total 1,284.50 EUR',
  'Call me Ishmael. Some years ago - never mind how long',
  'https://example.org/a?b=c&d=42',
];
const MAPS: FeatureMapName[] = ['elu1', 'relu', 'exp', 'silu', 'softmax', 'l2norm', 'identity'];

/** Rewrites a text recogniser and reads the same picture before and after. */
export async function readLineDemo(): Promise<void> {
  title('Reading a line of text: PP-OCRv4 recogniser');
  const { sites } = await inspectModel(loadModel(RECOGNISER));
  printInspection(io, sites);

  const alphabet = loadAlphabet(RECOGNISER_KEYS);
  const original = await Reader.open(RECOGNISER, alphabet, 'cpu');
  const again = await Reader.open(await rewritten({ variant: 'none' }), alphabet, 'fla');
  const image = drawLine(SHOWN);
  const parity = maxAbsDifference(
    await original.probabilities(image),
    await again.probabilities(image),
  );
  say(
    `Both blocks written again as softmax: outputs differ by at most ${formatNumber(parity, 2)}.`,
  );

  const scores = await scoreMaps(original, alphabet);
  say(`\nLinear attention without any training, on ${CHOOSING.length} other lines:`);
  printTable(
    io,
    ['feature map', 'characters wrong'],
    scores.map((s) => [s.map, `${(s.wrong * 100).toFixed(1)} %`]),
  );
  const best = scores.reduce((a, b) => (b.wrong < a.wrong ? b : a));
  const reader = await Reader.open(
    await rewritten({ variant: 'linear', featureMap: best.map }),
    alphabet,
    'fla',
  );
  const picture = path.join(OUTPUT, 'line.png');
  fs.writeFileSync(picture, image.png);
  say(
    `\nThe picture (${path.relative(process.cwd(), picture)}, ${image.width} x ${image.height}) reads:`,
  );
  const before = await original.read(image);
  const after = await reader.read(image);
  const { distance, a, b, marks } = align(before, after);
  say(`  before   ${a}\n  after    ${b}   (${best.map})`);
  if (distance > 0) say(`           ${marks}`);
  say(`${distance} of ${[...before].length} characters differ.`);
}

/** A feature map and the share of characters it gets wrong. */
async function scoreMaps(original: Reader, alphabet: readonly string[]) {
  const images = CHOOSING.map((line) => drawLine(line));
  const truth: string[] = [];
  for (const image of images) truth.push(await original.read(image));
  const scores: { map: FeatureMapName; wrong: number }[] = [];
  for (const map of MAPS) {
    const file = await rewritten({ variant: 'linear', featureMap: map });
    const reader = await Reader.open(file, alphabet, 'fla');
    let edits = 0;
    for (const [i, image] of images.entries())
      edits += align(truth[i]!, await reader.read(image)).distance;
    scores.push({ map, wrong: edits / truth.join('').length });
  }
  return scores;
}

/** Rewrites the recogniser into the output folder. */
async function rewritten(options: RewriteOptions): Promise<string> {
  const model = loadModel(RECOGNISER);
  await rewriteModel(model, options);
  const name = ['ocr', options.variant, options.featureMap].filter(Boolean).join('-');
  const file = path.join(OUTPUT, `${name}.onnx`);
  saveModel(model, file);
  return file;
}

class Reader {
  private constructor(
    private readonly session: ort.InferenceSession,
    private readonly alphabet: readonly string[],
  ) {}

  static async open(file: string, alphabet: readonly string[], provider: string): Promise<Reader> {
    const session = await ort.InferenceSession.create(file, { executionProviders: [provider] });
    return new Reader(session, alphabet);
  }

  /** [steps, classes], row-major. */
  async probabilities({ pixels, height, width }: LineImage): Promise<Float32Array> {
    const x = new ort.Tensor('float32', pixels, [1, 3, height, width]);
    const result = await this.session.run({ [this.session.inputNames[0]!]: x });
    return (result[this.session.outputNames[0]!] as ort.Tensor).data as Float32Array;
  }

  async read(image: LineImage): Promise<string> {
    return decodeCtc(await this.probabilities(image), this.alphabet);
  }
}
