import { Random } from '../random.js';
import { Adam } from './adam.js';
import {
  balance,
  type InitialOptions,
  initialAlpha,
  initialValues,
  PairMoments,
  performerValues,
} from './initial.js';
import { type HeadSizes, type HybridForm, PARAMETER_NAMES, parameterShapes } from './student.js';
import type { TappedHeads, TappedLayer } from './taps.js';
import { type LossWeights, TrainingStep, type Values } from './training.js';

/** How feature maps are fitted. */
export interface FitOptions extends InitialOptions {
  readonly steps: number;
  readonly rate: number;
  readonly seed: number;
  /** Queries a step looks at. */
  readonly rows: number;
  /** Part of the steps, at the end, that fit outputs rather than weights. */
  readonly outputShare: number;
  /** How much rows count that look up a few far keys, against all alike: 0 to 1. */
  readonly focus: number;
}

/** What a layer has come to; everything that a later step depends on. */
export interface LayerState {
  readonly values: Values;
  readonly moments: Record<string, { m: Float32Array; v: Float32Array }>;
}

/** The fit of one layer's feature maps to the teacher's attention. */
export class LayerFit {
  values: Values | undefined;
  readonly losses: number[][] = [];
  private readonly adams: Record<string, Adam>;
  private readonly pairs: PairMoments;
  private readonly made = new Map<string, Promise<TrainingStep>>();

  constructor(
    readonly layer: TappedLayer,
    readonly sizes: HeadSizes,
    readonly form: HybridForm,
    private readonly options: FitOptions,
  ) {
    const shapes = parameterShapes(sizes, form);
    const size = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);
    this.adams = Object.fromEntries(PARAMETER_NAMES.map((n) => [n, new Adam(size(shapes[n]))]));
    this.pairs = new PairMoments(sizes, form);
  }

  /** Looks at heads before the fit begins. */
  observe(heads: TappedHeads, index: number): void {
    if (this.form.favor) return;
    this.pairs.add(heads, new Random(this.options.seed, 11, this.layer.layer, index), 64);
  }

  /** Chooses values to begin with, from what was observed. */
  begin(samples: readonly TappedHeads[]): void {
    if (this.form.favor) {
      const { seed } = this.options;
      this.values = performerValues(samples, this.sizes, this.form, seed, this.layer.layer);
      return;
    }
    const random = new Random(this.options.seed, 12, this.layer.layer);
    this.values = initialValues(this.pairs, this.sizes, this.form, random, this.options);
    balance(this.values, samples, this.sizes, this.form);
    // Where all keys are seen through features, alpha cancels out.
    if (this.form.bidirectional) return;
    initialAlpha(this.values, samples[0]!, this.sizes, this.form, random);
  }

  /** One step of Adam. @param t counts from 1 */
  async train(heads: TappedHeads, t: number, threads?: number): Promise<void> {
    const { steps, rate, rows: wanted, seed } = this.options;
    const [batch, , tokens] = heads.query.dims as [number, number, number];
    const first = this.form.bidirectional ? 0 : this.form.window + this.form.sinks;
    const rows = Math.min(wanted, tokens - first);
    if (rows < 1) return;
    const step = await this.stepFor(batch, tokens, rows, threads);
    const chosen = new Random(seed, 13, this.layer.layer, t).choose(rows, first, tokens);
    const { losses, gradients } = await step.run(this.values!, heads, chosen, this.weights(t));
    this.losses.push([...losses]);
    const now = rate * (0.05 + 0.95 * 0.5 * (1 + Math.cos((Math.PI * t) / steps)));
    for (const name of PARAMETER_NAMES) {
      const own = name === 'alpha' ? 5 * now : now;
      this.adams[name]!.step(this.values![name], gradients[name], own, t);
    }
  }

  /** Steps are made for one shape each; data may come in several. */
  private stepFor(batch: number, tokens: number, rows: number, threads?: number) {
    const key = `${batch},${tokens}`;
    const step =
      this.made.get(key) ??
      TrainingStep.create(
        this.form,
        { ...this.sizes, batch, tokens, rows, focus: this.options.focus },
        threads === undefined ? {} : { threads },
      );
    this.made.set(key, step);
    return step;
  }

  private weights(t: number): LossWeights {
    const { steps, outputShare } = this.options;
    return t <= steps * (1 - outputShare)
      ? { weights: 1, far: 1, output: 0 }
      : { weights: 0.25, far: 0.25, output: 1 };
  }

  save(): LayerState {
    const moments = Object.entries(this.adams).map(([n, a]) => [n, a.save()]);
    return { values: this.values!, moments: Object.fromEntries(moments) };
  }

  load(state: LayerState): void {
    this.values = state.values;
    for (const [n, a] of Object.entries(this.adams)) a.load(state.moments[n]!);
  }

  async release(): Promise<void> {
    for (const step of this.made.values()) await (await step).release();
    this.made.clear();
  }
}
