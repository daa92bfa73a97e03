/**
 * What the quality bench measures: models, what they read, and the rewrites that are held against the controls.
 */
import path from 'node:path';
import {
  arrayData,
  assemble,
  type CalibrateOptions,
  type Calibration,
  type CalibrationData,
  calibrate,
  chooseLayers,
  loadModel,
  type RewriteOptions,
  rewriteModel,
  tokenData,
} from '../../exporter/index.js';
import { Random } from '../../exporter/random.js';
import { readText } from '../../exporter/text/read_text.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { recallSequence } from '../../test/exporter/calibrate/sequences.js';
import { ROOT, TINYLM, TINYRECALL } from '../../test/support/models.js';
import { inPlace, type Way } from './controls.js';

/** One way to rewrite a model. */
export interface Rewrite extends Pick<Way, 'name' | 'make'> {
  about: string;
}

export interface QualitySet {
  /** Name of the result file. */
  name: string;
  title: string;
  about: string;
  original: string;
  rewrites: Rewrite[];
  text?: { name: string; file: string; tokenizer: string; maxTokens: number; context: number };
  tasks?: { lengths: number[]; samples: number };
}

const rewrite = (name: string, about: string, options: RewriteOptions): Rewrite => ({
  name,
  about,
  make: inPlace((model) => rewriteModel(model, options)),
});

/** Calibrated rewrites, all of one fit: without softmax layers, and with one that was chosen. */
function calibrated(
  original: string,
  data: (repeated: number) => CalibrationData,
  options: CalibrateOptions,
): Rewrite[] {
  let fit: Promise<Calibration> | undefined;
  const fitted = () => {
    fit ??= calibrate(loadModel(original), data(0.25), options);
    return fit;
  };
  return [
    {
      name: `calibrated hybrid, ${options.features} features`,
      about: 'exact window and sinks, everything older by fitted feature maps',
      make: async (model) => (await assemble(model, await fitted())).model,
    },
    {
      name: 'calibrated hybrid + 1 softmax layer',
      about: 'the same with the layer kept that matters most by measurement',
      async make(model) {
        const calibration = await fitted();
        const rows = await chooseLayers(model, calibration, data(1), { keep: 1 }, { batches: 2 });
        return (await assemble(model, calibration, rows.at(-1)!.kept)).model;
      },
    },
  ];
}

const MEASURED = 8192; // tokens at the start of the held-out text
const CONTEXT = 512;

/** Pieces of the text behind what is measured. */
function tinylmData(repeated: number): CalibrationData {
  const ids = loadTokenizer(TINYLM.tokenizer).encode(readText(TINYLM.text));
  return tokenData(ids.slice(MEASURED), { length: CONTEXT, repeated, distance: 64 });
}

function recallData(): CalibrationData {
  const [count, tokens] = [2000, 320];
  const ids = Array.from({ length: count }, (_, i) => recallSequence(new Random(7, i), tokens).ids);
  const input_ids = { dims: [count, tokens], data: Float64Array.from(ids.flat()) };
  return arrayData(new Map([['input_ids', input_ids]]), { batch: 2 });
}

const LANGUAGE: Rewrite[] = [
  rewrite('elu + 1, layer 2', 'one layer of four', { variant: 'linear', layers: [2] }),
  rewrite('elu + 1, layers 1-3', 'all but the first', { variant: 'linear', keepSoftmax: [0] }),
  rewrite('gated delta rule', 'all layers, constant gates', {
    variant: 'gated-delta',
    gates: { default: { decay: { constant: -0.1 }, beta: { constant: 1 } } },
  }),
  ...calibrated(TINYLM.modelKv, tinylmData, { features: 256, steps: 160, refitBatches: 16 }),
];

const constant = (value: number) => ({ constant: value });

/** Variants without an exact window: as they come, and fitted. */
const VARIANTS: Rewrite[] = [
  { variant: 'performer' } as const,
  { variant: 'gla', gates: { default: { decay: constant(-0.1) } } } as const,
  { variant: 'mamba2', gates: { default: { a: constant(-1), dt: constant(0.1) } } } as const,
  { variant: 'delta' } as const,
  {
    variant: 'gated-delta',
    gates: { default: { decay: constant(-0.1), beta: constant(1) } },
  } as const,
].flatMap((options): Rewrite[] => {
  const { variant } = options;
  const fitted = (name: string, about: string, more: CalibrateOptions): Rewrite => ({
    name: `${variant}, ${name}`,
    about,
    async make(model) {
      const fit = { variant, steps: 60, refitBatches: 16, ...more };
      return (await assemble(model, await calibrate(model, tinylmData(0), fit))).model;
    },
  });
  const unfitted = rewrite(variant, 'as it comes, constant gates', options);
  if (variant === 'performer') return [unfitted, fitted('fitted', 'directions fitted', {})];
  const projected = fitted('fitted', "gates are projections of the layer's input", {});
  if (variant === 'gla' || variant === 'delta') return [unfitted, projected];
  const constants = { constantGates: true };
  return [unfitted, fitted('constants fitted', 'gates are constants', constants), projected];
});

const tinylm = (
  name: string,
  title: string,
  about: string,
  text: string,
  file: string,
  rewrites: Rewrite[] = LANGUAGE,
): QualitySet => ({
  name,
  title,
  about,
  original: TINYLM.modelKv,
  rewrites,
  text: { name: text, file, tokenizer: TINYLM.tokenizer, maxTokens: MEASURED, context: CONTEXT },
});

export const SETS: QualitySet[] = [
  tinylm(
    'tinylm-held-out',
    'tinylm on held-out text',
    'A language model with 4 layers and 2.9 M parameters, on documents of the kind that it was trained on.',
    'val.txt',
    TINYLM.text,
  ),
  tinylm(
    'tinylm-other-domain',
    'tinylm on program text',
    "The same model on text of a kind that it has never seen: the type declarations of Node's file system (@types/node).",
    '@types/node/fs.d.ts',
    path.join(ROOT, 'node_modules/@types/node/fs.d.ts'),
  ),
  tinylm(
    'tinylm-variants',
    'tinylm: variants without an exact window',
    'The same held-out text, all four layers rewritten to each variant: with gates or random features as they come, and fitted by calibration (60 steps of 512 tokens, 16 batches for the refit).',
    'val.txt',
    TINYLM.text,
    VARIANTS,
  ),
  {
    name: 'tinyrecall',
    title: 'tinyrecall: what can be recalled',
    about:
      'A model with 2 layers that was trained, on up to 320 random tokens, to continue what stood earlier: layer 0 looks at the token before, layer 1 looks up. A window of 64 tokens is not enough for that.',
    original: TINYRECALL,
    rewrites: [
      rewrite('elu + 1, layer 0', 'the previous-token layer', { variant: 'linear', layers: [0] }),
      rewrite('elu + 1, layer 1', 'the layer that looks up', { variant: 'linear', layers: [1] }),
      ...calibrated(TINYRECALL, recallData, {
        features: 256,
        featureMap: 'softmax',
        unrotated: true,
        focus: 1,
        outputShare: 0,
        rate: 0.005,
        steps: 160,
      }),
    ],
    tasks: { lengths: [64, 128, 256, 320, 640, 1024], samples: 4 },
  },
];
