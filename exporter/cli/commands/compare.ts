import type { Command } from 'commander';
import { FlaError } from '../../../ops/error.js';
import { type BackendChoice, type Comparison, compareModels } from '../../compare/index.js';
import { readText } from '../../text/read_text.js';
import { loadTokenizer } from '../../text/tokenizer.js';
import { formatBytes, formatMs, formatNumber } from '../format.js';
import { type Io, printJson, printTable, withProgress } from '../io.js';
import {
  backendOption,
  collectDim,
  parseCount,
  parseLengths,
  parsePositive,
  threadsOption,
} from '../options.js';

interface Flags {
  text?: string;
  tokenizer?: string;
  context: number;
  maxTokens: number;
  lengths?: number[];
  chunk: number;
  runs: number;
  length?: number;
  dim: Record<string, number>;
  seed: number;
  threads?: number;
  backend: BackendChoice;
  originalBackend: BackendChoice;
  json?: boolean;
}

export function addCompare(program: Command, io: Io): void {
  program
    .command('compare')
    .description('measure how a rewritten model differs from its original, and what either costs')
    .argument('<original>', 'ONNX file')
    .argument('<rewritten>', 'ONNX file')
    .option('--text <file>', 'text to predict: perplexity, KL divergence, same top token')
    .option('--tokenizer <file>', 'tokenizer.json of the model')
    .option('--context <tokens>', 'tokens a window; each starts afresh', parsePositive, 512)
    .option('--max-tokens <n>', 'tokens of the text to use', parsePositive, 8192)
    .option(
      '--lengths <list>',
      'measure time and memory at these lengths, as in 128,512',
      parseLengths,
    )
    .option(
      '--chunk <tokens>',
      'tokens read at a time by models that carry state',
      parsePositive,
      512,
    )
    .option('--runs <n>', 'timed runs at each length', parsePositive, 5)
    .option(
      '--length <n>',
      'free dimensions while outputs are compared (default: 128, images 320)',
      parsePositive,
    )
    .option('--dim <name=length>', 'length of a named dimension; may be repeated', collectDim, {})
    .option('--seed <n>', 'of random inputs', parseCount, 0)
    .addOption(threadsOption())
    .addOption(backendOption())
    .addOption(backendOption('--original-backend <name>', 'who runs the original'))
    .option('--json', 'print JSON: {ppl, kld, same_top, outputs, cost}')
    .addHelpText(
      'after',
      `
Examples:
  onnx-fla compare model.onnx linear.onnx
  onnx-fla compare model.onnx linear.onnx --text book.txt --tokenizer tokenizer.json
  onnx-fla compare model.onnx linear.onnx --lengths 128,1024,8192 --json
  onnx-fla compare ocr.onnx ocr-linear.onnx --dim p2o.DynamicDimension.1=640
`,
    )
    .action(async (original: string, rewritten: string, flags: Flags) => {
      const { text, tokenizer, dim: dims, json, ...rest } = flags;
      const ids = readIds(text, tokenizer);
      const result = await withProgress(io, (onProgress) =>
        compareModels(original, rewritten, { ...rest, ids, dims, onProgress, signal: io.signal }),
      );
      if (json) return printJson(io, result);
      printComparison(io, result);
    });
}

function readIds(text: string | undefined, tokenizer: string | undefined): number[] | undefined {
  if (!text && !tokenizer) return undefined;
  if (!text || !tokenizer) {
    throw new FlaError('invalid_argument', 'compare: --text and --tokenizer go together');
  }
  const encode = loadTokenizer(tokenizer);
  return encode.encode(readText(text));
}

function printComparison(io: Io, result: Comparison): void {
  for (const notice of result.notices) io.err(`note: ${notice}\n`);
  printTable(
    io,
    ['output', 'max abs difference', 'cosine'],
    Object.entries(result.outputs).map(([name, d]) => [
      name,
      formatNumber(d.max_abs),
      formatNumber(d.cosine, 6),
    ]),
  );
  printLanguage(io, result);
  printCost(io, result.cost);
}

/** Perplexity and divergence, when there was a text. */
export function printLanguage(io: Io, { ppl, kld, same_top, text }: Comparison): void {
  if (!ppl || !kld || same_top === null || !text) return;
  printTable(
    io,
    [`${text.tokens} tokens in windows of ${text.context}`, ''],
    [
      ['perplexity, original', formatNumber(ppl.original)],
      ['perplexity, rewritten', formatNumber(ppl.rewritten)],
      ['ratio', `${formatNumber(ppl.ratio)} +- ${formatNumber(ppl.ratio_error, 2)}`],
      ['KL divergence, mean (nats)', formatNumber(kld.mean)],
      [
        'KL median / 99% / 99.9% / max',
        [kld.median, kld.p99, kld.p999, kld.max].map((x) => formatNumber(x)).join(' / '),
      ],
      ['same top token', `${(same_top * 100).toFixed(2)} %`],
    ],
  );
}

/** Time and memory against length, two lines a length. */
export function printCost(io: Io, cost: Comparison['cost']): void {
  if (cost.length === 0) return;
  const times = (ratio: number | null) => (ratio === null ? '-' : `${formatNumber(ratio, 3)}x`);
  printTable(
    io,
    ['length', 'model', 'time', 'speedup', 'next token', 'peak memory', 'carried'],
    cost.flatMap((r) => [
      [
        String(r.length),
        'original',
        r.original_error ? 'failed' : formatMs(r.original_ms),
        '',
        formatMs(r.original_decode_ms),
        formatBytes(r.original_peak_bytes),
        formatBytes(r.original_state_bytes),
      ],
      [
        '',
        'rewritten',
        r.rewritten_error ? 'failed' : formatMs(r.rewritten_ms),
        times(r.speedup),
        formatMs(r.rewritten_decode_ms),
        formatBytes(r.rewritten_peak_bytes),
        formatBytes(r.rewritten_state_bytes),
      ],
    ]),
  );
  for (const r of cost) {
    if (r.original_error) io.err(`note: original at ${r.length}: ${r.original_error}\n`);
    if (r.rewritten_error) io.err(`note: rewritten at ${r.length}: ${r.rewritten_error}\n`);
  }
}
