import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  DATA_TYPE,
  type FittedFeatures,
  modelBytes,
  parseModel,
  type RewriteOptions,
  rewriteModel,
  type StatePair,
} from '../../exporter/index.js';
import '../../runtime/node/index.js';
import { decoder } from './support/decoder.js';
import {
  FAMILIES,
  type Family,
  qkv,
  range,
  scaled,
  transposed,
  Writer,
} from './support/families.js';
import { type Call, evaluate, type Layer, makeLayer } from './support/layer.js';
import { distance, halves, ints, numbers, random, run } from './support/run.js';

const BATCH = 2;
const TOKENS = 7;

/** The same with our kernels, which are strict about types. */
const runKernels: typeof run = async (model, feeds) => {
  const options = { executionProviders: ['fla'], logSeverityLevel: 4 } as const;
  const session = await ort.InferenceSession.create(modelBytes(model), options);
  return session.run(feeds);
};

/** elu+1 as fitted features: x times the identity, and no bias. */
function elu1({ heads, kvHeads, dim }: Layer): FittedFeatures {
  const eye = (_: unknown, i: number) => +((i % (dim * dim)) % (dim + 1) === 0);
  const weight = (h: number) => ({
    dims: [h, dim, dim],
    data: Float32Array.from({ length: h * dim * dim }, eye),
  });
  const bias = (h: number) => ({ dims: [h, dim], data: new Float32Array(h * dim) });
  return {
    featureMap: 'elu1',
    signs: 1,
    queryWeight: weight(heads),
    keyWeight: weight(kvHeads),
    queryBias: bias(heads),
    keyBias: bias(kvHeads),
  };
}

const named = [
  'ViT: separate',
  'GPT-2: packed',
  'scaled_dot',
  'Qwen3',
  'Llama: Expand',
  'BLOOM',
  'gpt-oss',
  'com.microsoft.GroupQueryAttention: rotary embedding',
  'com.microsoft.GroupQueryAttention: q and k norms',
].map((start) => FAMILIES.find((f) => f.name.startsWith(start))!);
const upcast: Family = {
  name: 'mask and Softmax in float32',
  visible: 'causal',
  padding: false,
  mask: 'causal',
  build(w) {
    const [q, k, v] = qkv(w);
    const scores = w.op('Cast', [scaled(w, w.op('MatMul', [q, transposed(w, k)]))], {
      to: DATA_TYPE.float32,
    });
    const at = range(w, 'x');
    const early = w.op('LessOrEqual', [
      w.op('Unsqueeze', [at, w.ints(0)]),
      w.op('Unsqueeze', [at, w.ints(1)]),
    ]);
    const bias = w.op('Where', [
      early,
      w.constant('float32', [0], []),
      w.constant('float32', [-3.4e38], []),
    ]);
    const weights = w.op('Softmax', [w.op('Add', [scores, bias])], { axis: -1 });
    return w.finish(w.op('MatMul', [w.op('Cast', [weights], { to: DATA_TYPE.float16 }), v]));
  },
};

