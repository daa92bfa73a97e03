import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { findRepeat, makeBatch } from '../../../exporter/calibrate/data/index.js';
import { arrayData, loadData, readNpz, tokenData, writeNpz } from '../../../exporter/index.js';
import { Random } from '../../../exporter/random.js';
import { FlaError } from '../../../ops/error.js';
import { TINYLM } from '../../support/models.js';
import { mutate } from '../../support/mutate.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-data-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

const ids = Array.from({ length: 5000 }, (_, i) => i);

it('pieces of a text depend on seed and number alone, and the held-out ones lie elsewhere', async () => {
  const data = tokenData(ids, { length: 100, batch: 2, repeated: 0 });
  const [a, b, again, other] = await Promise.all([
    data.inputs('fit', 1),
    data.inputs('fit', 2),
    tokenData(ids, { length: 100, batch: 2, repeated: 0 }).inputs('fit', 1),
    tokenData(ids, { length: 100, batch: 2, repeated: 0, seed: 1 }).inputs('fit', 1),
  ]);
  expect(a).toEqual(again);
  expect(a).not.toEqual(b);
  expect(a).not.toEqual(other);
  expect(a.ids).toHaveLength(200);
  for (let i = 0; i < 50; i++) {
    const fit = (await data.inputs('fit', i)).ids!;
    const held = (await data.inputs('held-out', i)).ids!;
    expect(Math.max(...fit)).toBeLessThan(4500);
    expect(Math.min(...held)).toBeGreaterThanOrEqual(4500);
  }
});

it('segments come a second time where it says so', async () => {
  const data = tokenData(ids, { length: 200, repeated: 1, distance: 64 });
  for (let i = 0; i < 50; i++) {
    const sequence = (await data.inputs('fit', i)).ids!;
    const repeat = data.repeats('fit', i)[0]!;
    expect(repeat.second - repeat.first).toBeGreaterThanOrEqual(64);
    expect(repeat.second + repeat.length).toBeLessThanOrEqual(200);
    expect(findRepeat(sequence)).toEqual(repeat);
  }
});

it('reads arrays that it wrote, and examples by their first axis', async () => {
  const file = path.join(folder, 'a.npz');
  const values = Array.from({ length: 20 * 3 }, (_, i) => i - 7);
  writeNpz(file, { input_ids: { dims: [20, 3], data: BigInt64Array.from(values, BigInt) } });
  const arrays = readNpz(file);
  expect([...arrays.keys()]).toEqual(['input_ids']);
  expect(arrays.get('input_ids')!.dims).toEqual([20, 3]);
  expect([...(arrays.get('input_ids')!.data as Float64Array)]).toEqual(values);
  const data = arrayData(arrays, { batch: 2 });
  const row = (await data.inputs('held-out', 0)).input_ids!;
  expect(row).toHaveLength(6);
  expect(row[0]).toBeGreaterThanOrEqual(18 * 3 - 7);
  expect(data.shape('input_ids')).toEqual([2, 3]);
});

it('reads mutated arrays, or says that they are none', () => {
  const file = path.join(folder, 'mutated.npz');
  writeNpz(file, { x: { dims: [3, 2], data: new Float32Array(6) } });
  const whole = fs.readFileSync(file);
  const random = new Random(7);
  for (let i = 0; i < 3000; i++) {
    fs.writeFileSync(
      file,
      mutate(whole, (n) => random.below(n)),
    );
    try {
      for (const { dims, data } of readNpz(file).values())
        expect(dims.reduce((a, b) => a * b, 1)).toBe(data.length);
    } catch (error) {
      expect(error).toBeInstanceOf(FlaError);
      expect((error as FlaError).message).toMatch(/mutated\.npz/);
    }
  }
});

it('takes a folder of pictures in several widths, each batch of one', async () => {
  const images = path.join(folder, 'images');
  fs.mkdirSync(images);
  const write = (name: string, count: number, width: number, value: number) =>
    writeNpz(path.join(images, name), {
      x: {
        dims: [count, 3, 2, width],
        data: new Float32Array(count * 6 * width).fill(value + 0.5),
      },
    });
  write('a.npz', 6, 4, 1);
  write('b.npz', 6, 4, 2);
  write('c.npz', 4, 8, 3);
  const data = loadData(images, { batch: 2 });
  const x = { name: 'x', type: 'float32', shape: ['n', 3, 2, 'w'] };
  const seen = new Map<number, Set<number>>();
  for (let i = 0; i < 60; i++) {
    const batch = (await makeBatch([x], data, 'fit', i)).x!;
    expect(batch.dims.slice(0, 3)).toEqual([2, 3, 2]);
    const values = seen.get(batch.dims[3]!) ?? new Set();
    seen.set(batch.dims[3]!, values);
    for (const v of batch.data as Float32Array) values.add(v);
  }
  expect([...seen.keys()].sort()).toEqual([4, 8]);
  expect([...seen.get(4)!].sort()).toEqual([1.5, 2.5]);
  expect([...seen.get(8)!]).toEqual([3.5]);
  write('d.npz', 1, 6, 4);
  expect(() => loadData(images, { batch: 2 })).toThrow(/d\.npz: arrays must all have one number/);
});

it('says what is wrong with data', () => {
  const text = path.join(folder, 'short.txt');
  fs.writeFileSync(text, 'Call me Ishmael.');
  expect(() => loadData(text)).toThrow(`${text}: is text, which needs a tokenizer`);
  expect(() => loadData(text, { tokenizer: TINYLM.tokenizer, length: 512 })).toThrow(
    /text must have at least 5130 tokens for sequences of 512, received \d+/,
  );
  const broken = path.join(folder, 'broken.npz');
  fs.writeFileSync(broken, 'no archive');
  expect(() => loadData(broken)).toThrow(`${broken}: is no .npz file`);
  expect(() => loadData(path.join(folder, 'absent.npz'))).toThrow(/absent\.npz/);
});
