import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import { buildModel, makeNode, makeTensor, modelBytes } from '../../exporter/ir/index.js';
import '../../runtime/node/index.js';
import { ROOT } from '../support/models.js';

const folder = mkdtempSync(join(tmpdir(), 'onnx-fla-gate-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** The library of test/native/version_gate.c, whose kernel (y = 42) starts at `version`. */
function libraryFrom(version: number): string {
  const library = join(folder, `gate${version}.so`);
  const include = join(ROOT, 'third_party/onnxruntime/include');
  const source = join(ROOT, 'test/native/version_gate.c');
  execFileSync('cc', [
    '-shared',
    '-fPIC',
    `-DSTART_VERSION=${version}`,
    `-I${include}`,
    '-o',
    library,
    source,
  ]);
  return library;
}

/** y = Probe(x) under com.fla version 1, with the body y = x + 1. */
const model = modelBytes(
  buildModel({
    inputs: { x: ['float32', [1]] },
    outputs: { y: ['float32', [1]] },
    nodes: [makeNode('Probe', ['x'], ['y'], {}, { domain: 'com.fla' })],
    opsets: { '': 17, 'com.fla': 1 },
    functions: [
      {
        name: 'Probe',
        domain: 'com.fla',
        input: ['x'],
        output: ['y'],
        attribute: [],
        node: [
          makeNode('Constant', [], ['one'], { value: makeTensor('', 'float32', [1], [1]) }),
          makeNode('Add', ['x', 'one'], ['y']),
        ],
        opsetImport: [{ domain: '', version: 17 }],
      },
    ],
  }),
);

async function run(library: string): Promise<number> {
  const session = await ort.InferenceSession.create(model, {
    executionProviders: [{ name: 'fla', library }],
  });
  const { y } = await session.run({ x: new ort.Tensor('float32', [10], [1]) });
  await session.release();
  return (y.data as Float32Array)[0]!;
}

describe('the version of the domain that a model imports', () => {
  it('lets a kernel of that version win over the function body', async () => {
    expect(await run(libraryFrom(1))).toBe(42);
  });

  it('keeps kernels of later versions out: the function body runs', async () => {
    expect(await run(libraryFrom(2))).toBe(11);
  });
});
