import fs from 'node:fs';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { FlaError } from '../../../ops/error.js';
import {
  type CalibrateModelOptions,
  type CalibrationReport,
  calibrateModel,
  GATED_VARIANTS,
  loadData,
  type OutputRow,
  type ParetoRow,
} from '../../calibrate/index.js';
import { namingFile } from '../../compare/session.js';
import { loadModel, saveModelAsync } from '../../index.js';
import { checkOutput } from '../files.js';
import { formatBytes, formatNumber } from '../format.js';
import { loadGates } from '../gates.js';
import { type Io, printJson, printTable, withProgress } from '../io.js';
import { parseCount, parseLayers, parsePositive, parseWithin, threadsOption } from '../options.js';

interface Flags
  extends Omit<
    CalibrateModelOptions,
    'keepSoftmax' | 'choose' | 'checkpoint' | 'signal' | 'gates'
  > {
  gates?: string;
  data: string;
  tokenizer?: string;
  output: string;
  length?: number;
  batch: number;
  repeated: number;
  keepSoftmax?: number[] | { auto: number };
  budget?: number;
  json?: boolean;
}

/** Parses '0,3', or 'auto:2' into how many layers are to be chosen. */
function parseKeep(text: string): number[] | { auto: number } {
  const [, count] = /^auto:(\d+)$/.exec(text) ?? [];
  return count === undefined ? parseLayers(text) : { auto: Number(count) };
}

function parseBudget(text: string): number {
  const [, kl] = /^kl=(.+)$/.exec(text) ?? [];
  if (kl === undefined) throw new InvalidArgumentError('expected kl=0.05 or the like');
  return parseWithin(0, Number.MAX_VALUE)(kl);
}

export function addCalibrate(program: Command, io: Io): void {
  const share = parseWithin(0, 1);
  const positive = parseWithin(0, Number.MAX_VALUE);
  program
    .command('calibrate')
    .description(
      'rewrite to hybrid attention or another variant (bidirectional: linear), fitted to the attention of the model',
    )
    .argument('<model>', 'ONNX file of a language model, an encoder or an image model')
    .requiredOption('--data <path>', 'text, .npz of inputs, or a folder of either')
    .requiredOption('-o, --output <file>', 'where the calibrated model goes')
    .option('--tokenizer <file>', 'tokenizer.json of the model, for text')
    .addOption(
      new Option('--variant <name>', 'what causal attention becomes (default: hybrid)').choices([
        'hybrid',
        'performer',
        ...GATED_VARIANTS,
      ]),
    )
    .option(
      '--gates <file>',
      'variants with gates: constants to begin with, in safetensors or JSON',
    )
    .option('--constant-gates', "variants with gates: no projections of the layer's input")
    .option('--window <n>', 'last tokens seen exactly (default: 64)', parsePositive)
    .option('--sinks <n>', 'first tokens seen exactly (default: 4)', parseCount)
    .option('--cache <n>', 'tokens in between kept exact (default: 0)', parseCount)
    .option(
      '--features <n>',
      'features of a token in a head (default: twice its size; performer: about d log d)',
      parsePositive,
    )
    .addOption(
      new Option(
        '--feature-map <name>',
        'exp of x W and -x W, or softmax of x W (default: exp)',
      ).choices(['exp', 'softmax']),
    )
    .option('--unrotated', 'features of queries and keys before their rotary embedding')
    .option('--layers <list>', 'layers to convert, as in 0,2-3 (default: all)', parseLayers)
    .option('--keep-softmax <list>', 'layers to leave alone, or auto:K to have K chosen', parseKeep)
    .option(
      '--budget <goal>',
      'keep layers until the KL divergence is so small: kl=0.05',
      parseBudget,
    )
    .option('--steps <n>', 'steps of the fit', parsePositive, 300)
    .option(
      '--rate <x>',
      'learning rate (default: 0.01; softmax 0.003, performer 0.03, gates 0.1)',
      positive,
    )
    .option('--rows <n>', 'queries that a step looks at (default: 128)', parsePositive)
    .option(
      '--focus <share>',
      'of the weight that goes by how much a query looks up few tokens (default: 0)',
      share,
    )
    .option('--sharpness <x>', 'of features at the start', positive)
    .option('--no-refit', 'leave the matrices that mix heads as they are')
    .option('--refit-batches <n>', 'batches that these are refit on', parsePositive, 32)
    .option(
      '--distil <n>',
      'steps of training the whole model on what the original predicts (default: 0)',
      parseCount,
    )
    .option(
      '--length <tokens>',
      'tokens of a sequence, for text (default: 1024 or fewer)',
      parsePositive,
    )
    .option('--batch <n>', 'sequences at a time', parsePositive, 1)
    .option(
      '--repeated <share>',
      'of sequences of text in which a segment comes twice',
      share,
      0.25,
    )
    .option('--batches <n>', 'held-out batches that quality is measured on', parsePositive, 4)
    .option('--seed <n>', 'of data and fit', parseCount, 0)
    .addOption(threadsOption())
    .option('--json', 'print the report as JSON')
    .addHelpText(
      'after',
      `
Examples:
  onnx-fla calibrate model.onnx --data book.txt --tokenizer tokenizer.json -o hybrid.onnx
  onnx-fla calibrate model.onnx --data tokens.npz -o hybrid.onnx --keep-softmax auto:1
  onnx-fla calibrate model.onnx --data tokens.npz -o delta.onnx --variant gated-delta
  onnx-fla calibrate encoder.onnx --data images.npz -o linear.onnx --features 64
  onnx-fla calibrate model.onnx --data texts/ --tokenizer tokenizer.json -o hybrid.onnx --budget kl=0.02

Stopped with Ctrl-C, the same command goes on where it was: what is done lies in <output>.calibration until the end.
`,
    )
    .action((file: string, flags: Flags) => runCalibrate(io, file, flags));
}

