import path from 'node:path';
import { type Command, Option } from 'commander';
import { FlaError } from '../../../ops/error.js';
import { namingFile } from '../../compare/session.js';
import {
  EXTERNAL_LAYOUTS,
  type ExternalLayout,
  loadModel,
  type RewriteOptions,
  type RewriteReport,
  retarget,
  rewriteModel,
  saveModelAsync,
  TARGETS,
  type Target,
  type TargetReport,
} from '../../index.js';
import { checkOutput } from '../files.js';
import { loadGates } from '../gates.js';
import { type Io, type Progress, printJson, withProgress } from '../io.js';
import { parseCount, parseLayers, parseNumbers, parsePositive } from '../options.js';
import { configOf, readTargetConfig, type TargetConfig } from '../target_config.js';
import { printReasons, printSites } from './inspect.js';
import { type MemoryFlags, printMemory, refuseMemory, rewriteMemory } from './rewrite_memory.js';

interface Flags
  extends MemoryFlags,
    Pick<
      RewriteOptions,
      | 'featureMap'
      | 'layers'
      | 'keepSoftmax'
      | 'decay'
      | 'body'
      | 'dtype'
      | 'dryRun'
      | 'window'
      | 'sinks'
      | 'cache'
      | 'features'
      | 'bias'
      | 'seed'
    > {
  variant: RewriteOptions['variant'] | 'rmt';
  output?: string;
  normalize?: boolean;
  gates?: string;
  externalData: ExternalLayout;
  target?: Target;
  writeConfig?: boolean;
  json?: boolean;
}

export function addRewrite(program: Command, io: Io): void {
  program
    .command('rewrite')
    .description('replace softmax attention by linear attention')
    .argument('<model>', 'ONNX file')
    .option('-o, --output <file>', 'where the rewritten model goes')
    .addOption(
      new Option('--variant <name>', 'what replaces softmax; none writes the same attention again')
        .choices([
          'linear',
          'performer',
          'retention',
          'gla',
          'mamba2',
          'delta',
          'gated-delta',
          'hybrid',
          'window',
          'rmt',
          'none',
        ])
        .default('linear'),
    )
    .addOption(
      new Option('--feature-map <name>', 'applied to queries and keys').choices([
        'elu1',
        'relu',
        'exp',
        'silu',
        'softmax',
        'l2norm',
        'identity',
      ]),
    )
    .option('--normalize', 'divide by the sum of weights (default for linear)')
    .option('--no-normalize', 'leave the sum of weights out')
    .option(
      '--layers <list>',
      'layers to rewrite, as in 0,2-3 (default: all that can be)',
      parseLayers,
    )
    .option('--keep-softmax <list>', 'layers to leave alone', parseLayers)
    .option(
      '--window <n>',
      'hybrid and window: last tokens seen exactly (default: 64)',
      parsePositive,
    )
    .option('--sinks <n>', 'hybrid and window: first tokens seen exactly (default: 4)', parseCount)
    .option('--cache <n>', 'hybrid: tokens in between kept exact (default: 0)', parseCount)
    .option(
      '--features <n>',
      'performer, and hybrid uncalibrated: random features of a token',
      parsePositive,
    )
    .option('--seed <n>', 'performer: of its random features (default: 0)', parseCount)
    .addOption(new Option('--dtype <type>', 'of carried states').choices(['float32', 'same']))
    .addOption(
      new Option('--bias <how>', 'drop: leave out biases by position, as of T5').choices(['drop']),
    )
    .option('--decay <list>', 'retention: log decay per head, as in -0.03,-0.01', parseNumbers)
    .option('--memory-tokens <m>', 'rmt: vectors that go from segment to segment', parsePositive)
    .option('--segment <n>', 'rmt: tokens read between two copies of the memory', parsePositive)
    .option('--memory <file>', 'rmt: safetensors with the memory to start from, [m, hidden]')
    .option(
      '--gates <file>',
      'gla, mamba2, delta, gated-delta: gate weights or constants, in safetensors or JSON',
    )
    .addOption(
      new Option('--target <name>', 'names and shapes of states that it can carry').choices(
        TARGETS,
      ),
    )
    .option(
      '--write-config',
      'target transformersjs: also write config.json, changed as its states need it',
    )
    .addOption(
      new Option('--body <kind>', 'what runs where our library is absent').choices([
        'auto',
        'com.microsoft',
        'standard',
      ]),
    )
    .addOption(
      new Option(
        '--external-data <layout>',
        'where weights go: what was outside of the file to <output>.data (keep), all of 1 KB or more (separate), into the file (inline), or not copied (share)',
      )
        .choices(EXTERNAL_LAYOUTS)
        .default('keep'),
    )
    .option('--dry-run', 'say what would be done, write nothing')
    .option('--json', 'print the report as JSON')
    .addHelpText(
      'after',
      `
Examples:
  onnx-fla rewrite model.onnx -o linear.onnx
  onnx-fla rewrite model.onnx -o hybrid.onnx --feature-map exp --keep-softmax 0,3
  onnx-fla rewrite model.onnx -o same.onnx --variant none   # must compute what the original does
  onnx-fla rewrite model.onnx --variant retention --dry-run --json
  onnx-fla rewrite model.onnx -o performer.onnx --variant performer --features 256 --seed 1
  onnx-fla rewrite model.onnx -o mamba.onnx --variant mamba2 --gates gates.safetensors
  onnx-fla rewrite model.onnx -o memory.onnx --variant rmt --memory-tokens 16 --segment 512
`,
    )
    .action((file: string, flags: Flags) => runRewrite(io, file, flags));
}

