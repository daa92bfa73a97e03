import type { LayerGates } from '../variants/options.js';
import { Adam } from './adam.js';
import { asGates, type GateForm, gateShapes, initialGates } from './gate_parameters.js';
import { GateStep } from './gate_training.js';
import type { TappedHeads, TappedLayer } from './taps.js';

export interface GateFitOptions {
  readonly steps: number;
  readonly rate: number;
  /** Gates to begin with. */
  readonly gates?: LayerGates;
}

/** What a layer has come to; everything that a later step depends on. */
export interface GateState {
  readonly values: Record<string, Float32Array>;
  readonly moments: Record<string, { m: Float32Array; v: Float32Array }>;
  readonly products: Float64Array;
  readonly squares: Float64Array;
}

/** Weights see many elements of the input at once, and so move more slowly. */
const WEIGHT_RATE = 0.1;
/** What is left of a batch's sums after another one. */
const MEMORY = 0.95;

/** The fit of one layer's gates to the output of the teacher's attention. */
export class GateFit {
  readonly losses: number[][] = [];
  private values: Record<string, Float32Array>;
  private readonly adams: Record<string, Adam>;
  private products: Float64Array;
  private squares: Float64Array;
  private readonly made = new Map<string, Promise<GateStep>>();

  constructor(
    readonly layer: TappedLayer,
    readonly form: GateForm,
    private readonly options: GateFitOptions,
  ) {
    this.values = initialGates(form, layer.layer, options.gates);
    const size = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);
    this.adams = Object.fromEntries(
      Object.entries(gateShapes(form)).map(([n, dims]) => [n, new Adam(size(dims))]),
    );
    this.products = new Float64Array(layer.HQ);
    this.squares = new Float64Array(layer.HQ);
  }

  /** One step of Adam. @param t counts from 1 */
  async train(heads: TappedHeads, t: number, threads?: number): Promise<void> {
    const step = await this.stepFor(heads, threads);
    const { loss, gradients, products, squares } = await step.run(this.values, heads);
    this.losses.push([loss]);
    this.products = this.products.map((x, h) => MEMORY * x + products[h]!);
    this.squares = this.squares.map((x, h) => MEMORY * x + squares[h]!);
    const { steps, rate } = this.options;
    const now = rate * (0.05 + 0.95 * 0.5 * (1 + Math.cos((Math.PI * t) / steps)));
    for (const [name, adam] of Object.entries(this.adams)) {
      const own = name.endsWith('_weight') ? WEIGHT_RATE * now : now;
      adam.step(this.values[name]!, gradients[name]!, own, t);
    }
  }

  /** Fitted gates, with the gain that the last batches ask for. */
  gates(): LayerGates {
    const gain = Array.from(this.products, (p, h) => p / Math.max(this.squares[h]!, 1e-12));
    return asGates(this.form, this.values, gain);
  }

  /** Steps are made for one shape each; data may come in several. */
  private stepFor(heads: TappedHeads, threads?: number): Promise<GateStep> {
    const [batch, , tokens] = heads.query.dims as [number, number, number];
    const { HQ, HV, K, V, scale } = this.layer;
    const key = `${batch},${tokens}`;
    const step =
      this.made.get(key) ??
      GateStep.create(
        this.form,
        { batch, tokens, HQ, HV, K, V },
        scale,
        threads === undefined ? {} : { threads },
      );
    this.made.set(key, step);
    return step;
  }

  save(): GateState {
    const moments = Object.entries(this.adams).map(([n, a]) => [n, a.save()]);
    const { values, products, squares } = this;
    return { values, moments: Object.fromEntries(moments), products, squares };
  }

  load(state: GateState): void {
    this.values = state.values;
    this.products = state.products;
    this.squares = state.squares;
    for (const [n, a] of Object.entries(this.adams)) a.load(state.moments[n]!);
  }

  async release(): Promise<void> {
    for (const step of this.made.values()) await (await step).release();
    this.made.clear();
  }
}
