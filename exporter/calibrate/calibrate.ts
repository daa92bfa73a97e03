import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { type AnalysedSite, type Analysis, analyse } from '../analysis.js';
import { tensorInputs } from '../compare/feeds.js';
import type { SessionChoice } from '../compare/session.js';
import type { Model } from '../ir/index.js';
import { nodeRunner } from '../node_runner.js';
import { openedUp } from '../open_up.js';
import { type RewriteReport, rewriteModel } from '../rewrite.js';
import { validateModel } from '../validate.js';
import type { HybridLayer, LayerGates, RewriteOptions } from '../variants/options.js';
import { defaultFeatures, lifted } from '../variants/performer.js';
import { loadCheckpoint, saveCheckpoint } from './checkpoint.js';
import { copyModel, replaceWeight } from './copy.js';
import { type CalibrationData, makeBatch, type Part } from './data/index.js';
import { distil } from './distil.js';
import { type FitOptions, LayerFit } from './fit.js';
import { GateFit } from './gate_fit.js';
import { GATED_VARIANTS, type GatedVariant, type GateForm } from './gate_parameters.js';
import { outputProjection } from './projection.js';
import { type Batches, type Projection, refitProjection, TEACHER } from './refit.js';
import { type HeadSizes, type HybridForm, parameterShapes } from './student.js';
import { type TappedHeads, type TappedLayer, Taps } from './taps.js';
import type { Values } from './training.js';

export interface CalibrateOptions extends SessionChoice {
  /**
   * What causal attention becomes: `hybrid` (default); `performer`, whose directions are fitted; or a variant with gates, which are.
   * A model without causal attention becomes `linear`.
   */
  variant?: CalibratedVariant;
  /** Variants with gates: constants to begin with, by layer, with `default` for all others. */
  gates?: RewriteOptions['gates'];
  /** Variants with gates: fit constants, not projections of the layer's input. Default false. */
  constantGates?: boolean;
  /** Last tokens seen exactly; default 64. Causal attention only, as are `sinks`, `cache`, `unrotated` and `distil`. */
  window?: number;
  /** First tokens seen exactly; default 4. */
  sinks?: number;
  /** Tokens in between kept exact; default 0. */
  cache?: number;
  /** Features of a token in a head; default twice the head dimension (`performer`: about d log d). */
  features?: number;
  /** `exp`: exp([x W; -x W] + b), as Hedgehog has it; `softmax`: softmax(x W + b), a soft hash. Default `exp`. */
  featureMap?: 'exp' | 'softmax';
  /**
   * Features of queries and keys before their rotary embedding, where one is found; the window then also carries these keys.
   * Default false.
   */
  unrotated?: boolean;
  /** Layers to convert; default: every causal one that can be, or in a model without these every bidirectional one. */
  layers?: readonly number[];
  keepSoftmax?: readonly number[];
  /** Steps of Adam; default 300. */
  steps?: number;
  /** Learning rate; default 0.01 (softmax 0.003, performer 0.03, gates 0.1). */
  rate?: number;
  seed?: number;
  /** Queries that a step looks at, per sequence; default 128. */
  rows?: number;
  /** Share of the steps, at the end, that fit outputs rather than weights; default 0.3. */
  outputShare?: number;
  /** How much queries count that look up a few far tokens, against all alike: 0 (default) to 1. */
  focus?: number;
  /** How sharp features are at the start. Default 1 for exp, 3 for softmax. */
  sharpness?: number;
  /** Refit the matrices that mix heads; default true. */
  refit?: boolean;
  /** Batches that these are refit on; default 32. */
  refitBatches?: number;
  /** Steps of training the whole model to predict what the original predicts; default 0. Language models only. */
  distil?: number;
  /** Learning rate of these; default 0.002. */
  distilRate?: number;
  /** A file to go on from after an interruption. */
  checkpoint?: string;
  onProgress?: (stage: string, done: number, total: number) => void;
  signal?: AbortSignal;
}

/** What a causal model can be calibrated to. */
export type CalibratedVariant = 'hybrid' | 'performer' | GatedVariant;

