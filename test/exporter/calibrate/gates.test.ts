import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  GATED_VARIANTS,
  type GateForm,
  gateShapes,
} from '../../../exporter/calibrate/gate_parameters.js';
import { GateStep } from '../../../exporter/calibrate/gate_training.js';
import { Random } from '../../../exporter/random.js';
import { linearAttentionReference } from '../../../ops/linear_attention/reference.js';
import type { UpdateRule } from '../../../ops/linear_attention/schema.js';
import type { Tensor64 } from '../../../ops/tensor64.js';

// More than a chunk, and not a multiple of one.
const sizes = { batch: 2, tokens: 70, HQ: 4, HV: 2, K: 5, V: 3 };
const tensor64 = (shape: readonly number[], data: Float64Array): Tensor64 => ({ shape, data });
const HIDDEN = 7;
const SCALE = 0.4;
type Values = Record<string, Float64Array>;

const random = new Random(4);
const normals = (count: number, size = 1) =>
  Float32Array.from({ length: count }, () => size * random.normal());

const RULES: Record<GateForm['variant'], UpdateRule> = {
  gla: 'gated',
  mamba2: 'gated',
  delta: 'delta',
  'gated-delta': 'gated_delta',
};
const { batch: B, tokens: T, HQ, HV, K, V } = sizes;
const query = normals(B * HQ * T * K);
const key = normals(B * HV * T * K);
const value = normals(B * HV * T * V);
const hidden = normals(B * T * HIDDEN);

/** [B,H,T,D] to [B,T,H*D] in float64. */
function packed(x: ArrayLike<number>, H: number, D: number) {
  const out = new Float64Array(x.length);
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let t = 0; t < T; t++)
        for (let d = 0; d < D; d++)
          out[((b * T + t) * H + h) * D + d] = x[((b * H + h) * T + t) * D + d]!;
  return tensor64([B, T, H * D], out);
}

/** The output of causal softmax attention, [B,T,HQ*V]. */
const teacher = (() => {
  const out = new Float64Array(B * T * HQ * V);
  for (let b = 0; b < B; b++)
    for (let h = 0; h < HQ; h++)
      for (let i = 0; i < T; i++) {
        const kv = b * HV + Math.floor(h / (HQ / HV));
        const weights = Array.from({ length: i + 1 }, (_, j) => {
          let dot = 0;
          for (let d = 0; d < K; d++)
            dot += query[((b * HQ + h) * T + i) * K + d]! * key[(kv * T + j) * K + d]!;
          return Math.exp(SCALE * dot);
        });
        const total = weights.reduce((x, y) => x + y);
        for (let c = 0; c < V; c++)
          for (let j = 0; j <= i; j++)
            out[((b * T + i) * HQ + h) * V + c]! +=
              (weights[j]! / total) * value[(kv * T + j) * V + c]!;
      }
  return out;
})();

/** The loss in float64, token by token. */
function loss64(form: GateForm, values: Values): number {
  const z = (gate: string) => {
    const out = new Float64Array(B * T * HV);
    for (let n = 0; n < B * T; n++)
      for (let h = 0; h < HV; h++) {
        let sum = values[`${gate}_bias`]![h]!;
        for (let i = 0; i < form.hidden; i++)
          sum += hidden[n * HIDDEN + i]! * values[`${gate}_weight`]![i * HV + h]!;
        out[n * HV + h] = sum;
      }
    return out;
  };
  const softplus = (x: number) => Math.log1p(Math.exp(x));
  const { variant } = form;
  const v = packed(value, HV, V);
  let decay: Float64Array | undefined;
  if (variant === 'mamba2') {
    const dt = z('dt').map(softplus);
    decay = dt.map((x, i) => -Math.exp(values.a_log![i % HV]!) * x);
    v.data.forEach((x, i) => {
      v.data[i] = x * dt[Math.floor(i / V)]!;
    });
  } else if (variant !== 'delta') decay = z('decay').map((x) => -softplus(-x) / form.temperature);
  const unit = variant === 'delta' || variant === 'gated-delta';
  const beta = unit ? z('beta').map((x) => 1 / (1 + Math.exp(-x))) : undefined;
  const { output } = linearAttentionReference(
    {
      q_num_heads: HQ,
      kv_num_heads: HV,
      update_rule: RULES[variant],
      scale: SCALE,
      qk_l2norm: unit ? 1 : 0,
    },
    {
      query: packed(query, HQ, K),
      key: packed(key, HV, K),
      value: v,
      ...(decay && { decay: tensor64([B, T, HV], decay) }),
      ...(beta && { beta: tensor64([B, T, HV], beta) }),
    },
  );
  const sums = Array.from({ length: HQ }, () => ({ oy: 0, oo: 0 }));
  let yy = 0;
  output.data.forEach((o, i) => {
    const head = sums[Math.floor(i / V) % HQ]!;
    head.oy += o * teacher[i]!;
    head.oo += o * o;
    yy += teacher[i]! ** 2;
  });
  return 1 - sums.reduce((sum, { oy, oo }) => sum + oy ** 2 / oo, 0) / yy;
}

describe.each(
  GATED_VARIANTS.flatMap((variant) => [HIDDEN, 0].map((width) => ({ variant, width }))),
)('the training step of $variant, gates of $width elements', ({ variant, width }) => {
  const form: GateForm = { variant, heads: HV, hidden: width, temperature: 1.5 };
  const values = Object.fromEntries(
    Object.entries(gateShapes(form)).map(([n, dims]) => [
      n,
      normals(
        dims.reduce((a, b) => a * b, 1),
        0.5,
      ),
    ]),
  );
  const exact = Object.fromEntries(
    Object.entries(values).map(([n, x]) => [n, Float64Array.from(x)]),
  );
  let step: GateStep;
  let result: Awaited<ReturnType<GateStep['run']>>;
  beforeAll(async () => {
    step = await GateStep.create(form, sizes, SCALE);
    result = await step.run(values, {
      query: new ort.Tensor('float32', query, [B, HQ, T, K]),
      key: new ort.Tensor('float32', key, [B, HV, T, K]),
      value: new ort.Tensor('float32', value, [B, HV, T, V]),
      hidden: new ort.Tensor('float32', hidden, [B, T, HIDDEN]),
    });
  });
  afterAll(() => step.release());

  it('has the loss of the recurrence', () => {
    const expected = loss64(form, exact);
    expect(expected).toBeGreaterThan(0.05);
    expect(Math.abs(result.loss - expected)).toBeLessThan(1e-5);
  });

  it('has the gradients that differences in float64 give', () => {
    const h = 1e-5;
    for (const [name, gradient] of Object.entries(result.gradients)) {
      const differences = gradient.map((_, i) => {
        const moved = (by: number) => {
          const x = Float64Array.from(exact[name]!);
          x[i]! += by;
          return loss64(form, { ...exact, [name]: x });
        };
        return (moved(h) - moved(-h)) / (2 * h);
      });
      const size = Math.hypot(...differences);
      expect(size).toBeGreaterThan(1e-4);
      const error = Math.hypot(...gradient.map((g, i) => g - differences[i]!));
      expect(error / size).toBeLessThan(1e-3);
    }
  });
});
