// Runs a rewritten model with user code that knows only onnxruntime-node:
//   npx onnx-fla rewrite model.onnx -o linear.onnx && node run_linear.js linear.onnx
import * as ort from 'onnxruntime-node';
import 'onnx-fla/node'; // registers the backend `fla`

const session = await ort.InferenceSession.create(process.argv[2]!, {
  executionProviders: ['fla'], // ['cpu'] runs the same file without our kernels
});

// Eight times token 1, from a fresh start: states of zeros.
const feeds: Record<string, ort.Tensor> = {};
for (const input of session.inputMetadata) {
  if (!input.isTensor) continue;
  const dims = input.shape.map((d, axis) => (typeof d === 'number' ? d : axis === 0 ? 1 : 8));
  const size = dims.reduce((a, b) => a * b, 1);
  feeds[input.name] =
    input.type === 'int64'
      ? new ort.Tensor(
          'int64',
          new BigInt64Array(size).fill(input.name.startsWith('past') ? 0n : 1n),
          dims,
        )
      : new ort.Tensor('float32', new Float32Array(size), dims);
}
const results = await session.run(feeds);
for (const [name, tensor] of Object.entries(results)) console.log(name, tensor.dims.join(' x '));