/** Fitted parameters, from which models with any of the layers converted can be made. */
export interface Calibration {
  readonly options: CalibrateOptions;
  /** Causal attention becomes HybridAttention, bidirectional attention LinearAttention with these features. */
  readonly bidirectional: boolean;
  /** Feature maps by layer; none for variants with gates. */
  readonly layers: ReadonlyMap<number, HybridLayer>;
  /** Gates by layer; none for other variants. */
  readonly gates: ReadonlyMap<number, LayerGates>;
  /** New numbers of matrices that mix heads, by initializer, and the layer they belong to. */
  readonly projections: ReadonlyMap<string, { layer: number; data: Float32Array }>;
  /** Mean losses of each layer at the start and the end of the fit: of all weights, of far ones, of the output; for gates, of the output. */
  readonly losses: ReadonlyMap<number, { first: number[]; last: number[] }>;
  readonly sizes: ReadonlyMap<number, HeadSizes>;
}

const OBSERVED = 24;
const SAMPLES = 4;
const CHECKPOINT_STEPS = 20;

/**
 * Fits feature maps to the attention of a model, layer by layer, on activations of the original: those of the far part of
 * HybridAttention, or, for a model without causal attention, those of a LinearAttention that sees everything through them. Attention
 * in model-local functions and in the branches of a merged decoder is taken out of them first, as `rewriteModel` does.
 *
 * @throws FlaError `aborted` when `signal` fires (what is done lies in `checkpoint`), `invalid_argument` for options or data that
 * do not fit the model, `unsupported` for a model without attention to convert
 */
export async function calibrate(
  model: Model,
  data: CalibrationData,
  options: CalibrateOptions = {},
): Promise<Calibration> {
  validateModel(model);
  const opened = openedUp(model);
  const analysis = await analyse(copyModel(opened), {
    ...options,
    runner: nodeRunner,
    onProgress: undefined,
  });
  const { layers, bidirectional } = chosenLayers(analysis, options);
  checkOptions(options, bidirectional);
  const { variant = 'hybrid', window = 64, sinks = 4 } = options;
  if (!bidirectional && variant === 'hybrid' && data.tokens <= window + sinks) {
    throw new FlaError(
      'invalid_argument',
      `sequences must be longer than window and sinks together (${window + sinks} tokens), received ${data.tokens}`,
    );
  }
  const state = await fitLayers(opened, data, layers, bidirectional, options);
  const projections = new Map<string, { layer: number; data: Float32Array }>();
  const calibration: Calibration = { options, bidirectional, ...state, projections };
  const ways = new Map(layers.map((l) => [l, projectionOf(analysis, l)]));
  if (options.refit !== false) await refit(opened, data, calibration, ways);
  if (options.distil) await distil(opened, data, calibration, ways, options);
  return calibration;
}

/** The rewritten model, with the layers of a calibration converted, those of `keep` excepted. */
export async function assemble(
  model: Model,
  calibration: Calibration,
  keep: readonly number[] = [],
): Promise<{ model: Model; report: RewriteReport }> {
  const { options, bidirectional, layers, gates, projections } = calibration;
  const copy = copyModel(openedUp(model));
  const converted = calibratedLayers(calibration).filter((l) => !keep.includes(l));
  for (const [name, { layer, data }] of projections) {
    if (converted.includes(layer)) replaceWeight(copy.graph, name, data);
  }
  const common = { layers: converted, runner: nodeRunner };
  const fitted = Object.fromEntries(layers);
  const variant = bidirectional ? 'linear' : (options.variant ?? 'hybrid');
  const report =
    variant === 'hybrid'
      ? await rewriteModel(copy, {
          variant,
          window: options.window,
          sinks: options.sinks,
          cache: options.cache,
          hybrid: fitted,
          ...common,
        })
      : await rewriteModel(copy, {
          variant,
          ...(isGated(variant) ? { gates: Object.fromEntries(gates) } : { fitted }),
          ...common,
        });
  return { model: copy, report };
}

/** The layers that were fitted, in order. */
export function calibratedLayers({ layers, gates }: Calibration): number[] {
  return [...layers.keys(), ...gates.keys()];
}

function isGated(variant: string): variant is GatedVariant {
  return (GATED_VARIANTS as readonly string[]).includes(variant);
}

/** Which variants an option is for, where it is not for all. */
const TAKERS: Partial<Record<keyof CalibrateOptions, readonly CalibratedVariant[]>> = {
  gates: GATED_VARIANTS,
  constantGates: GATED_VARIANTS,
  window: ['hybrid'],
  sinks: ['hybrid'],
  cache: ['hybrid'],
  featureMap: ['hybrid'],
  unrotated: ['hybrid'],
  sharpness: ['hybrid'],
  distil: ['hybrid'],
  features: ['hybrid', 'performer'],
  rows: ['hybrid', 'performer'],
  outputShare: ['hybrid', 'performer'],
  focus: ['hybrid', 'performer'],
};

