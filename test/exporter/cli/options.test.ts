import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { formatBytes, formatMs, formatNumber } from '../../../exporter/cli/format.js';
import { loadGates } from '../../../exporter/cli/gates.js';
import { collectDim, parseLayers, parseLengths } from '../../../exporter/cli/options.js';

describe('option values', () => {
  test('layers', () => {
    expect(parseLayers('0,2-3')).toEqual([0, 2, 3]);
    expect(parseLayers('3,1-3')).toEqual([1, 2, 3]);
    for (const bad of ['', '1-', '-1', '2-1', 'a', '0..3', '0-1000000000'])
      expect(() => parseLayers(bad)).toThrow();
  });
  test('lengths', () => {
    expect(parseLengths('128, 512')).toEqual([128, 512]);
    for (const bad of ['', '0', '1.5', '-3', '1e99']) expect(() => parseLengths(bad)).toThrow();
  });
  test('dimensions; names may hold anything', () => {
    expect(collectDim('p2o.Dynamic=1=640', { batch: 2 })).toEqual({
      batch: 2,
      'p2o.Dynamic=1': 640,
    });
    for (const bad of ['w', '=3', 'w=', 'w=x']) expect(() => collectDim(bad, {})).toThrow();
  });
});

describe('gates', () => {
  const load = (json: unknown) => loadText(JSON.stringify(json));
  const loadText = (text: string) => {
    const file = path.join(os.tmpdir(), `fla-gates-${process.pid}.json`);
    fs.writeFileSync(file, text);
    try {
      return loadGates(file);
    } finally {
      fs.rmSync(file);
    }
  };
  test('constants and weights, nested or flat', () => {
    const decay = {
      weight: [
        [1, 2],
        [3, 4],
      ],
      bias: [0.5, 0.5],
    };
    expect(load({ default: { beta: { constant: 0.5 } }, 2: { decay, temperature: 16 } })).toEqual({
      default: { beta: { constant: 0.5 } },
      2: {
        decay: {
          weight: Float32Array.of(1, 2, 3, 4),
          dims: [2, 2],
          bias: Float32Array.of(0.5, 0.5),
        },
        temperature: 16,
      },
    });
  });
  test.each([
    [[], /gates must be an object/],
    [{ first: {} }, /layer numbers or 'default'/],
    [{ 0: { gamma: {} } }, /'0' must be made of/],
    [{ 0: { decay: 3 } }, /'0'\.decay must be an object, received 3/],
    [{ 0: { decay: { constant: 'x' } } }, /constant must be a number/],
    [{ 0: { decay: { weight: [['x']] } } }, /weight must be rows of numbers/],
    [{ 0: { decay: { weight: [1], bias: 1 } } }, /bias must be a list/],
    [{ 0: { decay: { weight: [[1, 2], [3]] } } }, /weight must be rows of numbers/],
    [{ 0: { a: { weight: [[1]] } } }, /'0'\.a\.constant must be a number/],
  ])('%j is refused', (json, message) => {
    expect(() => load(json)).toThrow(message);
  });
  test('lists in lists in lists are refused', () => {
    const deep = '['.repeat(9000) + ']'.repeat(9000);
    expect(() => loadText(`{"0":${deep}}`)).toThrow(/'0' must be an object, received a list/);
    expect(() => loadText(`{"0":{"decay":{"weight":${deep}}}}`)).toThrow(
      /'0'\.decay\.weight must be rows of numbers \[hidden\]\[n\], received a list/,
    );
  });
});

