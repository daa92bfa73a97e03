import type { Command } from 'commander';
import { namingFile } from '../../compare/session.js';
import { inspectModel, loadModel, type SiteReport } from '../../index.js';
import { type Io, printJson, printTable, withProgress } from '../io.js';
import { wrap } from '../table.js';

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
      if (report.sites.length === 0) return io.out('no Softmax and no attention in this model\n');
      printInspection(io, report.sites);
      const taken = report.sites.filter((s) => s.rewritable).length;
      io.out(`${taken} of ${report.sites.length} can be rewritten\n`);
    });
}

/** What `inspect` says of each site. */
export function printInspection(io: Io, sites: readonly SiteReport[]): void {
  printSites(io, sites, 'rewritable', (s) => (s.rewritable ? 'yes' : 'no'));
  printReasons(io, sites, (s) => (s.reason === null ? [] : [s.reason]));
  printReasons(io, sites, (s) => (s.rewritable ? s.notes : []));
}

/** The table of `inspect` and `rewrite`; they differ in the last column. */
export function printSites<Site extends SiteReport>(
  io: Io,
  sites: readonly Site[],
  verdict: string,
  verdictOf: (site: Site) => string,
): void {
  if (sites.length === 0) return;
  const cell = (value: string | number | null) => (value === null ? '-' : String(value));
  printTable(
    io,
    ['layer', 'node', 'pattern', 'heads', 'dim', 'mask', 'cache', verdict],
    sites.map((s) => [
      cell(s.layer),
      s.node,
      cell(s.pattern),
      s.q_num_heads === null ? '-' : `${s.q_num_heads}/${s.kv_num_heads}`,
      cell(s.head_dim),
      cell(s.mask),
      s.cache ? 'yes' : 'no',
      verdictOf(s),
    ]),
  );
}

/** Says why sites were left or what becomes of them, each sentence once. */
export function printReasons<Site extends SiteReport>(
  io: Io,
  sites: readonly Site[],
  reasonsOf: (site: Site) => readonly string[],
): void {
  const who = new Map<string, string[]>();
  for (const site of sites) {
    const name = site.layer === null ? site.node : `layer ${site.layer}`;
    for (const reason of reasonsOf(site)) who.set(reason, [...(who.get(reason) ?? []), name]);
  }
  for (const [reason, names] of who)
    io.out(`${wrap(`${names.join(', ')}: ${reason}`, io.columns)}\n`);
}