function checkOptions(options: CalibrateOptions, bidirectional: boolean): void {
  const { variant } = options;
  const known = ['hybrid', 'performer', ...GATED_VARIANTS];
  if (variant !== undefined && !known.includes(variant)) {
    throw new FlaError(
      'invalid_argument',
      `variant must be one of ${known.join(', ')}, received ${variant}`,
    );
  }
  if (bidirectional && variant !== undefined) {
    throw new FlaError(
      'invalid_argument',
      `variant ${variant} is for causal attention, received a bidirectional model`,
    );
  }
  if (bidirectional && (options.cache || options.distil || options.unrotated)) {
    throw new FlaError(
      'invalid_argument',
      'cache, distil and unrotated are for causal attention, received a bidirectional model',
    );
  }
  for (const [name, takers] of Object.entries(TAKERS)) {
    if (options[name as keyof CalibrateOptions] === undefined) continue;
    if (!takers.includes(variant ?? 'hybrid')) {
      throw new FlaError(
        'invalid_argument',
        `${name} is for ${takers.join(', ')}, received ${variant ?? 'hybrid'}`,
      );
    }
  }
}

/** The causal layers of a model, or all bidirectional ones when it has no causal ones; those that were asked for. */
function chosenLayers(
  { sites }: Analysis,
  options: CalibrateOptions,
): { layers: number[]; bidirectional: boolean } {
  // What is fitted is softmax(scale q k') v, and nothing beside it.
  const plain = ({ sdpa, mask }: AnalysedSite) =>
    sdpa && mask && !sdpa.softcap && !sdpa.sink && !mask.slopes && !mask.bias;
  const of = (kind: string) =>
    sites.filter((s) => plain(s) && s.mask!.kind === kind).map((s) => s.layer!);
  const causal = of('causal');
  const bidirectional = causal.length === 0;
  const all = bidirectional ? of('bidirectional') : causal;
  const what = bidirectional ? 'bidirectional' : 'causal';
  for (const layer of [...(options.layers ?? []), ...(options.keepSoftmax ?? [])]) {
    if (!all.includes(layer)) {
      const known = all.join(', ') || 'none';
      throw new FlaError(
        'invalid_argument',
        `layer must be one of the ${what} ones (${known}), received ${layer}`,
      );
    }
  }
  const wanted = (options.layers ?? all).filter((l) => !options.keepSoftmax?.includes(l));
  if (wanted.length === 0) {
    throw new FlaError(
      'unsupported',
      'model must have attention to convert (without ALiBi, softcap, sink and bias by position), received none',
    );
  }
  return { layers: [...wanted].sort((a, b) => a - b), bidirectional };
}

function projectionOf(analysis: Analysis, layer: number): Projection | undefined {
  const sdpa = analysis.sites.find((s) => s.layer === layer)!.sdpa!;
  return outputProjection(analysis.facts.graph, sdpa);
}

/** The fit of one layer. */
interface Fit<State = unknown> {
  readonly layer: TappedLayer;
  readonly losses: number[][];
  train(heads: TappedHeads, t: number, threads?: number): Promise<void>;
  save(): State;
  load(state: State): void;
  release(): Promise<void>;
}

interface SavedFit {
  step: number;
  layers: [number, unknown][];
  losses: [number, number[][]][];
}

