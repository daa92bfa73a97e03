/** Plans as data: which steps, how they are cut, and that every binding is within the device's limits. */
import { describe, expect, it } from 'vitest';
import { checkCall, type DType } from '../../ops/define.js';
import { linearAttention } from '../../ops/linear_attention/schema.js';
import { type LinearAttentionCall, planLinearAttention } from '../../wgsl/linear_attention.js';
import type { Dispatch, Plan, Range, Traits } from '../../wgsl/plan.js';

const MiB = 2 ** 20;
const defaults: Traits = {
  maxBinding: 128 * MiB,
  maxBuffer: 256 * MiB,
  alignment: 256,
  maxGroups: 65535,
  parallel: 512,
  scratchBytes: 128 * MiB,
};

interface Wanted {
  readonly rule?: string;
  readonly B?: number;
  readonly T: number;
  readonly H?: number;
  readonly K?: number;
  readonly V?: number;
  readonly dtype?: DType;
  readonly decay?: 'head' | 'key';
  readonly attributes?: Record<string, number | string>;
}

function callOf(wanted: Wanted): LinearAttentionCall {
  const { rule = 'linear', B = 1, T, H = 8, K = 64, V = 64, dtype = 'float32' } = wanted;
  const shapes: Record<string, readonly number[]> = {
    query: [B, T, H * K],
    key: [B, T, H * K],
    value: [B, T, H * V],
  };
  if (rule.startsWith('gated')) shapes.decay = [B, T, wanted.decay === 'key' ? H * K : H];
  if (rule.endsWith('delta')) shapes.beta = [B, T, H];
  const attributes = {
    ...{ q_num_heads: H, kv_num_heads: H, update_rule: rule },
    ...wanted.attributes,
  };
  const specs = Object.entries(shapes).map(([name, shape]) => [name, { dtype, shape }]);
  return {
    ...checkCall(linearAttention, attributes, Object.fromEntries(specs)),
    shapes,
    offsets: {},
    inPlace: false,
    outputs: { output: true, present_state: true },
  };
}

const plan = (wanted: Wanted, traits: Partial<Traits> = {}): Plan =>
  planLinearAttention(callOf(wanted), { ...defaults, ...traits });

const shadersOf = ({ steps }: Plan) =>
  steps.map((step) => ('shader' in step ? step.shader.replace('linear_attention_', '') : 'copy'));

const ranges = ({ steps }: Plan): Range[] =>
  steps.flatMap((step) =>
    'shader' in step ? step.bindings.filter((b): b is Range => typeof b === 'object') : [],
  );

describe('steps', () => {
  it.each([
    [{ T: 1 }, ['decode']],
    [{ T: 8, rule: 'gated_delta' }, ['decode']],
    [{ T: 64 }, ['states', 'scan', 'scores', 'output']],
    [{ T: 64, rule: 'gated' }, ['gates', 'states', 'scan', 'scores', 'output']],
    [{ T: 64, attributes: { causal: 0 } }, ['states', 'scan', 'output']],
    [
      { T: 64, attributes: { feature_map: 'elu1', normalize: 1 } },
      ['features', 'features', 'states', 'scan', 'scores', 'output'],
    ],
    [
      { T: 64, rule: 'gated', decay: 'key' as const },
      ['keyed', 'states', 'scan', 'diagonal', 'scores', 'output'],
    ],
    [
      { T: 64, rule: 'delta' },
      ['gates', 'scores', 'solve', 'scan', 'walk', 'scores', 'output', 'scan'],
    ],
    [
      { T: 64, K: 6, V: 6 },
      ['features', 'features', 'features', 'states', 'scan', 'scores', 'output', 'pack'],
    ],
  ])('%j: %j', (wanted, steps) => {
    expect(shadersOf(plan(wanted))).toEqual(steps);
  });

  it('no sequence takes none, no tokens only the state', () => {
    expect(plan({ B: 0, T: 5 }).steps).toEqual([]);
    expect(shadersOf(plan({ T: 0 }))).toEqual(['scan']);
  });

  it('a plan is a function of its arguments', () => {
    const wanted = { T: 5000, rule: 'gated_delta' };
    expect(plan(wanted)).toEqual(plan(wanted));
  });
});

describe('segments of the delta rules', () => {
  const walks = (wanted: Wanted, traits?: Partial<Traits>) =>
    plan(wanted, traits).steps.filter(
      (step): step is Dispatch => 'shader' in step && step.shader === 'linear_attention_walk',
    );

  it('as many as fill the device', () => {
    const [maps, walk] = walks({ T: 8192, rule: 'delta' });
    expect(maps.constants.MAPS).toBe(1);
    expect(maps.groups[0]).toBe(walk.groups[0] - 1);
    const [across, heads, rows] = walk.groups;
    expect(across * heads * rows).toBeGreaterThan(100);
    expect(across * walk.params.segment_chunks!).toBeGreaterThanOrEqual(128);
  });

  it('one where heads fill the device, and on software', () => {
    expect(walks({ T: 8192, rule: 'delta', H: 8 }, { parallel: 1 })).toHaveLength(1);
    expect(walks({ T: 512, rule: 'delta', H: 256, K: 16, V: 16 })).toHaveLength(1);
  });
});

describe('pieces', () => {
  const large: Wanted[] = [
    { T: 300_000 },
    { T: 70_000, B: 3, rule: 'gated_delta' },
    { T: 70_000, rule: 'gated', decay: 'key' },
    { T: 65_536, rule: 'delta', K: 128, V: 128 },
    { T: 4096, H: 4, K: 256, V: 256 },
    { T: 200, B: 500, K: 65, V: 33, attributes: { normalize: 1 } },
    { T: 300_000, attributes: { causal: 0 } },
    { T: 300_000, dtype: 'float16' },
  ];

  it.each(large)('$rule $T tokens: every binding within the default limits', (wanted) => {
    const made = plan(wanted);
    for (const { bytes, name } of ranges(made)) {
      expect(bytes, name).toBeLessThanOrEqual(defaults.maxBinding);
    }
    for (const bytes of Object.values(made.scratch)) {
      expect(bytes).toBeLessThanOrEqual(defaults.maxBinding);
    }
    const total = Object.values(made.scratch).reduce((a, b) => a + b, 0);
    // Beside what is budgeted there is the carried state.
    expect(total).toBeLessThanOrEqual(defaults.scratchBytes + (made.scratch['#carry'] ?? 0));
    for (const step of made.steps) {
      if ('shader' in step) for (const n of step.groups) expect(n).toBeLessThanOrEqual(65535);
    }
  });

  it.each(large)('$rule $T tokens: every token is written once', (wanted) => {
    const { T, B = 1, V = 64, H = 8, dtype = 'float32' } = wanted;
    const outputs = plan(wanted).steps.filter(
      (step): step is Dispatch => 'shader' in step && step.shader === 'linear_attention_output',
    );
    const tokens = outputs.reduce((n, { params, groups }) => n + params.tokens! * groups[2], 0);
    expect(tokens).toBe(B * T);
    const size = dtype === 'float16' ? 2 : 4;
    const last = ranges(plan(wanted)).filter(({ name }) => name === 'output');
    if (last.length) {
      const end = Math.max(...last.map(({ from, bytes }) => from + bytes));
      expect(end).toBe(B * T * H * V * size);
    }
  });

  it('offsets of bindings are aligned', () => {
    for (const wanted of large) {
      for (const { from } of ranges(plan(wanted))) expect(from % 256).toBe(0);
    }
  });
});
