/** `onnx-fla/web` where there is no WebGPU at all, as in plain Node: on wasm. */
import * as ort from 'onnxruntime-web/webgpu';
import { expect, test, vi } from 'vitest';
import '../../runtime/web/index.js';
import { binaryModel, cumulativeModel } from './support/models.js';

const options: ort.InferenceSession.SessionOptions = { executionProviders: ['fla'] };

function floats(values: readonly number[], dims: readonly number[]): ort.Tensor {
  return new ort.Tensor('float32', Float32Array.from(values), dims);
}

test('a model runs in onnxruntime-web, and what runs it is told once', async () => {
  const info = vi.spyOn(console, 'info').mockImplementation(() => {});
  const first = await ort.InferenceSession.create(binaryModel('Add', 'float32'), options);
  const second = await ort.InferenceSession.create(cumulativeModel(), options);
  expect(info.mock.calls).toEqual([
    [expect.stringContaining('WebGPU is not used, as there is no navigator.gpu')],
  ]);
  info.mockRestore();

  const x = floats([1, 2, 3, 4], [1, 4]);
  const { z } = await first.run({ x, y: x });
  expect([z.dims, z.data]).toEqual([[1, 4], Float32Array.of(2, 4, 6, 8)]);

  const feeds = {
    x: floats([1, 2, 3, 4, 5, 6], [1, 2, 3]),
    past_state: floats([10, 20, 30], [1, 3]),
  };
  const results = await second.run(feeds, ['present_state']);
  expect(Object.keys(results)).toEqual(['present_state']);
  expect(results.present_state.data).toEqual(Float32Array.of(15, 27, 39));

  expect(second.inputNames).toEqual(['x', 'past_state']);
  expect(second.outputMetadata[1]).toMatchObject({ name: 'present_state', type: 'float32' });
  await first.release();
  await second.release();
});

test('a model that is none is rejected', async () => {
  await expect(ort.InferenceSession.create(Uint8Array.of(1, 2, 3), options)).rejects.toThrow();
});