async function fitLayers(
  model: Model,
  data: CalibrationData,
  layers: readonly number[],
  bidirectional: boolean,
  options: CalibrateOptions,
): Promise<Pick<Calibration, 'layers' | 'gates' | 'losses' | 'sizes'>> {
  const { variant = 'hybrid', steps = 300, signal } = options;
  const gated = isGated(variant);
  const taps = await Taps.open(model, layers, {
    ...options,
    runner: nodeRunner,
    hidden: gated && !options.constantGates,
  });
  const heads = async (index: number) => {
    signal?.throwIfAborted();
    return taps.run(await makeBatch(taps.inputs, data, 'fit', index));
  };
  const key = JSON.stringify([
    layers,
    variant,
    options.gates,
    options.constantGates,
    options.window,
    options.sinks,
    options.features,
    options.featureMap ?? 'exp',
    options.unrotated,
    steps,
    options.rate,
    options.focus,
    options.outputShare,
    options.sharpness,
    options.rows,
    options.seed ?? 0,
    data.batch,
    data.tokens,
  ]);
  const run = (fits: readonly Fit[], begin?: () => Promise<void>) =>
    runFits(fits, heads, begin, key, steps, options);
  try {
    if (gated) {
      const fits = taps.layers.map((tapped) => gateFit(tapped, variant, options));
      await run(fits);
      return {
        layers: new Map(),
        gates: new Map(fits.map((f) => [f.layer.layer, f.gates()])),
        sizes: new Map(
          fits.map(({ layer: { layer, HQ, HV, K, V } }) => [layer, { HQ, HV, K, V, D: K, M: K }]),
        ),
        losses: lossesOf(fits),
      };
    }
    const fits = taps.layers.map((tapped) => featureFit(tapped, bidirectional, options));
    await run(fits, () => observe(fits, heads, options));
    return {
      layers: new Map(fits.map((f) => [f.layer.layer, fittedLayer(f)])),
      gates: new Map(),
      sizes: new Map(fits.map((f) => [f.layer.layer, f.sizes])),
      losses: lossesOf(fits),
    };
  } finally {
    await taps.release();
  }
}

function gateFit(tapped: TappedLayer, variant: GatedVariant, options: CalibrateOptions): GateFit {
  const { steps = 300, rate = 0.1, gates } = options;
  const form: GateForm = {
    variant,
    heads: tapped.HV,
    hidden: tapped.hidden,
    temperature: variant === 'gla' ? 16 : 1,
  };
  const begin = gates?.[tapped.layer] ?? gates?.default;
  return new GateFit(tapped, form, { steps, rate, ...(begin && { gates: begin }) });
}

function featureFit(
  tapped: TappedLayer,
  bidirectional: boolean,
  options: CalibrateOptions,
): LayerFit {
  const { featureMap = 'exp', steps = 300, seed = 0 } = options;
  const { HQ, HV, K, V, scale } = tapped;
  const favor = options.variant === 'performer';
  const exact = !bidirectional && !favor;
  const form: HybridForm = {
    bidirectional,
    favor,
    window: exact ? (options.window ?? 64) : 0,
    sinks: exact ? (options.sinks ?? 4) : 0,
    scale,
    featureMap,
    signs: featureMap === 'exp' && !favor ? 2 : 1,
  };
  const features = options.features ?? (favor ? defaultFeatures(K) : 2 * K);
  const M = features / form.signs;
  if (!Number.isInteger(M) || M < 1) {
    throw new FlaError(
      'invalid_argument',
      `features must be a multiple of ${form.signs} for ${featureMap}, received ${options.features}`,
    );
  }
  const fit: FitOptions = {
    steps,
    rate: options.rate ?? (favor ? 0.03 : featureMap === 'exp' ? 0.01 : 0.003),
    seed,
    rows: options.rows ?? 128,
    sharpness: options.sharpness ?? (featureMap === 'exp' ? 0.5 : 3),
    concentration: 3,
    outputShare: options.outputShare ?? 0.3,
    focus: options.focus ?? 0,
  };
  return new LayerFit(tapped, { HQ, HV, K, V, D: K, M }, form, fit);
}

/** All steps of all layers, from where a checkpoint left off. */
async function runFits(
  fits: readonly Fit[],
  heads: (index: number) => Promise<Map<number, TappedHeads>>,
  begin: (() => Promise<void>) | undefined,
  key: string,
  steps: number,
  { checkpoint, threads, onProgress }: CalibrateOptions,
): Promise<void> {
  const of = (layer: number) => fits.find((f) => f.layer.layer === layer)!;
  try {
    const saved = checkpoint ? loadCheckpoint<SavedFit>(checkpoint, key) : undefined;
    for (const [layer, state] of saved?.layers ?? []) of(layer).load(state);
    for (const [layer, l] of saved?.losses ?? []) of(layer).losses.push(...l);
    if (!saved) await begin?.();
    for (let step = (saved?.step ?? 0) + 1; step <= steps; step++) {
      const now = await heads(step);
      for (const fit of fits) await fit.train(now.get(fit.layer.layer)!, step, threads);
      if (checkpoint && (step % CHECKPOINT_STEPS === 0 || step === steps)) {
        const content: SavedFit = {
          step,
          layers: fits.map((f) => [f.layer.layer, f.save()]),
          losses: fits.map((f) => [f.layer.layer, f.losses]),
        };
        saveCheckpoint(checkpoint, key, content);
      }
      onProgress?.('steps of the fit', step, steps);
    }
  } finally {
    for (const fit of fits) await fit.release();
  }
}

