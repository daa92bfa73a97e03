import fs from 'node:fs';
import path from 'node:path';
import { expect, it } from 'vitest';
import {
  inspectModel,
  modelBytes,
  nodeRunner,
  parseModel,
  type Runner,
  rewriteModel,
} from '../../exporter/index.js';
import { FlaError } from '../../ops/error.js';
import { ROOT } from '../support/models.js';
import { mutate } from '../support/mutate.js';
import { random } from './support/run.js';

const FOLDER = path.join(ROOT, 'test/fixtures/torch');
const models = fs.readdirSync(FOLDER).filter((f) => f.endsWith('.onnx'));
const MUTATIONS = 500;
const SLOWEST_MS = 5000;

/** Refuses everything, as ONNX Runtime may: most mutations are about reading, and this is faster. */
const refusing: Runner = {
  run: () => Promise.reject(new Error('refused')),
};

it(`${MUTATIONS} mutated models are read, or refused with an error that says why`, async () => {
  const next = random(20260);
  const below = (n: number) => Math.min(n - 1, Math.floor(((next() + 1) / 2) * n));
  let read = 0;
  for (let i = 0; i < MUTATIONS; i++) {
    const name = models[below(models.length)]!;
    const bytes = mutate(fs.readFileSync(path.join(FOLDER, name)), below);
    const runner = i % 5 === 0 ? nodeRunner : refusing;
    const start = performance.now();
    try {
      await inspectModel(parseModel(bytes), { runner });
      const model = parseModel(bytes);
      await rewriteModel(model, { variant: 'linear', runner });
      modelBytes(model);
      read++;
    } catch (error) {
      if (!(error instanceof FlaError)) throw new Error(`mutation ${i}, ${name}`, { cause: error });
      expect(error.message).not.toBe('');
    }
    expect(performance.now() - start, `mutation ${i}, ${name}`).toBeLessThan(SLOWEST_MS);
  }
  // Were all of them refused or none, they would show nothing.
  expect(read).toBeGreaterThan(MUTATIONS / 10);
  expect(read).toBeLessThan((MUTATIONS * 9) / 10);
});
