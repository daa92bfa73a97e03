import type { Command } from 'commander';
import { namingFile } from '../../compare/session.js';
import { inspectModel, loadModel, type SiteReport } from '../../index.js';
import { type Io, printJson, printTable, withProgress } from '../io.js';

export function addInspect(program: Command, io: Io): void {
  program
    .command('inspect')
    .description('list every Softmax of a model: attention that can be rewritten, or why not')
    .argument('<model>', 'ONNX file')
    .option('--json', 'print JSON: {sites: [...]}')
    .addHelpText(
      'after',
      '\nExamples:\n  onnx-fla inspect model.onnx\n  onnx-fla inspect model.onnx --json | jq ".sites[] | select(.rewritable)"\n',
    )
    .action(async (file: string, options: { json?: boolean }) => {
      const model = loadModel(file);
      const report = await withProgress(io, (update) =>
        namingFile(file, () =>
          inspectModel(model, {
            signal: io.signal,
            onProgress: (done, total) => update('sites', done, total),
          }),
        ),
      );
      if (options.json) return printJson(io, report);
      printSites(io, report.sites);
      if (report.sites.length === 0) return io.out('no Softmax and no attention in this model\n');
      const taken = report.sites.filter((s) => s.rewritable).length;
      io.out(`${taken} of ${report.sites.length} can be rewritten\n`);
    });
}

/** The table of `inspect`; `verdict` says what the last column holds. */
export function printSites<Site extends SiteReport>(
  io: Io,
  sites: readonly Site[],
  verdict: (site: Site) => string = (s) => (s.rewritable ? 'can be rewritten' : (s.reason ?? '')),
): void {
  if (sites.length === 0) return;
  const cell = (value: string | number | null) => (value === null ? '-' : String(value));
  printTable(
    io,
    ['layer', 'node', 'pattern', 'heads q/kv', 'head dim', 'mask', 'cache', ''],
    sites.map((s) => [
      cell(s.layer),
      s.node,
      cell(s.pattern),
      s.q_num_heads === null ? '-' : `${s.q_num_heads}/${s.kv_num_heads}`,
      cell(s.head_dim),
      cell(s.mask),
      s.cache ? 'yes' : 'no',
      verdict(s),
    ]),
  );
}
