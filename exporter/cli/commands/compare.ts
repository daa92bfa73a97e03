import fs from 'node:fs';
import path from 'node:path';
import type { Command } from 'commander';
import { FlaError } from '../../../ops/error.js';
import {
  type BackendChoice,
  type CompareTasks,
  type CompareText,
  type CostRow,
  compareModels,
  type LanguageDifference,
  parsePareto,
  type Report,
} from '../../compare/index.js';
import { readBaseline } from '../../compare/report/baseline.js';
import { checkConditions, failures, parseConditions } from '../../compare/report/conditions.js';
import {
  changeTable,
  detailTable,
  languageTable,
  outputTable,
  recallTable,
  stateTable,
  type Table,
} from '../../compare/report/summary.js';
import { writeReport } from '../../compare/report/write.js';
import { readText } from '../../text/read_text.js';
import { loadTokenizer, type Tokenizer } from '../../text/tokenizer.js';
import { ConditionsMet } from '../exit.js';
import { formatBytes, formatMs, formatNumber } from '../format.js';
import { type Io, printJson, printTable, withProgress } from '../io.js';
import {
  backendOption,
  cacheLengthOption,
  collectDim,
  parseCount,
  parseLengths,
  parsePositive,
  parseShares,
  parseTaskLengths,
  type TaskLength,
  threadsOption,
} from '../options.js';

interface Flags {
  text?: string;
  tokenizer?: string;
  context: number;
  maxTokens: number;
  tasks?: string;
  taskLengths?: TaskLength[];
  depths?: number[];
  samples?: number;
  greedy?: boolean;
  window: number;
  sinks: number;
  controls: boolean;
  lengths?: number[];
  chunk: number;
  runs: number;
  length?: number;
  dim: Record<string, number>;
  seed: number;
  pareto?: string;
  baseline?: string;
  failIf?: string;
  report?: string;
  cacheLength?: number;
  threads?: number;
  backend: BackendChoice;
  originalBackend: BackendChoice;
  json?: boolean;
}

export function addCompare(program: Command, io: Io): void {
  program
    .command('compare')
    .description('measure how rewritten models differ from their original, and what they cost')
    .argument('<original>', 'ONNX file')
    .argument('<rewritten...>', 'ONNX files')
    .option('--text <file>', 'text to predict: perplexity, KL divergence, same top token')
    .option('--tokenizer <file>', 'tokenizer.json of the models')
    .option('--context <tokens>', 'tokens a window; each starts afresh', parsePositive, 512)
    .option('--max-tokens <n>', 'tokens of the text to use', parsePositive, 8192)
    .option('--tasks <list>', 'long-context tasks, as in passkey,mqar, or all')
    .option(
      '--task-lengths <list>',
      'tokens, or times the window (default: 1x,2x,4x,8x,16x)',
      parseTaskLengths,
    )
    .option('--depths <list>', 'where answers lie (default: 0,0.25,0.5,0.75,1)', parseShares)
    .option('--samples <n>', 'questions at each length and depth (default: 4)', parsePositive)
    .option('--greedy', 'let models write their answers too; takes about twice as long')
    .option('--window <tokens>', 'of the control that sees nothing else', parsePositive, 64)
    .option('--sinks <tokens>', 'first tokens that it sees too', parseCount, 4)
    .option('--no-controls', 'leave the controls out')
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
    .option('--seed <n>', 'of random inputs and questions', parseCount, 0)
    .option('--pareto <file>', 'JSON with points of a choice of layers, for the report')
    .option('--baseline <file>', 'report.json of an earlier run: say what changed')
    .option('--fail-if <list>', 'exit code 2 if one holds, as in kl>0.1,recall<0.9,ppl>+5%')
    .option('--report <folder>', 'write report.json and report.html')
    .addOption(cacheLengthOption())
    .addOption(threadsOption())
    .addOption(backendOption())
    .addOption(backendOption('--original-backend <name>', 'who runs the original'))
    .option('--json', 'print the report as JSON')
    .addHelpText(
      'after',
      `
Examples:
  onnx-fla compare model.onnx linear.onnx
  onnx-fla compare model.onnx linear.onnx --text book.txt --tokenizer tokenizer.json
  onnx-fla compare model.onnx a.onnx b.onnx --tasks all --tokenizer tokenizer.json --report out
  onnx-fla compare model.onnx linear.onnx --lengths 128,1024,8192 --json
  onnx-fla compare model.onnx linear.onnx --baseline out/report.json --fail-if 'max_abs>+5%'
  onnx-fla compare ocr.onnx ocr-linear.onnx --dim p2o.DynamicDimension.1=640
`,
    )
    .action((original: string, rewritten: string[], flags: Flags) =>
      runCompare(io, original, rewritten, flags),
    );
}