async function runRewrite(io: Io, file: string, flags: Flags): Promise<void> {
  const { json, output, gates, externalData, target, variant, writeConfig, ...flagsLeft } = flags;
  const { memoryTokens, segment, memory, ...rest } = flagsLeft;
  const { dryRun } = rest;
  if (!output && !dryRun) {
    throw new FlaError('invalid_argument', 'rewrite: give an output file with -o, or --dry-run');
  }
  if (writeConfig && target !== 'transformersjs') {
    throw new FlaError(
      'invalid_argument',
      `rewrite: --write-config is for --target transformersjs, received ${target ?? 'none'}`,
    );
  }
  const model = loadModel(file);
  if (output) checkOutput(model, file, output);
  const written = dryRun ? undefined : output;
  const save = async (update: Progress['update'], beside: Record<string, string> = {}) => {
    io.signal.throwIfAborted();
    if (!written) return;
    await saveModelAsync(model, written, {
      externalData,
      beside,
      signal: io.signal,
      onProgress: (n, total) => update('bytes written', n, total),
    });
  };
  const memoryFlags = { memoryTokens, segment, memory };
  if (variant === 'rmt') {
    const { dryRun: _, ...others } = rest;
    const report = await rewriteMemory(model, file, { ...memoryFlags, gates, target, ...others });
    await withProgress(io, save);
    return printMemory(io, report, written, json);
  }
  refuseMemory(memoryFlags, variant);
  const wanted = target === 'genai' || writeConfig;
  const config = target && wanted && written ? readTargetConfig(target, file, written) : undefined;
  const layerGates = gates ? loadGates(gates) : undefined;
  const report = await withProgress(io, async (update) => {
    const done = await namingFile(file, () =>
      rewriteModel(model, {
        ...rest,
        variant,
        gates: layerGates,
        signal: io.signal,
        onProgress: (n, total) => update('sites', n, total),
      }),
    );
    if (!target || !written) {
      await save(update);
      return done;
    }
    const named = await namingFile(file, async () =>
      retarget(model, target, {
        config: config?.config ?? configOf(target, file),
        filename: path.basename(written),
      }),
    );
    await save(update, config && { [config.output]: config.patched(named.config) });
    return { ...done, ...named };
  });
  if (json) return printJson(io, report);
  printReport(io, report, written, config);
}

function printReport(
  io: Io,
  report: RewriteReport & Partial<TargetReport>,
  output: string | undefined,
  config: TargetConfig | undefined,
): void {
  const written = report.variant === 'none' ? 'softmax again' : report.variant;
  printSites(io, report.sites, 'becomes', (s) => (s.rewritten ? written : 'left alone'));
  printReasons(io, report.sites, (s) => (s.rewritten ? s.notes : [s.reason ?? s.kept!]));
  const count = report.sites.filter((s) => s.rewritten).length;
  const states = report.state.length > 0 ? `, ${report.state.length} states carried` : '';
  io.out(`${count} of ${report.sites.length} rewritten${states}\n`);
  if (config) io.out(`${config.name} written to ${config.output}\n`);
  else if (report.config) io.out(`config.json must say: ${JSON.stringify(report.config)}\n`);
  io.out(output ? `written to ${output}\n` : 'nothing written (dry run)\n');
}
