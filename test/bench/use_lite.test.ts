/** The encoder of the quality bench against what TensorFlow.js computes from the same files (tfjs-converter 4.22, CPU). */
import * as ort from 'onnxruntime-node';
import { beforeAll, expect, test } from 'vitest';
import { useLite, useLiteTokenizer } from '../../bench/quality/use_lite.js';
import { inspectModel, modelBytes } from '../../exporter/index.js';

const EXPECTED: [text: string, ids: number[], embedding: number[]][] = [
  [
    'Hello world, how are you?',
    [341, 4125, 311, 8, 140, 31, 19, 54],
    [-0.016351, -0.05014, -0.045731, -0.014959, -0.060529, -0.003555],
  ],
  [
    'The President has asked Congress for a new law on railways and canals.',
    [34, 1183, 61, 901, 2712, 22, 11, 159],
    [-0.007058, 0.011155, 0.066556, -0.003453, -0.002271, 0.015316],
  ],
  [
    'Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my purse, I thought I would sail about a little.',
    [3650, 84, 16, 552, 252, 283, 6, 797],
    [-0.064966, 0.062361, 0.076478, -0.090419, 0.007546, 0.058211],
  ],
];

let session: ort.InferenceSession;
beforeAll(async () => {
  session = await ort.InferenceSession.create(modelBytes(useLite()));
});

test.each(EXPECTED)('%s', async (text, start, expected) => {
  const ids = useLiteTokenizer().encode(text);
  expect(ids.slice(0, start.length)).toEqual(start);
  const input_ids = new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
  const { embedding } = await session.run({ input_ids });
  const values = embedding!.data as Float32Array;
  expected.forEach((x, i) => {
    expect(values[i]).toBeCloseTo(x, 5);
  });
  expect(Math.hypot(...values)).toBeCloseTo(1, 5);
});

test('both layers can be rewritten', async () => {
  const { sites } = await inspectModel(useLite());
  expect(sites.map((s) => [s.rewritable, s.mask, s.head_dim])).toEqual([
    [true, 'bidirectional', 64],
    [true, 'bidirectional', 128],
  ]);
});
