// The whole path on real models: inspect, rewrite, run, compare. `npm run demo`.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import '../../runtime/node/index.js';
import { printCost } from '../../exporter/cli/commands/compare.js';
import { Progress } from '../../exporter/cli/io.js';
import { measureCost } from '../../exporter/compare/index.js';
import { svgChart, terminalChart } from './chart.js';
import { languageDemo } from './language.js';
import { OUTPUT, TINYLM_CACHED } from './paths.js';
import { io, say, title } from './print.js';
import { readLineDemo } from './read_line.js';

const LENGTHS = [1024, 2048, 4096, 8192, 16384];

function streamDemo(model: string): void {
  title('200,000 tokens in one stream, all layers rewritten (gated delta rule)');
  const here = fileURLToPath(import.meta.url);
  const script = path.join(path.dirname(here), `stream${path.extname(here)}`);
  const { status } = spawnSync(process.execPath, [...process.execArgv, script, model], {
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error(`${script} ended with code ${status}`);
}

async function costDemo(model: string): Promise<void> {
  title('Time and memory against length: reading a text in pieces of 512 tokens');
  say(
    'The original runs in onnxruntime-node as it is, handing its cache back and forth; the rewritten\nmodel through the fla backend. Each is measured in a process of its own, runs taking turns.',
  );
  const progress = new Progress(io);
  const cost = await measureCost({
    original: { file: TINYLM_CACHED, choice: { backend: 'stock' } },
    rewritten: { file: model, choice: { backend: 'fla' } },
    lengths: LENGTHS,
    vocabulary: 1000,
    runs: 3,
    onProgress: (done, total) => progress.update('lengths', done, total),
  });
  progress.end();
  printCost(io, cost);
  say(terminalChart(cost));
  const svg = path.join(OUTPUT, 'cost.svg');
  await svgChart(cost, svg);
  say(`\nChart with logarithmic axes: ${path.relative(process.cwd(), svg)}`);
}

const start = performance.now();
fs.mkdirSync(OUTPUT, { recursive: true });
say(
  `onnx-fla demo on ${os.cpus()[0]?.model ?? 'an unknown processor'}, ${os.availableParallelism()} cores`,
);
await readLineDemo();
const model = await languageDemo();
streamDemo(model);
await costDemo(model);
say(`\nDone in ${((performance.now() - start) / 1000).toFixed(0)} s.`);
