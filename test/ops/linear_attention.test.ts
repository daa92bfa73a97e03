import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type LinearAttentionInputs,
  type LinearAttentionResult,
  linearAttentionReference,
  type Tensor64,
} from '../../ops/index.js';
import { maxAbsError, sliceTokens } from '../cases/tensors.js';
import { type RandomCall, randomCalls } from '../support/calls.js';

const calls = randomCalls({ B: 2, T: 12, K: 7, V: 7 });

const run = ({ attributes, inputs }: Pick<RandomCall, 'attributes' | 'inputs'>) =>
  linearAttentionReference(attributes, inputs);

/** Tokens from..to of every [B,T,...] input. */
function tokens({ inputs }: RandomCall, from: number, to: number): LinearAttentionInputs {
  const sliced = Object.entries(inputs as unknown as Record<string, Tensor64>).map(
    ([name, tensor]) => [
      name,
      name === 'past_state' || name === 'bonus' ? tensor : sliceTokens(tensor, from, to),
    ],
  );
  return Object.fromEntries(sliced) as unknown as LinearAttentionInputs;
}

function expectSame(actual: Tensor64, expected: Tensor64, limit = 1e-11): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(maxAbsError(actual.data, expected.data)).toBeLessThanOrEqual(limit);
}

function expectSameResult(actual: LinearAttentionResult, expected: LinearAttentionResult): void {
  expectSame(actual.output, expected.output);
  expectSame(actual.presentState, expected.presentState);
}

const holds = (property: (call: RandomCall) => void, arbitrary = calls) =>
  fc.assert(fc.property(arbitrary, property), { numRuns: 200, seed: 20261 });

const withRule = (...allowed: string[]) =>
  calls.filter(({ attributes }) => allowed.includes(attributes.update_rule!));

