/**
 * The fuzzing of fuzz.test.ts at any length, without a test runner:
 *
 *   node dist/test/exporter/fuzz.js --inputs 200000 --jobs 16 [--seed S] [--from I]
 *
 * A run that was stopped goes on with the --from that its last line of progress tells, and an --inputs that is as much smaller. On a
 * machine with nothing but Node it needs dist, package.json, test/fixtures without tinylm and tinyrecall, and of node_modules
 * @huggingface/tokenizers, @petamoriken/float16, cli-progress, cli-table3, commander, onnxruntime-common, onnxruntime-node, protobufjs,
 * valibot, and what these depend on. One input alone: `node dist/test/exporter/support/fuzz_child.js EMPTY_FOLDER SEED I I+1`.
 * Failures are printed as they come; the exit code is 1 when there was one.
 */
import os from 'node:os';
import { parseArgs } from 'node:util';
import { type FuzzProgress, fuzz } from './support/fuzz.js';

const EVERY_MS = 10_000;

const { values } = parseArgs({
  options: {
    inputs: { type: 'string', default: '5000' },
    jobs: { type: 'string', default: String(os.availableParallelism()) },
    seed: { type: 'string', default: '20261125' },
    from: { type: 'string', default: '0' },
  },
});
const whole = (name: keyof typeof values, least: number): number => {
  const n = Number(values[name]);
  if (Number.isSafeInteger(n) && n >= least) return n;
  console.error(`--${name} must be a whole number from ${least}, received ${values[name]}`);
  process.exit(1);
};
const inputs = whole('inputs', 1);
const from = whole('from', 0);
const seed = whole('seed', 0);
const jobs = whole('jobs', 1);

const start = performance.now();
let shown = start;
let told = 0;
const onProgress = ({ begun, doneBelow, failures }: FuzzProgress) => {
  for (; told < failures.length; told++) console.log(`failed: ${failures[told]}`);
  const now = performance.now();
  if (now - shown < EVERY_MS) return;
  shown = now;
  const rate = begun / ((now - start) / 1000);
  const left = Math.ceil((inputs - begun) / rate / 60);
  console.log(
    `${begun} of ${inputs} inputs, ${rate.toFixed(0)} a second, ${left} min left, ${failures.length} failed; to go on: --from ${doneBelow}`,
  );
};
const { counts, failures } = await fuzz({ seed, from, to: from + inputs, jobs, onProgress });
const { read, refused, tooDeep } = counts;
console.log(
  `${inputs} inputs of seed ${seed} from ${from}: ${read} rewritten, ${refused} refused with a reason, ${tooDeep} too deep to write, ${failures.length} failed`,
);
process.exitCode = failures.length > 0 ? 1 : 0;