async function observe(
  fits: readonly LayerFit[],
  heads: (index: number) => Promise<Map<number, TappedHeads>>,
  { onProgress }: CalibrateOptions,
): Promise<void> {
  const samples: Map<number, TappedHeads>[] = [];
  for (let i = 0; i < OBSERVED; i++) {
    const now = await heads(1_000_000 + i);
    if (i < SAMPLES) samples.push(now);
    for (const fit of fits) fit.observe(now.get(fit.layer.layer)!, i);
    onProgress?.('batches looked at', i + 1, OBSERVED);
  }
  for (const fit of fits) fit.begin(samples.map((s) => s.get(fit.layer.layer)!));
}

function lossesOf(fits: readonly Fit[]): Calibration['losses'] {
  return new Map(
    fits.map(({ layer, losses }) => {
      const part = Math.max(1, Math.ceil(losses.length / 10));
      return [
        layer.layer,
        { first: means(losses.slice(0, part)), last: means(losses.slice(-part)) },
      ];
    }),
  );
}

function means(rows: readonly number[][]): number[] {
  const columns = rows[0]?.length ?? 0;
  return Array.from(
    { length: columns },
    (_, i) => rows.reduce((sum, r) => sum + r[i]!, 0) / Math.max(rows.length, 1),
  );
}

function fittedLayer(fit: LayerFit): HybridLayer {
  const { form, sizes, layer } = fit;
  if (form.favor) return performerLayer(fit.values!, sizes, form);
  return asLayer(fit.values!, form, parameterShapes(sizes, form), layer.unrotated);
}

/** Directions as the rewriter takes them, lifted as far as float32 allows. */
function performerLayer(values: Values, sizes: HeadSizes, form: HybridForm): HybridLayer {
  const shapes = parameterShapes(sizes, form);
  const of = (name: keyof Values) => ({ dims: shapes[name], data: values[name] });
  const keyWeight = of('key_weight');
  return {
    featureMap: 'exp',
    signs: 1,
    favor: true,
    queryWeight: of('query_weight'),
    keyWeight,
    queryBias: of('query_bias'),
    keyBias: lifted(keyWeight, of('key_bias'), form.scale),
  };
}

/** Values as the rewriter takes them. */
export function asLayer(
  values: Values,
  { featureMap, signs }: Pick<HybridForm, 'featureMap' | 'signs'>,
  shapes: ReturnType<typeof parameterShapes>,
  unrotated: boolean,
): HybridLayer {
  const of = (name: keyof Values) => ({ dims: shapes[name], data: values[name] });
  return {
    featureMap,
    signs,
    unrotated,
    queryWeight: of('query_weight'),
    keyWeight: of('key_weight'),
    queryBias: of('query_bias'),
    keyBias: of('key_bias'),
    alpha: of('alpha'),
    keyMean: of('key_mean'),
  };
}

/** One pass from the first layer to the last: each matrix is refit on what the student's heads are by then. */
async function refit(
  model: Model,
  data: CalibrationData,
  calibration: Calibration,
  ways: ReadonlyMap<number, Projection | undefined>,
): Promise<void> {
  const { options } = calibration;
  const count = options.refitBatches ?? 32;
  const projections = calibration.projections as Map<string, { layer: number; data: Float32Array }>;
  const layers = calibratedLayers(calibration);
  for (const [n, layer] of layers.entries()) {
    const way = ways.get(layer);
    if (!way) continue;
    const later = layers.slice(n + 1);
    const { model: student } = await assemble(model, calibration, later);
    const batches: Batches = {
      count,
      async feeds(session, index) {
        options.signal?.throwIfAborted();
        options.onProgress?.('batches of the refit', n * count + index + 1, layers.length * count);
        return batchFor(session, data, 'fit', 2_000_000 + index);
      },
    };
    const refitted = await refitProjection(model, student, way, batches, options);
    projections.set(way.weight, { layer, data: refitted });
  }
}

/** Feeds of a session for one batch of data. */
export function batchFor(
  session: Ort.InferenceSession,
  data: CalibrationData,
  part: Part,
  index: number,
): Promise<Record<string, Ort.Tensor>> {
  const inputs = tensorInputs(session.inputMetadata).filter((i) => i.name !== TEACHER);
  return makeBatch(inputs, data, part, index);
}
