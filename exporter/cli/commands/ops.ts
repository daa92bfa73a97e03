import type { Command } from 'commander';
import { loadOnnxRuntime } from '../../compare/session.js';
import { type Io, printJson, printTable } from '../io.js';

export function addOps(program: Command, io: Io): void {
  program
    .command('ops')
    .description('say which operators the native library registers, and for which processor')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  onnx-fla ops\n  onnx-fla ops --json\n')
    .action(async (options: { json?: boolean }) => {
      await loadOnnxRuntime();
      const { nativeInfo } = await import('../../../runtime/node/index.js');
      const { library, runtime, ops } = nativeInfo();
      if (options.json) return printJson(io, { library, runtime, ...ops });
      const rows = Object.entries({ library, onnxruntime: runtime.version, ...ops });
      printTable(
        io,
        ['', ''],
        rows.map(([name, value]) => [name, show(value)]),
      );
    });
}

function show(value: unknown): string {
  if (Array.isArray(value)) return value.map(show).join(', ');
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  return typeof value === 'object' && value !== null ? JSON.stringify(value) : String(value);
}
