import { FlaError } from '../../ops/error.js';
import { constantsOf } from '../variants/gates.js';
import type { ConstantGate, LayerGates } from '../variants/options.js';

/** Variants whose gates can be fitted. */
export const GATED_VARIANTS = ['gla', 'mamba2', 'delta', 'gated-delta'] as const;
export type GatedVariant = (typeof GATED_VARIANTS)[number];

type Projected = 'decay' | 'beta' | 'dt';

/** What the recurrence of each variant is made of, and what its gates begin as. */
const FORMS: Readonly<
  Record<
    GatedVariant,
    { gates: readonly Projected[]; begin: Readonly<Partial<Record<Projected | 'a', number>>> }
  >
> = {
  gla: { gates: ['decay'], begin: { decay: -0.05 } },
  mamba2: { gates: ['dt'], begin: { dt: 0.1, a: -1 } },
  delta: { gates: ['beta'], begin: { beta: 0.9 } },
  'gated-delta': { gates: ['decay', 'beta'], begin: { decay: -0.05, beta: 0.9 } },
};

/** Form of one layer's gates: all per value head. */
export interface GateForm {
  readonly variant: GatedVariant;
  readonly heads: number;
  /** Elements of the layer's input, where gates are projections of it; 0 for constants. */
  readonly hidden: number;
  /** Divides the log-sigmoid of a decay. */
  readonly temperature: number;
}

/** The projected gates of a form. */
export function projectedGates({ variant }: GateForm): readonly Projected[] {
  return FORMS[variant].gates;
}

/** Shapes of the trained values: `<gate>_bias` [H] and `<gate>_weight` [hidden,H], and of mamba2 also `a_log` [H]. */
export function gateShapes(form: GateForm): Record<string, readonly number[]> {
  const { heads, hidden, variant } = form;
  const shapes: Record<string, readonly number[]> = {};
  for (const gate of projectedGates(form)) {
    shapes[`${gate}_bias`] = [heads];
    if (hidden > 0) shapes[`${gate}_weight`] = [hidden, heads];
  }
  if (variant === 'mamba2') shapes.a_log = [heads];
  return shapes;
}

/**
 * Values to begin with: those of given gates, or the variant's own.
 *
 * @throws FlaError `invalid_argument` for gates that do not fit the layer, or cannot be written as what is trained
 */
export function initialGates(
  form: GateForm,
  layer: number,
  given: LayerGates = {},
): Record<string, Float32Array> {
  const { variant, heads, hidden } = form;
  const { begin } = FORMS[variant];
  const own = Object.keys(begin);
  for (const [name, gate] of Object.entries(given)) {
    if (own.includes(name) && typeof gate === 'object' && 'constant' in gate) continue;
    const received = own.includes(name) ? `a projection for ${name}` : name;
    throw new FlaError(
      'invalid_argument',
      `layer ${layer}: ${variant} begins with constants for ${own.join(' and ')}, received ${received}`,
    );
  }
  const values: Record<string, Float32Array> = {};
  const perHead = (name: Projected | 'a') => {
    const gate = (given[name] as ConstantGate | undefined) ?? { constant: begin[name]! };
    return Float32Array.from(constantsOf(layer, name, heads, gate), (x) => INVERSE[name](x, form));
  };
  for (const gate of projectedGates(form)) {
    values[`${gate}_bias`] = perHead(gate);
    if (hidden > 0) values[`${gate}_weight`] = new Float32Array(hidden * heads);
  }
  if (variant === 'mamba2') values.a_log = perHead('a');
  return values;
}

const inverseSoftplus = (y: number) => Math.log(Math.expm1(Math.min(Math.max(y, 1e-4), 50)));

/** What yields a constant: a value at the edge of what can be trained moves a little inside. */
const INVERSE: Record<Projected | 'a', (x: number, form: GateForm) => number> = {
  decay: (x, { temperature }) => -inverseSoftplus(-x * temperature),
  dt: inverseSoftplus,
  beta: (x) => {
    const inside = Math.min(Math.max(x, 0.02), 0.98);
    return Math.log(inside / (1 - inside));
  },
  a: (x) => Math.log(Math.max(-x, 1e-4)),
};

const sigmoid = (z: number) => 1 / (1 + Math.exp(-z));
const softplus = (z: number) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));

/** Trained values as the rewriter takes them. @param gain factor on the output of each query head */
export function asGates(
  form: GateForm,
  values: Readonly<Record<string, Float32Array>>,
  gain: readonly number[],
): LayerGates {
  const { variant, hidden, heads, temperature } = form;
  const constant: Record<Projected, (z: number) => number> = {
    decay: (z) => -softplus(-z) / temperature,
    beta: sigmoid,
    dt: softplus,
  };
  const gates: LayerGates = { gain: { constant: gain } };
  for (const gate of projectedGates(form)) {
    const bias = values[`${gate}_bias`]!;
    gates[gate] =
      hidden > 0
        ? { weight: values[`${gate}_weight`]!, dims: [hidden, heads], bias }
        : { constant: Array.from(bias, constant[gate]) };
  }
  if (hidden > 0 && gates.decay) gates.temperature = temperature;
  if (variant === 'mamba2') gates.a = { constant: Array.from(values.a_log!, (x) => -Math.exp(x)) };
  return gates;
}