describe('gates in safetensors', () => {
  type Stored = Record<string, { shape: number[]; values: number[]; dtype?: string }>;
  const load = (tensors: Stored) => {
    let at = 0;
    const entries = Object.entries(tensors).map(([name, { shape, values, dtype = 'F32' }]) => {
      const start = at;
      at += 4 * values.length;
      return [name, { dtype, shape, data_offsets: [start, at] }];
    });
    return loadFile(
      Object.fromEntries(entries),
      Object.values(tensors).flatMap((t) => t.values),
    );
  };
  const loadFile = (header: unknown, values: number[]) => {
    const json = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(json.length));
    const data = Float32Array.from(values);
    const file = path.join(os.tmpdir(), `fla-gates-${process.pid}.safetensors`);
    fs.writeFileSync(file, Buffer.concat([length, json, Buffer.from(data.buffer)]));
    try {
      return loadGates(file);
    } finally {
      fs.rmSync(file);
    }
  };
  test('constants, weights and biases by name', () => {
    const gates = load({
      'default.beta.constant': { shape: [], values: [0.5] },
      'default.gain.constant': { shape: [2], values: [1, 2] },
      '2.decay.weight': { shape: [3, 2], values: [1, 2, 3, 4, 5, 6] },
      '2.decay.bias': { shape: [2], values: [0.5, 0.25] },
      '2.temperature': { shape: [1], values: [16] },
    });
    expect(gates).toEqual({
      default: { beta: { constant: 0.5 }, gain: { constant: [1, 2] } },
      2: {
        decay: {
          weight: Float32Array.of(1, 2, 3, 4, 5, 6),
          dims: [3, 2],
          bias: Float32Array.of(0.5, 0.25),
        },
        temperature: 16,
      },
    });
  });
  const one = { shape: [1], values: [1] };
  test.each<[Stored, RegExp]>([
    [{ 'layers.0.decay': one }, /tensors must be named .* received "layers\.0\.decay"/],
    [{ '0.a.weight': one }, /tensors must be named/],
    [
      { '0.decay.weight': { shape: [2], values: [1, 2] } },
      /a matrix \[hidden, n\], received \[2\]/,
    ],
    [{ '0.decay.bias': one }, /'0\.decay\.bias' must be beside a weight/],
    [
      { '0.decay.bias': one, '0.decay.constant': one },
      /must be absent beside '0\.decay\.constant'/,
    ],
    [{ '0.temperature': { shape: [2], values: [1, 2] } }, /one number, received \[2\]/],
    [{ '0.a.constant': { shape: [1, 1], values: [1] } }, /a number or a vector, received \[1,1\]/],
    [
      { '0.a.constant': { ...one, dtype: 'I32' } },
      /must be of F16, BF16, F32 or F64, received I32/,
    ],
  ])('%j is refused', (tensors, message) => {
    expect(() => load(tensors)).toThrow(message);
  });
  const good = { dtype: 'F32', shape: [2], data_offsets: [0, 8] };
  test.each<[unknown, RegExp]>([
    [null, /must be a safetensors file/],
    [[], /must be a safetensors file/],
    [{ '0.a.constant': null }, /'0\.a\.constant' must be .* received null/],
    [
      { '0.a.constant': { ...good, dtype: 7 } },
      /'0\.a\.constant': dtype must be string, received 7/,
    ],
    [{ '0.a.constant': { ...good, shape: ['x'] } }, /shape\.0 must be number, received "x"/],
    [{ '0.a.constant': { ...good, shape: [[]] } }, /shape\.0 must be number, received Array/],
    [{ '0.a.constant': { ...good, shape: [-1] } }, /shape\.0 must be >=0, received -1/],
    [{ '0.a.constant': { ...good, shape: [2 ** 40] } }, /0\.a\.constant.* 8/],
    [{ '0.a.constant': { ...good, data_offsets: [0, 80] } }, /bytes 0 to 80, the file has 8/],
    [{ '0.a.constant': { ...good, data_offsets: [8, 0] } }, /bytes 8 to 0/],
    [{ '0.a.constant': { ...good, data_offsets: [] } }, /data_offsets/],
  ])('a header %j is refused', (header, message) => {
    expect(() => loadFile(header, [1, 2])).toThrow(message);
  });
});

test('numbers for people', () => {
  expect([0, 1023, 1024, 1536, 20 * 2 ** 20, 3 * 2 ** 30].map(formatBytes)).toEqual([
    '0 B',
    '1023 B',
    '1.00 KiB',
    '1.50 KiB',
    '20.0 MiB',
    '3.00 GiB',
  ]);
  expect(formatBytes(null)).toBe('-');
  expect(formatNumber(1234.5678)).toBe('1235');
  expect(formatNumber(0.000012345)).toBe('0.00001234');
  expect(formatMs(1.23456)).toBe('1.23 ms');
  expect(formatMs(12_345)).toBe('12.3 s');
});
