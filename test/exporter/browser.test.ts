import fs from 'node:fs';
import * as web from 'onnxruntime-web';
import { expect, it } from 'vitest';
import { inspectModel, ortRunner, parseModel, rewriteModel } from '../../exporter/browser.js';
import * as node from '../../exporter/index.js';
import { TINYLM } from '../support/models.js';

const bytes = fs.readFileSync(TINYLM.modelKv);
const runner = ortRunner(() => web);

it('probes masks on onnxruntime-web, and finds what onnxruntime-node finds', async () => {
  const { sites } = await inspectModel(parseModel(bytes), { runner });
  expect(sites).toEqual((await node.inspectModel(node.loadModel(TINYLM.modelKv))).sites);
  expect(sites.map((s) => s.mask)).toEqual(Array(4).fill('causal+padding'));
});

it('rewrites a model in memory', async () => {
  const model = parseModel(bytes);
  const report = await rewriteModel(model, { variant: 'linear', runner });
  expect(report.sites.map((s) => s.rewritten)).toEqual(Array(4).fill(true));
});

it('asks for a runner where masks have to be probed', async () => {
  await expect(inspectModel(parseModel(bytes))).rejects.toMatchObject({
    code: 'invalid_argument',
    message: expect.stringContaining('runner must be given'),
  });
});
