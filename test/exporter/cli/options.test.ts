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
  const load = (json: unknown) => {
    const file = path.join(os.tmpdir(), `fla-gates-${process.pid}.json`);
    fs.writeFileSync(file, JSON.stringify(json));
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
        decay: { weight: Float32Array.of(1, 2, 3, 4), bias: Float32Array.of(0.5, 0.5) },
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
  ])('%j is refused', (json, message) => {
    expect(() => load(json)).toThrow(message);
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