describe.each([...named, upcast])('$name, in float16', (family) => {
  const layer = family.layer?.() ?? makeLayer();
  const next = random(17);
  const x = Array.from({ length: BATCH * TOKENS * layer.hidden }, () => next());
  const call: Call = {
    batch: BATCH,
    tokens: TOKENS,
    x,
    sees: (_, i, j) => family.visible === 'all' || j <= i,
  };

  const error = async (options: RewriteOptions, changed = {}, running = run) => {
    const model = family.build(new Writer(layer, 'float16'));
    const report = await rewriteModel(model, options);
    expect(report.sites).toMatchObject([{ rewritten: true }]);
    const feeds = {
      x: halves([BATCH, TOKENS, layer.hidden], (i) => x[i]!),
      ...(model.graph.isInput('attention_mask') && {
        attention_mask: ints([BATCH, TOKENS], Array(BATCH * TOKENS).fill(1)),
      }),
    };
    const { y } = await running(parseModel(modelBytes(model)), feeds);
    const weighing = options.variant === 'none' ? 'softmax' : 'elu1';
    const expected = evaluate({ ...layer, ...changed }, call, weighing);
    return distance(numbers(y!), expected) / Math.max(...expected.map(Math.abs));
  };

  // Fitted features know no key that scores 0, and so no sink: there is nothing to compare with.
  const fitted: RewriteOptions[] = layer.sinks
    ? []
    : [
        { variant: 'linear', fitted: { 0: { featureMap: 'elu1', signs: 1 } } },
        { variant: 'linear', fitted: { 0: elu1(layer) } },
      ];
  // A few roundings to 11 bits.
  it.each<RewriteOptions>([
    { variant: 'none' },
    { variant: 'linear' },
    { variant: 'linear', body: 'standard' },
    ...fitted,
  ])('%#: $variant', async (options) => {
    expect(await error(options)).toBeLessThan(5e-3);
  });
  // The sum beside a sink is float32, and so are gates then.
  if (layer.sinks)
    it('with a gate that is projected', async () => {
      const weight = new Float32Array(layer.hidden * layer.kvHeads);
      const decay = { weight, bias: new Float32Array(layer.kvHeads) };
      const gates = { default: { decay } };
      const options = { variant: 'gla', featureMap: 'elu1', normalize: true, gates } as const;
      const slopes = Array(layer.heads).fill(Math.LN2 / 16); // log-sigmoid(0) = -log 2
      expect(await error(options, { slopes }, runKernels)).toBeLessThan(5e-3);
    });
});

describe('the state of a float16 decoder', () => {
  const spec = { attention: 'decomposed', cache: true, positions: 'none', padding: false } as const;
  const IDS = [3, 10, 17, 1, 8, 15];
  const variants = [{ dtype: 'float32' }, { dtype: 'same' }] as const;

  it.each(variants)('is $dtype, and goes on where it stopped', async ({ dtype }) => {
    const model = decoder(spec, 'float16');
    const { state } = await rewriteModel(model, { variant: 'linear', dtype });
    const [pair] = state as [StatePair];
    expect(pair.dtype).toBe(dtype === 'same' ? 'float16' : 'float32');
    const file = parseModel(modelBytes(model));
    expect(file.graph.dtype(pair.past)).toBe(pair.dtype);
    const empty = () =>
      pair.dtype === 'float16'
        ? halves([1, 2, 3, 4], () => 0)
        : new ort.Tensor('float32', new Float32Array(24), [1, 2, 3, 4]);
    const call = (ids: readonly number[], past: ort.Tensor) =>
      run(file, { input_ids: ints([1, ids.length], ids), [pair.past]: past });
    const whole = await call(IDS, empty());
    const first = await call(IDS.slice(0, 2), empty());
    const rest = await call(IDS.slice(2), first[pair.present]!);
    const parts = [...numbers(first.y!), ...numbers(rest.y!)];
    expect(distance(numbers(whole.y!), parts)).toBeLessThan(5e-3);
    expect(rest[pair.present]!.type).toBe(pair.dtype);
  });
});

describe('the type of present_state in a float16 model', () => {
  const spec = { attention: 'decomposed', positions: 'none', padding: false } as const;
  const input = { input_ids: ints([1, 3], [3, 10, 17]) };

  /** What stock ONNX Runtime makes of the function body, with present_state as an output of the model. */
  async function presentType(cache: boolean, body: 'com.microsoft' | 'standard'): Promise<string> {
    const model = decoder({ ...spec, cache }, 'float16');
    const { state } = await rewriteModel(model, { variant: 'linear', body });
    const call = model.graph.nodes.find((n) => n.is('LinearAttention', 'com.fla'))!;
    const name = cache ? state[0]!.present : 'present';
    if (!cache) {
      call.proto.output[1] = name;
      model.graph.touch();
      model.graph.addOutput({ name });
    }
    const past = cache && {
      [state[0]!.past]: new ort.Tensor('float32', new Float32Array(24), [1, 2, 3, 4]),
    };
    const outputs = await run(parseModel(modelBytes(model)), { ...input, ...past });
    return outputs[name]!.type;
  }

  it.each(['com.microsoft', 'standard'] as const)(
    "is that of past_state, else the model's own (%s)",
    async (body) => {
      expect(await presentType(true, body)).toBe('float32');
      expect(await presentType(false, body)).toBe('float16');
    },
  );
});