describe('the LinearAttention reference', () => {
  it('gives the same in two parts as in one', () => {
    const split = fc.tuple(calls, fc.nat()).map(([call, n]) => ({ call, at: n % (call.T + 1) }));
    fc.assert(
      fc.property(split, ({ call, at }) => {
        const whole = run(call);
        const first = run({ ...call, inputs: tokens(call, 0, at) });
        const rest = tokens(call, at, call.T);
        const second = run({ ...call, inputs: { ...rest, past_state: first.presentState } });
        expectSame(second.presentState, whole.presentState);
        expectSame(first.output, sliceTokens(whole.output, 0, at));
        expectSame(second.output, sliceTokens(whole.output, at, call.T));
      }),
      { numRuns: 200, seed: 20261 },
    );
  });

  it('treats shared heads as repeated heads', () => {
    holds((call) => {
      const { B, T, HQ, HV, K } = call;
      const heads = Math.max(HQ, HV);
      const HK = call.inputs.key.shape[2] / K;
      const spread = (tensor: Tensor64, count: number) => repeatHeads(tensor, count, heads);
      const { query, key, value, past_state, decay, beta } = call.inputs;
      const result = run(call);
      const full = run({
        attributes: { ...call.attributes, q_num_heads: heads, kv_num_heads: heads },
        inputs: {
          ...call.inputs,
          query: spread(query, HQ),
          key: spread(repeatHeads(key, HK, HV), HV),
          value: spread(value, HV),
          past_state: repeatStates(past_state!, heads),
          ...(decay && { decay: spread(decay, HV) }),
          ...(beta && { beta: beta.shape[2] === 1 ? beta : spread(beta, HV) }),
        },
      });
      expect([B, T]).toEqual(full.output.shape.slice(0, 2));
      expectSame(full.output, result.output);
      expectSame(full.presentState, repeatStates(result.presentState, heads));
    });
  });

  it('without decay a gated rule is the rule without the gate', () => {
    holds(
      (call) => {
        const { decay, ...ungated } = call.inputs;
        const rule = call.attributes.update_rule === 'gated' ? 'linear' : 'delta';
        expectSameResult(
          run({
            ...call,
            inputs: { ...call.inputs, decay: { ...decay!, data: decay!.data.map(() => 0) } },
          }),
          run({ attributes: { ...call.attributes, update_rule: rule }, inputs: ungated }),
        );
      },
      withRule('gated', 'gated_delta'),
    );
  });

  it('a decay per key with equal entries is a decay per head', () => {
    holds(
      (call) => {
        const { decay } = call.inputs;
        const perHead = { ...decay!, shape: [call.B, call.T, call.HV] };
        perHead.data = Float64Array.from({ length: call.B * call.T * call.HV }, (_, i) => -i % 3);
        const perKey = repeatEach(perHead, call.K);
        expectSameResult(
          run({ ...call, inputs: { ...call.inputs, decay: perHead } }),
          run({ ...call, inputs: { ...call.inputs, decay: perKey } }),
        );
      },
      withRule('gated', 'gated_delta'),
    );
  });

  it('beta = 0 leaves the state alone', () => {
    holds((call) => {
      const beta = { ...call.inputs.beta!, data: call.inputs.beta!.data.map(() => 0) };
      expectSame(
        run({ ...call, inputs: { ...call.inputs, beta } }).presentState,
        call.inputs.past_state!,
        0,
      );
    }, withRule('delta'));
  });

  it('beta = 1 with unit keys makes the state return the value just written', () => {
    holds(
      (call) => {
        if (call.T === 0) return;
        const { B, T, HQ, HV, K } = call;
        const key = { shape: [B, T, HV * K], data: new Float64Array(B * T * HV * K) };
        key.data.forEach((_, i) => {
          key.data[i] = i % K === 0 ? 1 : 0;
        });
        const query = {
          shape: [B, T, HQ * K],
          data: new Float64Array(B * T * HQ * K).map((_, i) => Number(i % K === 0)),
        };
        const { mask: _, ...inputs } = call.inputs;
        const beta = { ...call.inputs.beta!, data: call.inputs.beta!.data.map(() => 1) };
        const attributes = {
          ...call.attributes,
          ...({
            feature_map: 'identity',
            qk_l2norm: 0,
            normalize: 0,
            read: 'after',
            scale: 1,
          } as const),
        };
        const past_state = undefined;
        const { output } = run({ attributes, inputs: { ...inputs, query, key, beta, past_state } });
        expectSame(output, repeatHeads(call.inputs.value, HV, Math.max(HQ, HV)));
      },
      withRule('delta', 'gated_delta'),
    );
  });

  it('a masked token is as if it were not there', () => {
    holds((call) => {
      const { B, T } = call;
      const visible = Array.from({ length: T }, (_, t) => (t * 7 + T) % 3 !== 0);
      const mask = {
        shape: [B, T],
        data: Float64Array.from({ length: B * T }, (_, i) => Number(visible[i % T])),
      };
      const { mask: _, ...unmasked } = call.inputs;
      const kept = visible.flatMap((v, t) => (v ? [t] : []));
      const masked = run({ ...call, inputs: { ...unmasked, mask } });
      const deleted = run({ ...call, inputs: pick({ ...call, inputs: unmasked }, kept) });
      expectSame(masked.presentState, deleted.presentState);
      expectSame(pickTokens(masked.output, kept), deleted.output);
    });
  });

  it('causal=0 gives every token what the last causal token reads', () => {
    holds((call) => {
      const { T } = call;
      if (T === 0) return;
      const { past_state: _, ...inputs } = call.inputs;
      const query = pickTokens(inputs.query, Array<number>(T).fill(T - 1));
      const attributes = { ...call.attributes, read: 'after' } as const;
      const causal = run({ attributes, inputs: { ...inputs, query } });
      const both = run({ attributes: { ...attributes, causal: 0 }, inputs: { ...inputs, query } });
      expectSame(both.presentState, causal.presentState);
      expectSame(pickTokens(both.output, [0]), pickTokens(causal.output, [T - 1]));
    }, withRule('linear'));
  });

  it('read=before is read=after with the queries one token later', () => {
    holds((call) => {
      const { T } = call;
      if (T < 2) return;
      const before = run({ ...call, attributes: { ...call.attributes, read: 'before' } });
      const later = pickTokens(
        call.inputs.query,
        Array.from({ length: T }, (_, t) => Math.min(t + 1, T - 1)),
      );
      const after = run({
        attributes: { ...call.attributes, read: 'after' },
        inputs: { ...call.inputs, query: later },
      });
      expectSame(sliceTokens(before.output, 1, T), sliceTokens(after.output, 0, T - 1));
    });
  });

  it('read=bonus with u = 1 and no decay is read=after', () => {
    holds((call) => {
      const { past_state, query, key, value, mask } = call.inputs;
      const inputs = { past_state, query, key, value, mask };
      const bonus = { shape: [call.HV * call.K], data: new Float64Array(call.HV * call.K).fill(1) };
      const attributes = { ...call.attributes, update_rule: 'linear' } as const;
      expectSameResult(
        run({ attributes: { ...attributes, read: 'bonus' }, inputs: { ...inputs, bonus } }),
        run({ attributes: { ...attributes, read: 'after' }, inputs }),
      );
    });
  });

  it('normalized outputs are weighted means of the values', () => {
    holds((call) => {
      const { mask: _, past_state: __, ...inputs } = call.inputs;
      const attributes = {
        ...call.attributes,
        normalize: 1,
        feature_map: 'softmax',
        read: 'after',
      } as const;
      const ones = { ...inputs.value, data: inputs.value.data.map(() => 1) };
      const { output } = run({ attributes, inputs: { ...inputs, value: ones } });
      // 1e-6 in the denominator, against weights of at least 1e-2 here.
      expect(output.data.every((o) => Math.abs(o - 1) < 1e-3)).toBe(true);
    }, withRule('linear'));
  });
});