async function runCalibrate(io: Io, file: string, flags: Flags): Promise<void> {
  const { data: source, tokenizer, output, length, batch, repeated, json, ...rest } = flags;
  const { keepSoftmax, budget, gates, ...options } = rest;
  const auto = keepSoftmax && !Array.isArray(keepSoftmax) ? keepSoftmax.auto : undefined;
  if (auto !== undefined && budget !== undefined) {
    throw new FlaError('invalid_argument', 'calibrate: give auto:K or --budget, not both');
  }
  const model = loadModel(file);
  checkOutput(model, file, output);
  const { seed, window = 64 } = options;
  const read = { tokenizer, length, batch, seed, repeated, distance: window };
  const data = loadData(source, read);
  const begin = gates === undefined ? undefined : loadGates(gates);
  const checkpoint = `${output}.calibration`;
  const report = await withProgress(io, async (update) => {
    const done = await namingFile(file, () =>
      calibrateModel(model, data, {
        ...options,
        ...(begin && { gates: begin }),
        ...(Array.isArray(keepSoftmax) && { keepSoftmax }),
        ...(auto !== undefined && { choose: { keep: auto } }),
        ...(budget !== undefined && { choose: { kl: budget } }),
        checkpoint,
        onProgress: update,
        signal: io.signal,
      }),
    );
    await saveModelAsync(done.model, output, {
      signal: io.signal,
      onProgress: (n, total) => update('bytes written', n, total),
    });
    return done.report;
  });
  fs.rmSync(checkpoint, { force: true });
  if (json) return printJson(io, report);
  printReport(io, report, output);
}

function printReport(io: Io, report: CalibrationReport, output: string): void {
  const fits = Object.entries(report.losses);
  if (fits.some(([, { first }]) => first.length === 1)) {
    printTable(
      io,
      ['layer', 'relative squared error of the output, first', 'last'],
      fits.map(([layer, { first, last }]) => [
        layer,
        ...[first[0], last[0]].map((x) => formatNumber(x!, 3)),
      ]),
    );
  } else printWeights(io, fits);
  if (report.pareto.length > 0) printPareto(io, report.pareto);
  else printOutputs(io, report.outputs);
  io.out(`written to ${output}\n`);
}

function printWeights(io: Io, fits: [string, CalibrationReport['losses'][number]][]): void {
  printTable(
    io,
    ['layer', 'KL of weights, first', 'last', 'among far keys, first', 'last'],
    fits.map(([layer, { first, last }]) => [
      layer,
      ...[first[0], last[0], first[1], last[1]].map((x) => formatNumber(x!, 3)),
    ]),
  );
}

/** The same for models that predict no next token. */
function printOutputs(io: Io, rows: readonly OutputRow[]): void {
  printTable(
    io,
    ['softmax layers', 'relative error of outputs', 'cosine', 'speed'],
    rows.map((r) => [
      r.kept.length === 0 ? 'none' : r.kept.join(', '),
      formatNumber(r.relative_error, 3),
      formatNumber(r.cosine, 4),
      `${formatNumber(r.speed, 3)}x`,
    ]),
  );
}

/** What keeping more and more layers as softmax gives and costs. */
export function printPareto(io: Io, rows: readonly ParetoRow[]): void {
  const percent = (x: number | null) => (x === null ? '-' : `${(x * 100).toFixed(1)} %`);
  printTable(
    io,
    ['softmax layers', 'PPL ratio', 'KL', 'same top', 'recall', 'state', 'cache a token', 'speed'],
    rows.map((r) => [
      r.kept.length === 0 ? 'none' : r.kept.join(', '),
      formatNumber(r.ppl_ratio),
      formatNumber(r.kl),
      percent(r.same_top),
      percent(r.recall),
      formatBytes(r.state_bytes),
      formatBytes(r.cache_bytes_per_token),
      `${formatNumber(r.speed, 3)}x`,
    ]),
  );
}
