import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Tensor64, windowAttentionReference } from '../../ops/index.js';
import { maxAbsError, Random, sliceTokens } from '../cases/tensors.js';
import { windowAttentionCases } from '../cases/window_attention.js';
import {
  type RandomHybridCall,
  randomHybridCalls,
  tokensOf,
  windowCallOf,
} from '../support/hybrid_calls.js';
import { denseHybrid } from './dense.js';

const calls = randomHybridCalls({ B: 2, T: 24, size: 5, window: 9 });

const holds = (property: (call: RandomHybridCall) => void) =>
  fc.assert(fc.property(calls, property), { numRuns: 200, seed: 20263 });

function expectSame(actual: Tensor64, expected: Tensor64, limit = 1e-11): void {
  expect(actual.shape).toEqual(expected.shape);
  const finite = (x: Float64Array) => x.map((e) => (e === -Infinity ? 1e9 : e));
  expect(maxAbsError(finite(actual.data), finite(expected.data))).toBeLessThanOrEqual(limit);
}

describe('the WindowAttention reference', () => {
  it('is softmax over the tokens that are seen', () => {
    holds((call) => {
      const { attributes, inputs } = windowCallOf(call);
      const actual = windowAttentionReference(attributes, inputs);
      const nothingFar = { shape: [call.sizes.HQ], data: new Float64Array(call.sizes.HQ) };
      nothingFar.data.fill(-Infinity);
      const expected = denseHybrid(attributes, { ...inputs, alpha: nothingFar }, call.sizes);
      expectSame(actual.output, expected.output);
      expectSame(actual.lse, expected.lse);
    });
  });

  it('gives the same in two parts as in one', () => {
    const split = fc
      .tuple(calls, fc.nat())
      .map(([call, n]) => ({ call, at: n % (call.sizes.T + 1) }));
    fc.assert(
      fc.property(split, ({ call, at }) => {
        const { attributes, inputs } = windowCallOf(call);
        const { T } = call.sizes;
        const whole = windowAttentionReference(attributes, inputs);
        const first = windowAttentionReference(attributes, tokensOf(inputs, 0, at));
        const second = windowAttentionReference(attributes, {
          ...tokensOf(inputs, at, T),
          past_window: first.presentWindow,
        });
        expectSame(second.presentWindow, whole.presentWindow, 0);
        expectSame(first.output, sliceTokens(whole.output, 0, at), 0);
        expectSame(second.output, sliceTokens(whole.output, at, T), 0);
        expectSame(second.lse, sliceTokens(whole.lse, at, T), 0);
      }),
      { numRuns: 200, seed: 20263 },
    );
  });

  it('treats shared keys as repeated keys', () => {
    holds((call) => {
      const { attributes, inputs } = windowCallOf(call);
      const { HQ, HV } = call.sizes;
      const full = windowAttentionReference(
        { ...attributes, kv_num_heads: HQ },
        {
          ...inputs,
          key: repeatHeads(inputs.key, HV, HQ),
          value: repeatHeads(inputs.value, HV, HQ),
        },
      );
      const shared = windowAttentionReference(attributes, inputs);
      expectSame(shared.output, full.output);
      expectSame(shared.lse, full.lse);
    });
  });

  it('with a window as long as the text is causal attention with any bias of a T5 decoder', () => {
    const random = new Random('T5');
    const [T, K] = [200, 8];
    const tokens = () => random.tensor([1, T, K], () => random.normal());
    const inputs = { query: tokens(), key: tokens(), value: tokens() };
    const buckets = Array.from({ length: 32 }, () => 3 * random.normal());
    const bias = (distance: number) => buckets[t5Bucket(distance)];
    // From distance 113 on all share a bucket.
    const [window, sinks] = [128, 3];
    const distance_bias = {
      shape: [1, window + 1],
      data: Float64Array.from({ length: window + 1 }, (_, d) => bias(d)),
    };
    const attributes = { q_num_heads: 1, kv_num_heads: 1, window, sinks, scale: 1 };
    const { output } = windowAttentionReference(attributes, { ...inputs, distance_bias });
    for (const t of [0, 5, 127, 128, 140, 199]) {
      const weights = Array.from({ length: t + 1 }, (_, j) => {
        const seen = j < sinks || j > t - window;
        const at = (x: Tensor64, n: number) => x.data.subarray(n * K, (n + 1) * K);
        const product = at(inputs.key, j).reduce((s, k, i) => s + k * at(inputs.query, t)[i], 0);
        return seen ? Math.exp(product + bias(t - j)) : 0;
      });
      const total = weights.reduce((a, b) => a + b, 0);
      const sum = weights.reduce((s, w, j) => s + w * inputs.value.data[j * K], 0);
      expect(Math.abs(output.data[t * K] - sum / total)).toBeLessThan(1e-12);
    }
  });

  it('counts on past 2^32 without forgetting the ring', () => {
    const late = windowAttentionCases.find(({ name }) => name === 'after 2^32 tokens')!;
    const inputs = late.inputs();
    const { window, sinks = 0 } = late.attributes;
    const [, , rows, width] = inputs.past_window!.shape;
    // The same state with a count that is lower by a multiple of the window.
    const early = { ...inputs.past_window!, data: inputs.past_window!.data.slice() };
    const lower = 2 ** 32 - 9 - window * Math.floor((2 ** 32 - 9 - sinks - window) / window);
    for (let i = 0; i < 4; i += 1) {
      const row = (i * rows + rows - 1) * width;
      early.data.fill(0, row, row + width);
      early.data[row] = lower + 3 * Math.floor(i / 2);
    }
    const actual = windowAttentionReference(late.attributes, inputs);
    const expected = windowAttentionReference(late.attributes, { ...inputs, past_window: early });
    expectSame(actual.output, expected.output, 1e-15);
    const count = (x: Tensor64, head: number) =>
      [3, 2, 1, 0].reduce((n, i) => n * 256 + x.data[((head + 1) * rows - 1) * width + i], 0);
    const lowered = window * Math.floor(2 ** 31 / window);
    expect(count(actual.presentWindow, 0)).toBe(2 ** 32 + 31 - lowered);
    expect(count(actual.presentWindow, 2)).toBe(2 ** 32 + 34 - lowered);
  });
});

/** Bucket of a distance >= 0 for a T5 decoder: 32 buckets, the first 16 exact, up to distance 128. */
function t5Bucket(distance: number): number {
  if (distance < 16) return distance;
  return Math.min(31, 16 + Math.floor((Math.log(distance / 16) / Math.log(128 / 16)) * 16));
}

/** [..,count*size] -> [..,total*size], each head repeated total/count times in a row. */
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