/** Tokens in the given order. */
function pickTokens(tensor: Tensor64, order: readonly number[]): Tensor64 {
  const [B] = tensor.shape;
  const parts = order.map((t) => sliceTokens(tensor, t, t + 1));
  const width = tensor.shape.slice(2).reduce((a, b) => a * b, 1);
  const data = new Float64Array(B * order.length * width);
  for (let b = 0; b < B; b += 1) {
    parts.forEach((part, n) => {
      data.set(part.data.subarray(b * width, (b + 1) * width), (b * order.length + n) * width);
    });
  }
  return { shape: [B, order.length, ...tensor.shape.slice(2)], data };
}

function pick({ inputs }: RandomCall, order: readonly number[]): LinearAttentionInputs {
  const picked = Object.entries(inputs as unknown as Record<string, Tensor64>).map(
    ([name, tensor]) => [name, name === 'past_state' ? tensor : pickTokens(tensor, order)],
  );
  return Object.fromEntries(picked) as unknown as LinearAttentionInputs;
}

/** [.., count*size] -> [.., total*size], each head repeated total/count times in a row. */
function repeatHeads({ shape, data }: Tensor64, count: number, total: number): Tensor64 {
  const size = shape[2] / count;
  const rows = shape[0] * shape[1];
  const out = new Float64Array(rows * total * size);
  for (let i = 0; i < rows * total; i += 1) {
    const head = Math.floor(i / total) * count + Math.floor((i % total) / (total / count));
    out.set(data.subarray(head * size, (head + 1) * size), i * size);
  }
  return { shape: [shape[0], shape[1], total * size], data: out };
}

/** [B,HV,K,W] -> [B,total,K,W]. */
function repeatStates({ shape, data }: Tensor64, total: number): Tensor64 {
  const [batch, count, K, W] = shape;
  const { data: out } = repeatHeads({ shape: [batch, 1, count * K * W], data }, count, total);
  return { shape: [batch, total, K, W], data: out };
}

/** Every element repeated `times` times. */
function repeatEach({ shape, data }: Tensor64, times: number): Tensor64 {
  return {
    shape: [...shape.slice(0, -1), shape[shape.length - 1] * times],
    data: Float64Array.from({ length: data.length * times }, (_, i) => data[Math.floor(i / times)]),
  };
}
