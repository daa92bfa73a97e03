import {
  buildModel,
  type DTypeName,
  Emitter,
  freshNames,
  makeNode,
  makeTensor,
  modelBytes,
} from '../../../exporter/ir/index.js';

/** `z = op(x, y)` over [N,4]. */
export function binaryModel(op: string, dtype: DTypeName, out: DTypeName = dtype): Uint8Array {
  return modelBytes(
    buildModel({
      inputs: { x: [dtype, ['N', 4]], y: [dtype, ['N', 4]] },
      outputs: { z: [out, ['N', 4]] },
      nodes: [makeNode(op, ['x', 'y'], ['z'])],
    }),
  );
}

/** `y = x` through Identity, of any dtype and size. */
export function identityModel(dtype: DTypeName): Uint8Array {
  return modelBytes(
    buildModel({
      inputs: { x: [dtype, ['N']] },
      outputs: { y: [dtype, ['N']] },
      nodes: [makeNode('Identity', ['x'], ['y'])],
    }),
  );
}

/** `y = ((x w) w) ...`, `depth` products of [size,size]: as slow as one likes. */
export function slowModel(size: number, depth: number): Uint8Array {
  const e = new Emitter(freshNames());
  const weight = makeTensor(
    'w',
    'float32',
    [size, size],
    new Float32Array(size * size).fill(1 / size),
  );
  let x = 'x';
  for (let i = 0; i < depth; i++) {
    x = e.op('MatMul', [x, 'w'], {}, i === depth - 1 ? { output: 'y' } : {});
  }
  return modelBytes(
    buildModel({
      inputs: { x: ['float32', [size, size]] },
      outputs: { y: ['float32', [size, size]] },
      nodes: e.nodes,
      initializers: [weight],
    }),
  );
}

/** Running sum over time: x [B,T,D], past_state [B,D] -> y [B,T,D], present_state [B,D]. */
export function cumulativeModel(
  options: {
    dim?: number;
    dtype?: DTypeName;
    metadata?: Record<string, string>;
    past?: string;
    present?: string;
  } = {},
): Uint8Array {
  const {
    dim = 3,
    dtype = 'float32',
    metadata,
    past = 'past_state',
    present = 'present_state',
  } = options;
  const e = new Emitter(freshNames());
  const axis = e.constant('int64', [1], []);
  const sums = e.op('CumSum', ['x', axis]);
  const start = e.op('Unsqueeze', [past, e.ints(1)]);
  e.op('Add', [sums, start], {}, { output: 'y' });
  const total = e.op('ReduceSum', ['x', e.ints(1)], { keepdims: 0 });
  e.op('Add', [past, total], {}, { output: present });
  return modelBytes(
    buildModel({
      inputs: { x: [dtype, ['B', 'T', dim]], [past]: [dtype, ['B', dim]] },
      outputs: { y: [dtype, ['B', 'T', dim]], [present]: [dtype, ['B', dim]] },
      nodes: e.nodes,
      metadata,
    }),
  );
}
