/** The models that fuzzing starts from, each made when it is first asked for. */
import fs from 'node:fs';
import path from 'node:path';
import {
  lowerModel,
  type Model,
  modelBytes,
  nodeRunner,
  parseModel,
  type RewriteOptions,
  raiseModel,
  rewriteModel,
} from '../../../exporter/index.js';
import { conformanceCases } from '../../cases/conformance.js';
import { ROOT } from '../../support/models.js';
import { modelOf } from './conformance.js';
import { DECODERS, decoder, GROUPED, merged } from './decoder.js';
import { QUANTISED, quantiser } from './families/quantised.js';
import { FAMILIES, Writer } from './families.js';
import { makeLayer } from './layer.js';
import { kerasLoop } from './loops.js';
import { conditional, functions, loop, masked, plain } from './nested.js';
import { SCAN_FORMS, scanModel } from './scan.js';
import { TRANSFORMERS, transformersBytes, transformersSize } from './transformers.js';

type Make = () => Uint8Array | Promise<Uint8Array>;

/** Real files up to this size: larger ones take longer and hold no other nodes. */
const REAL_BYTES = 64 * 1024;

const read = (file: string): Make => {
  return () => fs.readFileSync(path.join(ROOT, 'test/fixtures', file));
};
const filesOf = (folder: string): Make[] =>
  fs
    .readdirSync(path.join(ROOT, 'test/fixtures', folder))
    .filter((f) => f.endsWith('.onnx'))
    .map((f) => read(path.join(folder, f)));
const made =
  (make: () => Model | Promise<Model>): Make =>
  async () =>
    modelBytes(await make());

/** Constants that fit any layer. */
const GATES: Partial<Record<RewriteOptions['variant'], RewriteOptions['gates']>> = {
  gla: { default: { decay: { constant: -0.1 } } },
  mamba2: { default: { a: { constant: -1 }, dt: { constant: 0.1 } } },
  'gated-delta': { default: { decay: { constant: -0.1 }, beta: { constant: 0.5 } } },
};
const WRITTEN = [
  'linear',
  'performer',
  'retention',
  'gla',
  'mamba2',
  'delta',
  'gated-delta',
] as const;
const WINDOWED = ['hybrid', 'window'] as const;

const rewritten = async (model: Model, variant: RewriteOptions['variant']): Promise<Model> => {
  await rewriteModel(model, { variant, gates: GATES[variant], runner: nodeRunner });
  return parseModel(modelBytes(model));
};
const raised = async (model: Model): Promise<Model> => {
  await raiseModel(model, { runner: nodeRunner });
  return parseModel(modelBytes(model));
};
const lowered = async (model: Model): Promise<Model> => {
  await lowerModel(model, { to: 'com.microsoft', runner: nodeRunner });
  return parseModel(modelBytes(model));
};

const SMALL_REAL = TRANSFORMERS.filter(({ name }) => transformersSize(name) <= REAL_BYTES);
const real = (names: typeof TRANSFORMERS): Make[] =>
  names.map(
    ({ name }) =>
      () =>
        transformersBytes(name),
  );

export const SEEDS = {
  /** Softmax attention as torch exports it, and as the families' builders write it. */
  attention: [
    ...filesOf('torch'),
    ...FAMILIES.map((f) => made(() => f.build(new Writer(f.layer?.() ?? makeLayer())))),
    ...[...DECODERS, ...GROUPED].map(({ spec }) => made(() => decoder(spec))),
    ...QUANTISED.map(({ build }) => made(() => build(quantiser()))),
    made(() => conditional(plain(), masked())),
    made(loop),
    made(() => functions()),
    made(() => merged(DECODERS[0]!.spec)),
  ],
  real: real(SMALL_REAL),
  /** Recurrences: operators of com.fla, com.microsoft and ai.onnx, and the loops and function bodies that compute the same. */
  recurrence: [
    ...filesOf('loops'),
    ...SCAN_FORMS.map((form) => made(() => scanModel(form, { H: 3, K: 8, V: 4 }))),
    made(() => kerasLoop()),
    ...conformanceCases.flatMap((c) => [
      made(() => modelOf(c, '', 27)),
      made(() => modelOf(c, 'com.microsoft', 21, false)),
      made(() => raised(modelOf(c, '', 27))),
    ]),
    ...[...WRITTEN, ...WINDOWED].flatMap((variant) => [
      made(() => rewritten(plain(), variant)),
      made(() => rewritten(decoder(DECODERS[1]!.spec), variant)),
    ]),
    ...WRITTEN.map((variant) => made(async () => lowered(await rewritten(plain(), variant)))),
  ],
  /** Language models without a cache, which can be given memory tokens. */
  language: [
    ...DECODERS.map(({ spec }) => made(() => decoder({ ...spec, cache: false }))),
    ...real(
      SMALL_REAL.filter(({ model }) =>
        /^(gpt2|gpt_neox|gemma|falcon|mistral|bloom|opt)/.test(model),
      ),
    ),
  ],
} as const satisfies Record<string, readonly Make[]>;

export type SeedKind = keyof typeof SEEDS;

const known = new Map<Make, Uint8Array>();

/** The bytes of a seed, the same at every call. */
export async function seedBytes(make: Make): Promise<Uint8Array> {
  const bytes = known.get(make) ?? (await make());
  known.set(make, bytes);
  return bytes;
}
