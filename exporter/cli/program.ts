import { Command } from 'commander';
import { packageVersion } from '../package_version.js';
import { addCalibrate } from './commands/calibrate.js';
import { addCompare } from './commands/compare.js';
import { addGenerate } from './commands/generate.js';
import { addInspect } from './commands/inspect.js';
import { addLower, addRaise } from './commands/move.js';
import { addOps } from './commands/ops.js';
import { addRewrite } from './commands/rewrite.js';
import type { Io } from './io.js';

/** The command line; parsing throws instead of ending the process. */
export function buildProgram(io: Io): Command {
  const program = new Command('onnx-fla')
    .description('Linear attention for ONNX: rewrite a model, compare it, run it at long context.')
    .version(packageVersion())
    .option('--verbose', 'show where errors come from')
    .showHelpAfterError(false)
    .exitOverride()
    .configureOutput({ writeOut: io.out, writeErr: io.err, outputError: () => {} })
    .configureHelp({ subcommandTerm: (c) => `${c.name()} ${argumentsOf(c)}`.trim() })
    .addHelpText(
      'after',
      `
Examples:
  onnx-fla inspect model.onnx
  onnx-fla rewrite model.onnx -o linear.onnx --feature-map elu1
  onnx-fla calibrate model.onnx --data book.txt --tokenizer tokenizer.json -o hybrid.onnx
  onnx-fla compare model.onnx linear.onnx --text book.txt --tokenizer tokenizer.json
  onnx-fla generate linear.onnx --tokenizer tokenizer.json --prompt "Call me"

Ctrl-C stops any command; files appear only when they are complete.
`,
    );
  addInspect(program, io);
  addRewrite(program, io);
  addCalibrate(program, io);
  addCompare(program, io);
  addGenerate(program, io);
  addRaise(program, io);
  addLower(program, io);
  addOps(program, io);
  return program;
}

function argumentsOf(command: Command): string {
  return command.registeredArguments.map((a) => `<${a.name()}>`).join(' ');
}
