import { type Command, Option } from 'commander';
import { FlaError } from '../../../ops/error.js';
import { namingFile } from '../../compare/session.js';
import {
  EXTERNAL_LAYOUTS,
  type ExternalLayout,
  LOWER_TARGETS,
  type LowerTarget,
  loadModel,
  lowerModel,
  type Model,
  type MovedNode,
  raiseModel,
  saveModelAsync,
} from '../../index.js';
import { checkOutput } from '../files.js';
import { type Io, printJson, printTable, withProgress } from '../io.js';

interface Flags {
  output?: string;
  externalData: ExternalLayout;
  dryRun?: boolean;
  json?: boolean;
}

const layout = () =>
  new Option(
    '--external-data <layout>',
    'where weights go: what was outside of the file to <output>.data (keep), all of 1 KB or more (separate), into the file (inline), or not copied (share)',
  )
    .choices(EXTERNAL_LAYOUTS)
    .default('keep');

export function addRaise(program: Command, io: Io): void {
  program
    .command('raise')
    .description(
      'turn LinearAttention and CausalConvWithState of ai.onnx and com.microsoft, and loops that compute the same, into com.fla',
    )
    .argument('<model>', 'ONNX file')
    .option('-o, --output <file>', 'where the model goes')
    .addOption(
      new Option('--body <kind>', 'what runs where our library is absent').choices([
        'auto',
        'com.microsoft',
        'standard',
      ]),
    )
    .addOption(layout())
    .option('--dry-run', 'say what would be done, write nothing')
    .option('--json', 'print JSON: [{node, from, to, reason}]')
    .addHelpText(
      'after',
      '\nExamples:\n  onnx-fla raise qwen.onnx -o fast.onnx\n  onnx-fla raise model.onnx --dry-run\n',
    )
    .action(
      (
        file: string,
        { body, ...flags }: Flags & { body?: 'auto' | 'com.microsoft' | 'standard' },
      ) => move(io, 'raise', file, flags, (model) => raiseModel(model, { body })),
    );
}

export function addLower(program: Command, io: Io): void {
  program
    .command('lower')
    .description('replace operators of com.fla by those that others have')
    .argument('<model>', 'ONNX file')
    .option('-o, --output <file>', 'where the model goes')
    .addOption(
      new Option(
        '--to <target>',
        'LinearAttention of com.microsoft, or of ai.onnx 27; or nothing but operators of ai.onnx up to 26',
      )
        .choices(LOWER_TARGETS)
        .default('com.microsoft'),
    )
    .addOption(layout())
    .option('--dry-run', 'say what would be done, write nothing')
    .option('--json', 'print JSON: [{node, from, to, reason}]')
    .addHelpText(
      'after',
      '\nExamples:\n  onnx-fla lower linear.onnx -o plain.onnx --to standard\n  onnx-fla lower linear.onnx --dry-run\n',
    )
    .action((file: string, { to, ...flags }: Flags & { to: LowerTarget }) =>
      move(io, 'lower', file, flags, (model) => lowerModel(model, { to })),
    );
}

async function move(
  io: Io,
  command: string,
  file: string,
  { output, externalData, dryRun, json }: Flags,
  work: (model: Model) => Promise<MovedNode[]>,
): Promise<void> {
  if (!output && !dryRun) {
    throw new FlaError('invalid_argument', `${command}: give an output file with -o, or --dry-run`);
  }
  const model = loadModel(file);
  if (output) checkOutput(model, file, output);
  const moved = await withProgress(io, async (update) => {
    const done = await namingFile(file, () => work(model));
    io.signal.throwIfAborted();
    if (output && !dryRun) {
      await saveModelAsync(model, output, {
        externalData,
        signal: io.signal,
        onProgress: (n, total) => update('bytes written', n, total),
      });
    }
    return done;
  });
  if (json) return printJson(io, moved);
  if (moved.length === 0) return io.out('nothing to change in this model\n');
  printTable(
    io,
    ['node', 'was', 'is now'],
    moved.map((m) => [m.node, m.from, m.to ?? 'left alone']),
  );
  for (const reason of new Set(moved.flatMap((m) => m.reason ?? [])))
    io.out(`left alone: ${reason}\n`);
  const changed = moved.filter((m) => m.to !== null).length;
  io.out(
    `${changed} of ${moved.length} nodes changed${output && !dryRun ? `, written to ${output}` : ''}\n`,
  );
}
