/**
 * Does with mutated models what the command line does (inspect, rewrite, raise, lower), in a process of its own so that a hang or a
 * crash is seen from outside.
 *
 *   fuzz_child.ts FOLDER SEED FROM TO
 *
 * FOLDER/model is the only folder that may be read and written. For each input it prints `> i`, `= what` when it is made, and for each failure
 * `! what`; at the end one line of JSON.
 */
import fs from 'node:fs';
import path from 'node:path';
import { Command, CommanderError } from 'commander';
import { addInspect } from '../../../exporter/cli/commands/inspect.js';
import { addLower, addRaise } from '../../../exporter/cli/commands/move.js';
import { addRewrite } from '../../../exporter/cli/commands/rewrite.js';
import {
  loadModel,
  nodeRunner,
  rewriteModel,
  saveModel,
  validateModel,
} from '../../../exporter/index.js';
import { decodeModel, encodeModel } from '../../../exporter/ir/proto.js';
import { Random } from '../../../exporter/random.js';
import { FlaError } from '../../../ops/error.js';
import { mutate } from '../../support/mutate.js';
import { type Below, EXTERNAL, mutateModel } from '../../support/mutate_model.js';
import { watchFs } from './fs_watch.js';
import { drawWork, type Work } from './fuzz_commands.js';
import { SEEDS, type SeedKind, seedBytes } from './fuzz_seeds.js';

const [outer, seed, from, to] = process.argv.slice(2) as [string, string, string, string];
const folder = path.join(outer, 'model');
const input = path.join(folder, 'in.onnx');
const output = path.join(folder, 'out.onnx');

/** How often which models are drawn. */
const SHARES: readonly SeedKind[] = [
  ...(['attention', 'attention', 'attention', 'attention', 'attention'] as const),
  ...(['recurrence', 'recurrence', 'recurrence', 'real', 'language'] as const),
];

/**
 * ONNX Runtime must never be handed a model that reads files. Most mutations are about reading; that it refuses at once, as it may, is
 * faster.
 */
let refusing = false;
const run = nodeRunner.run.bind(nodeRunner);
nodeRunner.run = async (model, feeds, outputs) => {
  if (readsFiles(decodeModel(model))) throw new Error('a model that reads files was run');
  if (refusing) throw new Error('refused');
  return run(model, feeds, outputs);
};
const readsFiles = (value: unknown): boolean =>
  typeof value === 'object' &&
  value !== null &&
  !ArrayBuffer.isView(value) &&
  ((value as { dataLocation?: number }).dataLocation === 1 ||
    Object.values(value).some(readsFiles));

/** A small disk: what a sparse file holds could otherwise be copied for as long as the real one has room. */
const DISK = 2 ** 28;
const statfsSync = fs.statfsSync;
fs.statfsSync = ((where: fs.PathLike) => {
  const real = statfsSync(where);
  return Object.assign(real, { bavail: Math.min(real.bavail, DISK / real.bsize) });
}) as typeof statfsSync;

fs.mkdirSync(folder, { recursive: true });
fs.writeFileSync(path.join(outer, 'secret.bin'), 'secret');
fs.writeFileSync(path.join(folder, EXTERNAL.data), Buffer.alloc(65536));
fs.writeFileSync(path.join(folder, EXTERNAL.sparse), '');
fs.truncateSync(path.join(folder, EXTERNAL.sparse), 2 ** 40);
fs.rmSync(path.join(folder, EXTERNAL.link), { force: true });
fs.symlinkSync('../secret.bin', path.join(folder, EXTERNAL.link));
const lasting = () =>
  [EXTERNAL.data, EXTERNAL.sparse].map((f) => fs.statSync(path.join(folder, f)).mtimeMs).join();

/** The command line, without what reads no models of others. */
function program(out: string[]): Command {
  const io = {
    out: (text: string) => void out.push(text),
    err: () => {},
    signal: new AbortController().signal,
    interactive: false,
    columns: 120,
  };
  const commands = new Command('onnx-fla')
    .exitOverride()
    .configureOutput({ writeOut: io.out, writeErr: io.err, outputError: () => {} });
  for (const add of [addInspect, addRewrite, addRaise, addLower]) add(commands, io);
  return commands;
}

