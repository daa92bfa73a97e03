/**
 * Reads, inspects, rewrites and writes mutated models, in a process of its own so that a hang or a crash is seen from outside.
 *
 *   fuzz_child.ts FOLDER SEED FROM TO
 *
 * FOLDER/model is the only folder that may be read and written. For each input it prints `> i`, `=` when it is made, and for each failure
 * `! what`; at the end one line of JSON.
 */
import fs from 'node:fs';
import path from 'node:path';
import {
  inspectModel,
  loadModel,
  nodeRunner,
  type Runner,
  rewriteModel,
  saveModel,
} from '../../../exporter/index.js';
import { decodeModel, encodeModel } from '../../../exporter/ir/proto.js';
import { FlaError } from '../../../ops/error.js';
import { ROOT } from '../../support/models.js';
import { mutate } from '../../support/mutate.js';
import { EXTERNAL, mutateModel } from '../../support/mutate_model.js';
import { DECODERS, decoder, GROUPED, merged } from './decoder.js';
import { QUANTISED, quantiser } from './families/quantised.js';
import { FAMILIES, Writer } from './families.js';
import { makeLayer } from './layer.js';
import { conditional, functions, loop, masked, plain } from './nested.js';
import { random } from './run.js';

const [outer, seed, from, to] = process.argv.slice(2) as [string, string, string, string];
const folder = path.join(outer, 'model');
const VARIANTS = [
  'none',
  'linear',
  'performer',
  'retention',
  'gla',
  'delta',
  'gated-delta',
] as const;

/** Models to start from: what torch exported, and what the families' builders write. */
const torch = path.join(ROOT, 'test/fixtures/torch');
const SOURCES: Uint8Array[] = [
  ...fs
    .readdirSync(torch)
    .filter((f) => f.endsWith('.onnx'))
    .map((f) => fs.readFileSync(path.join(torch, f))),
  ...[
    ...FAMILIES.map((f) => f.build(new Writer(f.layer?.() ?? makeLayer()))),
    ...[...DECODERS, ...GROUPED].map(({ spec }) => decoder(spec)),
    ...QUANTISED.map(({ build }) => build(quantiser())),
    ...[conditional(plain(), masked()), loop(), functions(), merged(DECODERS[0]!.spec)],
  ].map((m) => encodeModel(m.proto)),
];

/** Most mutations are about reading; a runner that refuses, as ONNX Runtime may, is faster. */
const refusing: Runner = { run: () => Promise.reject(new Error('refused')) };
/** ONNX Runtime, which must never be handed a model that reads files. */
const running: Runner = {
  run(model, feeds, outputs) {
    const { graph } = decodeModel(model);
    const tensors = [
      ...graph.initializer,
      ...graph.node.flatMap((n) => n.attribute.flatMap((a) => (a.t ? [a.t] : []))),
    ];
    if (tensors.some((t) => t.dataLocation === 1))
      throw new Error('a model that reads files was run');
    return nodeRunner.run(model, feeds, outputs);
  },
};

/** Opens outside of the model's folder while an input is at work. */
const opened: string[] = [];
let watching = false;
const openSync = fs.openSync;
const readFileSync = fs.readFileSync;
const noted = (file: unknown) => {
  if (!watching || typeof file !== 'string') return;
  const real = fs.existsSync(file) ? fs.realpathSync(file) : path.resolve(file);
  if (!real.startsWith(folder + path.sep)) opened.push(real);
};
fs.openSync = (...args: Parameters<typeof openSync>) => {
  noted(args[0]);
  return openSync(...args);
};
fs.readFileSync = ((...args: Parameters<typeof readFileSync>) => {
  noted(args[0]);
  return readFileSync(...args);
}) as typeof readFileSync;

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

const input = path.join(folder, 'in.onnx');
const output = path.join(folder, 'out.onnx');
const counts = { read: 0, refused: 0, tooDeep: 0 };

for (let i = Number(from); i < Number(to); i++) {
  fs.writeSync(1, `> ${i}\n`);
  const next = random(Number(seed) * 1_000_003 + i);
  const below = (n: number) => Math.min(Math.max(n - 1, 0), Math.floor(((next() + 1) / 2) * n));
  const source = SOURCES[below(SOURCES.length)]!;
  let what = 'bytes';
  let bytes: Uint8Array;
  if (below(5) === 0) bytes = mutate(source, below);
  else {
    const model = decodeModel(source);
    what = mutateModel(model, below);
    try {
      bytes = encodeModel(model);
    } catch (error) {
      if (!/max depth/.test(String(error))) throw error;
      counts.tooDeep++; // for the writer
      continue;
    }
  }
  fs.writeFileSync(input, bytes);
  const runner = below(5) === 0 ? running : refusing;
  const fail = (why: string, cause?: unknown) => {
    const stack =
      cause instanceof Error ? `: ${cause.stack?.split('\n').slice(0, 4).join(' | ')}` : '';
    fs.writeSync(1, `! input ${i} of seed ${seed} (${what}): ${why}${stack}\n`);
  };
  fs.writeSync(1, '=\n');
  watching = true;
  try {
    await inspectModel(loadModel(input), { runner });
    const model = loadModel(input);
    await rewriteModel(model, {
      variant: VARIANTS[below(VARIANTS.length)]!,
      runner,
      ...(below(4) === 0 ? { layers: [0] } : {}),
    });
    saveModel(model, output);
    counts.read++;
  } catch (error) {
    counts.refused++;
    const { message } = error as Error;
    if (!(error instanceof FlaError)) fail('no FlaError', error);
    else if (message === '' || message.includes('\n'))
      fail(`not one line: ${JSON.stringify(message)}`);
  } finally {
    watching = false;
  }
  if (opened.length > 0) fail(`opened ${opened.splice(0).join(', ')}`);
  for (const f of [output, `${output}.data`]) fs.rmSync(f, { force: true });
  const left = fs.readdirSync(folder).filter((f) => !f.startsWith('in.'));
  if (left.length > 0) fail(`left ${left.join(', ')}`);
  const outside = fs.readdirSync(outer).filter((f) => f !== 'model' && f !== 'secret.bin');
  if (outside.length > 0) fail(`wrote ${outside.join(', ')}`);
}
if (fs.readFileSync(path.join(outer, 'secret.bin'), 'utf8') !== 'secret')
  throw new Error('secret.bin was written');
console.log(JSON.stringify(counts));
