// Reads a very long text in one stream: `node stream.js model.onnx`. In a process of its own, so that
// the resident memory printed is this work's alone.
import fs from 'node:fs';
import { formatBytes, formatNumber } from '../../exporter/cli/format.js';
import { printTable } from '../../exporter/cli/io.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { StatefulSession } from '../../runtime/node/index.js';
import { TINYLM_TEXT, TINYLM_TOKENIZER } from './paths.js';
import { io } from './print.js';

const MARKS = [1_000, 10_000, 100_000, 200_000];
const CHUNK = 500;

const tokenizer = loadTokenizer(TINYLM_TOKENIZER);
const book = tokenizer.encode(fs.readFileSync(TINYLM_TEXT, 'utf8'));
const session = await StatefulSession.create(process.argv[2]!);
const rows: string[][] = [];
let spent = 0;
for (const mark of MARKS) {
  const tokensBefore = session.position;
  // The text is shorter than the stream; it starts over when it ends.
  const ids = Array.from(
    { length: mark - tokensBefore },
    (_, i) => book[(tokensBefore + i) % book.length]!,
  );
  const start = performance.now();
  await session.prefill(ids, { chunk: CHUNK });
  const ms = performance.now() - start;
  spent += ms;
  rows.push([
    String(session.position),
    formatBytes(process.memoryUsage.rss()),
    formatBytes(session.stateBytes),
    formatNumber((ids.length * 1000) / ms, 3),
  ]);
}
printTable(io, ['tokens read', 'resident memory', 'state', 'tokens/s since the line above'], rows);
io.out(`${MARKS.at(-1)} tokens in ${(spent / 1000).toFixed(1)} s\n`);
await session.dispose();