async function doWork(work: Work): Promise<void> {
  if (work.kind === 'command') {
    const out: string[] = [];
    await program(out).parseAsync(work.args, { from: 'user' });
    if (work.args.includes('--json')) JSON.parse(out.join(''));
    return;
  }
  const model = loadModel(input);
  await rewriteModel(model, work.options);
  saveModel(model, output);
}

/** A seed, changed; undefined when it is nested too deep to be written. */
async function drawModel(
  kind: SeedKind,
  below: Below,
): Promise<{ what: string; bytes: Uint8Array } | undefined> {
  const source = await seedBytes(SEEDS[kind][below(SEEDS[kind].length)]!);
  if (below(5) === 0) return { what: 'bytes', bytes: mutate(source, below) };
  const model = decodeModel(source);
  const what = below(8) === 0 ? 'as it is' : mutateModel(model, below);
  try {
    return { what, bytes: encodeModel(model) };
  } catch (error) {
    if (/max depth/.test(String(error))) return undefined;
    throw error;
  }
}

const counts = { read: 0, refused: 0, tooDeep: 0 };
const watch = watchFs(folder);
const begun = lasting();
// What is loaded when it is first needed is loaded now, while nobody watches.
fs.writeFileSync(input, await seedBytes(SEEDS.attention[0]!));
await doWork({ kind: 'command', args: ['rewrite', input, '-o', output] });
fs.rmSync(output);

async function doInput(i: number): Promise<void> {
  const random = new Random(Number(seed), i);
  const below = (n: number) => random.below(n);
  const kind = SHARES[below(SHARES.length)]!;
  const drawn = await drawModel(kind, below);
  const work = drawWork(kind, input, output, below);
  refusing = below(2) > 0;
  if (!drawn) {
    counts.tooDeep++;
    return;
  }
  const { what, bytes } = drawn;
  fs.writeFileSync(input, bytes);
  const sidecar = work.kind === 'command' ? work.sidecar : undefined;
  if (sidecar) fs.writeFileSync(path.join(folder, sidecar.name), sidecar.bytes);
  const told =
    work.kind === 'command' ? work.args.map((a) => path.basename(a)).join(' ') : said(work.options);
  const about = `${kind}: ${what}; ${told}`;
  const fail = (why: string, cause?: unknown) => {
    const stack =
      cause instanceof Error ? `: ${cause.stack?.split('\n').slice(0, 4).join(' | ')}` : '';
    print('!', `input ${i} of seed ${seed} (${about}): ${why}${stack}`);
  };
  print('=', about);
  watch.start();
  try {
    await doWork(work);
    counts.read++;
    if (fs.existsSync(output)) validateModel(loadModel(output));
  } catch (error) {
    counts.refused++;
    const { message } = error as Error;
    if (!(error instanceof FlaError || error instanceof CommanderError)) fail('no FlaError', error);
    else if (message === '' || (error instanceof FlaError && message.includes('\n')))
      fail(`not one line: ${JSON.stringify(message)}`);
    else if (fs.existsSync(output)) fail('it was written, and is refused', error);
  }
  const opened = watch.stop();
  if (opened.length > 0) fail(`asked for ${opened.join(', ')}`);
  if (!fs.readFileSync(input).equals(bytes)) fail('the model itself was changed');
  for (const f of [output, `${output}.data`]) fs.rmSync(f, { force: true });
  const left = fs.readdirSync(folder).filter((f) => !f.startsWith('in.'));
  if (left.length > 0) fail(`left ${left.join(', ')}`);
  const outside = fs.readdirSync(outer).filter((f) => f !== 'model' && f !== 'secret.bin');
  if (outside.length > 0) fail(`wrote ${outside.join(', ')}`);
}

const print = (sign: string, text: string | number) =>
  fs.writeSync(1, `${sign} ${String(text).replaceAll('\n', '\\n')}\n`);
const said = (options: unknown) =>
  JSON.stringify(options, (_, v) =>
    typeof v === 'number' || v === undefined ? String(v) : v,
  ).slice(0, 400);

for (let i = Number(from); i < Number(to); i++) {
  print('>', i);
  await doInput(i);
}
watch.restore();
if (fs.readFileSync(path.join(outer, 'secret.bin'), 'utf8') !== 'secret' || lasting() !== begun)
  throw new Error('a file that models refer to was written');
console.log(JSON.stringify(counts));
