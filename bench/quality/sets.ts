/**
 * What the quality bench measures: models, what they read, and the rewrites that are held against the controls. A rewrite that
 * cannot be made yet has no `make`; its line in docs/quality.md says so.
 */
import path from 'node:path';
import { type Model, type RewriteOptions, rewriteModel } from '../../exporter/index.js';
import { ROOT, TINYLM, TINYRECALL } from '../../test/support/models.js';

/** One way to rewrite a model, in place. */
export interface Rewrite {
  name: string;
  about: string;
  make?: (model: Model) => Promise<unknown>;
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
  make: (model) => rewriteModel(model, options),
});

/** Calibrated rewrites: `make` goes here when there is something that makes them. */
const CALIBRATED: Rewrite[] = [
  { name: 'calibrated, linear only', about: 'fitted feature maps, no window' },
  {
    name: 'calibrated hybrid',
    about: 'exact window and sinks, everything older by fitted feature maps',
  },
  {
    name: 'calibrated hybrid + K softmax layers',
    about: 'the same with layers kept by measured sensitivity',
  },
];

const LANGUAGE: Rewrite[] = [
  rewrite('elu + 1, layer 2', 'one layer of four', { variant: 'linear', layers: [2] }),
  rewrite('elu + 1, layers 1-3', 'all but the first', { variant: 'linear', keepSoftmax: [0] }),
  rewrite('gated delta rule', 'all layers, constant gates', {
    variant: 'gated-delta',
    gates: { default: { decay: { constant: -0.1 }, beta: { constant: 1 } } },
  }),
  ...CALIBRATED,
];

const tinylm = (
  name: string,
  title: string,
  about: string,
  text: string,
  file: string,
): QualitySet => ({
  name,
  title,
  about,
  original: TINYLM.modelKv,
  rewrites: LANGUAGE,
  text: { name: text, file, tokenizer: TINYLM.tokenizer, maxTokens: 8192, context: 512 },
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
  {
    name: 'tinyrecall',
    title: 'tinyrecall: what can be recalled',
    about:
      'A model with 2 layers that was trained, on up to 320 random tokens, to continue what stood earlier: layer 0 looks at the token before, layer 1 looks up. A window of 64 tokens is not enough for that.',
    original: TINYRECALL,
    rewrites: [
      rewrite('elu + 1, layer 0', 'the previous-token layer', { variant: 'linear', layers: [0] }),
      rewrite('elu + 1, layer 1', 'the layer that looks up', { variant: 'linear', layers: [1] }),
      ...CALIBRATED,
    ],
    tasks: { lengths: [64, 128, 256, 320, 640, 1024], samples: 4 },
  },
];