async function runCompare(
  io: Io,
  original: string,
  rewritten: string[],
  flags: Flags,
): Promise<void> {
  const { dim: dims, json, report: folder, failIf, ...rest } = flags;
  const conditions = failIf === undefined ? [] : parseConditions(failIf);
  checkConditions(conditions, {
    text: flags.text !== undefined,
    tasks: flags.tasks !== undefined,
    lengths: flags.lengths !== undefined,
    controls: flags.controls,
    baseline: flags.baseline !== undefined,
  });
  const baseline = flags.baseline === undefined ? undefined : readBaseline(flags.baseline);
  if (folder !== undefined) checkFolder(folder);
  const pareto =
    flags.pareto === undefined ? undefined : parsePareto(readText(flags.pareto), flags.pareto);
  const { text, tasks } = readings(flags);
  const report = await withProgress(io, (onProgress) =>
    compareModels(original, rewritten, {
      ...{ ...rest, dims, text, tasks, pareto, baseline },
      ...{ onProgress, signal: io.signal },
    }),
  );
  io.signal.throwIfAborted();
  const written = folder === undefined ? [] : await writeReport(report, folder);
  if (json) printJson(io, report);
  else {
    printReport(io, report);
    for (const file of written) io.out(`written to ${file}\n`);
  }
  const failed = failures(report, conditions, baseline);
  if (failed.length > 0) throw new ConditionsMet(`failed: ${failed.join('; ')}`);
}

/** The text and the tasks that flags ask for. */
function readings(flags: Flags): { text?: CompareText; tasks?: CompareTasks } {
  const { text: file, tokenizer: tokenizerFile, tasks } = flags;
  if (file !== undefined && tokenizerFile === undefined) {
    throw new FlaError('invalid_argument', 'compare: --text and --tokenizer go together');
  }
  if (tokenizerFile !== undefined && file === undefined && tasks === undefined) {
    throw new FlaError('invalid_argument', 'compare: --tokenizer is for --text or --tasks');
  }
  const tokenizer = tokenizerFile === undefined ? undefined : loadTokenizer(tokenizerFile);
  const book = file === undefined ? undefined : readText(file);
  return {
    ...(book !== undefined && {
      text: { name: path.basename(file!), ids: tokenizer!.encode(book) },
    }),
    ...(tasks !== undefined && { tasks: readTasks(tasks, flags, tokenizer, book) }),
  };
}

function readTasks(
  names: string,
  { taskLengths, depths, samples, greedy, window }: Flags,
  tokenizer: Tokenizer | undefined,
  book: string | undefined,
): CompareTasks {
  return {
    ...(names !== 'all' && { names: names.split(',').map((name) => name.trim()) }),
    lengths: taskLengths?.map(({ count, unit }) => (unit === 'tokens' ? count : count * window)),
    ...{ depths, samples, greedy, tokenizer, book },
  };
}

/** Refuses a folder that cannot be one, before any work is done. */
function checkFolder(folder: string): void {
  const there = fs.statSync(folder, { throwIfNoEntry: false });
  if (there && !there.isDirectory()) {
    throw new FlaError('io', `${folder}: cannot be written: is no folder`);
  }
}

function printReport(io: Io, report: Report): void {
  for (const notice of report.notices) io.err(`note: ${notice}\n`);
  const print = (table: Table | undefined, corner: string) => {
    if (table && table.rows.length > 0)
      printTable(io, [corner, ...table.head.slice(1)], table.rows);
  };
  const { text, tasks } = report.settings;
  print(outputTable(report), 'outputs');
  if (text) io.out(`${text.tokens} tokens of ${text.name} in windows of ${text.context}:\n`);
  print(languageTable(report), 'predictions');
  print(detailTable(report), 'more of them');
  for (const task of tasks?.names ?? []) print(recallTable(report, task), `recall: ${task}`);
  if (text || tasks) print(stateTable(report), 'state');
  for (const { name, cost } of report.rows) if (cost) printCost(io, cost, name);
  print(changeTable(report), 'against the baseline');
  if (report.changes?.length === 0) io.out('nothing differs from the baseline\n');
}

/** Perplexity and divergence. */
export function printLanguage(io: Io, language: LanguageDifference): void {
  const { ppl, kld, same_top, tokens, context } = language;
  printTable(
    io,
    [`${tokens} tokens in windows of ${context}`, ''],
    [
      ['perplexity, original', formatNumber(ppl.original)],
      ['perplexity, rewritten', formatNumber(ppl.rewritten)],
      ['ratio', `${formatNumber(ppl.ratio.value)} +- ${formatNumber(ppl.ratio.error, 2)}`],
      ['KL divergence, mean (nats)', formatNumber(kld.mean.value)],
      [
        'KL median / 99% / 99.9% / max',
        [kld.median.value, kld.p99.value, kld.p999.value, kld.max]
          .map((x) => formatNumber(x))
          .join(' / '),
      ],
      ['same top token', `${((same_top.value ?? Number.NaN) * 100).toFixed(2)} %`],
    ],
  );
}

/** Time and memory against length, two lines a length. */
export function printCost(io: Io, cost: readonly CostRow[], rewritten = 'rewritten'): void {
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
        rewritten,
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
    if (r.rewritten_error) io.err(`note: ${rewritten} at ${r.length}: ${r.rewritten_error}\n`);
  }
}
