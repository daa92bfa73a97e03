import { describe, expect, it } from 'vitest';
import {
  type Gate,
  type Model,
  modelBytes,
  parseModel,
  type RewriteOptions,
  rewriteModel,
} from '../../exporter/index.js';
import { FAMILIES, Writer } from './support/families.js';
import { atOpset } from './support/forms.js';
import { type Call, makeLayer, recur, type TokenGates } from './support/layer.js';
import { distance, floats, halves, ints, numbers, random, run } from './support/run.js';

const family = (start: string) => FAMILIES.find((f) => f.name.startsWith(start))!;
const gpt2 = family('GPT-2: packed');
const llama = family('Llama');

const BATCH = 2;
const TOKENS = 11;
const MASK = [Array(TOKENS).fill(1), Array.from({ length: TOKENS }, (_, t) => (t < 4 ? 0 : 1))];

/** A rewritten layer's output against the recurrence, tokens of padding left out. */
async function error(
  source: typeof gpt2,
  options: RewriteOptions,
  gates: (x: Float32Array) => TokenGates,
) {
  const layer = source.layer?.() ?? makeLayer();
  const model = source.build(new Writer(layer));
  await rewriteModel(model, options);
  const next = random(11);
  const x = floats([BATCH, TOKENS, layer.hidden], () => next() * 1.5);
  const feeds = {
    x,
    ...(source.padding && { attention_mask: ints([BATCH, TOKENS], MASK.flat()) }),
  };
  const { y } = await run(parseModel(modelBytes(model)), feeds);
  const visible = (b: number, t: number) => !source.padding || MASK[b]![t] === 1;
  const data = x.data as Float32Array;
  const call: Call = { batch: BATCH, tokens: TOKENS, x: data, sees: (b, _, j) => visible(b, j) };
  const expected = recur(layer, call, gates(data));
  const keep = (values: ArrayLike<number>) =>
    Array.from(values).filter((_, i) => {
      const token = Math.floor(i / layer.hidden);
      return visible(Math.floor(token / TOKENS), token % TOKENS);
    });
  const size = Math.max(1, ...expected.map(Math.abs));
  return distance(keep(y!.data as Float32Array), keep(expected)) / size;
}

/** A random projection of the layer's input, and the same in float64. */
function projection(hidden: number, columns: number, seed: number) {
  const next = random(seed);
  const weight = Float32Array.from({ length: hidden * columns }, () => next() * 0.5);
  const bias = Float32Array.from({ length: columns }, () => next());
  const at = (x: Float32Array, b: number, t: number, c: number) => {
    let sum = bias[c]!;
    for (let i = 0; i < hidden; i++)
      sum += x[(b * TOKENS + t) * hidden + i]! * weight[i * columns + c]!;
    return sum;
  };
  return { gate: { weight, bias } satisfies Gate, at };
}
const logSigmoid = (z: number) => -Math.log1p(Math.exp(-z));
const sigmoid = (z: number) => 1 / (1 + Math.exp(-z));
const softplus = (z: number) => Math.log1p(Math.exp(z));

describe.each([gpt2, llama])('$name', (source) => {
  const { kvHeads, hidden, dim } = source.layer?.() ?? makeLayer();

  it('retention decays each head by 1 - 2^(-5-h)', async () => {
    const gates = () => ({
      decay: (_b: number, _t: number, h: number) => Math.log(1 - 2 ** (-5 - h)),
    });
    expect(await error(source, { variant: 'retention' }, gates)).toBeLessThan(2e-6);
  });

  it('retention takes decays of the caller', async () => {
    const decay = Array.from({ length: kvHeads }, (_, h) => -0.1 - h);
    const gates = () => ({ decay: (_b: number, _t: number, h: number) => decay[h]! });
    expect(await error(source, { variant: 'retention', decay }, gates)).toBeLessThan(2e-6);
  });

  it.each(['head', 'key'] as const)(
    'gla decays by a projection of the layer input, per %s',
    async (per) => {
      const { gate, at } = projection(hidden, per === 'head' ? kvHeads : kvHeads * dim, 21);
      const options: RewriteOptions = { variant: 'gla', gates: { 0: { decay: gate } } };
      const gates = (x: Float32Array) => ({
        decay: (b: number, t: number, h: number, k: number) =>
          logSigmoid(at(x, b, t, per === 'head' ? h : h * dim + k)) / 16,
      });
      expect(await error(source, options, gates)).toBeLessThan(2e-6);
    },
  );

  it('gated-delta takes projected decay and beta', async () => {
    const decay = projection(hidden, kvHeads, 31);
    const beta = projection(hidden, kvHeads, 32);
    const options: RewriteOptions = {
      variant: 'gated-delta',
      gates: { default: { decay: decay.gate, beta: beta.gate, temperature: 4 } },
    };
    const gates = (x: Float32Array) => ({
      decay: (b: number, t: number, h: number) => logSigmoid(decay.at(x, b, t, h)) / 4,
      beta: (b: number, t: number, h: number) => sigmoid(beta.at(x, b, t, h)),
    });
    expect(await error(source, options, gates)).toBeLessThan(2e-6);
  });

  it('gated-delta takes one beta for all heads, and constants', async () => {
    const beta = projection(hidden, 1, 33);
    const options: RewriteOptions = {
      variant: 'gated-delta',
      gates: { default: { decay: { constant: -0.2 }, beta: beta.gate } },
    };
    const gates = (x: Float32Array) => ({
      decay: () => -0.2,
      beta: (b: number, t: number) => sigmoid(beta.at(x, b, t, 0)),
    });
    expect(await error(source, options, gates)).toBeLessThan(2e-6);
  });
});

describe.each([gpt2, llama])('$name: steps', (source) => {
  const { kvHeads, hidden } = source.layer?.() ?? makeLayer();
  const a = Array.from({ length: kvHeads }, (_, h) => -0.3 - h);
  const dt = projection(hidden, kvHeads, 41);
  const step = (x: Float32Array) => (b: number, t: number, h: number) =>
    softplus(dt.at(x, b, t, h));

  it('delta: keys of unit length, beta 1 unless told otherwise', async () => {
    const still = { decay: () => 0, beta: () => 1 };
    expect(await error(source, { variant: 'delta' }, () => still)).toBeLessThan(2e-6);
    const beta = projection(hidden, kvHeads, 42);
    const options: RewriteOptions = { variant: 'delta', gates: { default: { beta: beta.gate } } };
    const gates = (x: Float32Array) => ({
      decay: () => 0,
      beta: (b: number, t: number, h: number) => sigmoid(beta.at(x, b, t, h)),
    });
    expect(await error(source, options, gates)).toBeLessThan(2e-6);
  });

  it('mamba2: S = exp(a dt) S + dt k v', async () => {
    const options: RewriteOptions = {
      variant: 'mamba2',
      gates: { default: { a: { constant: a }, dt: dt.gate } },
    };
    const gates = (x: Float32Array) => ({
      decay: (b: number, t: number, h: number) => a[h]! * step(x)(b, t, h),
      step: step(x),
    });
    expect(await error(source, options, gates)).toBeLessThan(2e-6);
  });

  it('mamba2 with a constant step', async () => {
    const gates = { 0: { a: { constant: -2 }, dt: { constant: 0.25 } } };
    const recurrence = () => ({ decay: () => -0.5, step: () => 0.25 });
    expect(await error(source, { variant: 'mamba2', gates }, recurrence)).toBeLessThan(2e-6);
  });

  it('gated-delta decays by a softplus of its own (Gated DeltaNet)', async () => {
    const beta = { constant: 0.7 };
    const options: RewriteOptions = {
      variant: 'gated-delta',
      gates: { default: { a: { constant: a }, dt: dt.gate, beta } },
    };
    const gates = (x: Float32Array) => ({
      decay: (b: number, t: number, h: number) => a[h]! * step(x)(b, t, h),
      beta: () => 0.7,
    });
    expect(await error(source, options, gates)).toBeLessThan(2e-6);
  });

  it('gain is a factor on the output', async () => {
    const gates = { default: { decay: { constant: -0.1 }, gain: { constant: -3 } } };
    const recurrence = () => ({ decay: () => -0.1, step: () => -3 });
    expect(await error(source, { variant: 'gla', gates }, recurrence)).toBeLessThan(2e-6);
  });
});

describe('variants in other forms', () => {
  const layer = makeLayer();
  const { hidden, kvHeads } = layer;
  const dt = projection(hidden, kvHeads, 51).gate;
  const a = { constant: -0.5 };
  const next = random(12);
  const x = Array.from({ length: BATCH * TOKENS * hidden }, () => next());
  const outputOf = async (model: Model, options: RewriteOptions) => {
    await rewriteModel(model, options);
    const half = model.graph.dtype('x') === 'float16';
    const feeds = { x: (half ? halves : floats)([BATCH, TOKENS, hidden], (i) => x[i]!) };
    const { y } = await run(parseModel(modelBytes(model)), feeds);
    return half ? numbers(y!) : Array.from(y!.data as Float32Array);
  };
  const written = (dtype?: 'float16') => gpt2.build(new Writer(layer, dtype));

  it.each<RewriteOptions>([
    { variant: 'performer', features: 9 },
    { variant: 'mamba2', gates: { 0: { a, dt, gain: { constant: 0.5 } } } },
    { variant: 'delta', gates: { 0: { beta: dt } } },
    { variant: 'gated-delta', gates: { 0: { a, dt, beta: dt } } },
  ])('$variant: opsets from 10 to 26, and float16', async (options) => {
    const expected = await outputOf(written(), options);
    const size = Math.max(...expected.map(Math.abs));
    for (const opset of [10, 26]) {
      const model = atOpset(written(), opset);
      expect(model).toBeDefined();
      expect(distance(await outputOf(model!, options), expected) / size).toBeLessThan(2e-6);
    }
    const half = await outputOf(written('float16'), options);
    expect(distance(half, expected) / size).toBeLessThan(1e-2);
  });
});

/** Options of another type, as a caller without types may give them. */
const ODD: readonly { name: string; value: unknown; message: RegExp }[] = [
  { name: 'layers', value: true, message: /options: layers must be Array, received true/ },
  { name: 'layers', value: ['0'], message: /layers\.0 must be number, received "0"/ },
  { name: 'keepSoftmax', value: 2, message: /keepSoftmax must be Array, received 2/ },
  {
    name: 'featureMap',
    value: 'sigmoid',
    message: /featureMap must be \("elu1" \| .* received "sigmoid"/,
  },
  { name: 'normalize', value: 'yes', message: /normalize must be boolean, received "yes"/ },
  { name: 'dtype', value: [0], message: /dtype must be \("float32" \| "same"\), received Array/ },
  { name: 'body', value: 2, message: /body must be .* received 2/ },
  { name: 'gates', value: null, message: /gates must be Object, received null/ },
  { name: 'gates', value: { 0: { a: 1 } }, message: /gates\.0\.a must be Object, received 1/ },
  {
    name: 'fitted',
    value: {
      0: { featureMap: 'exp', signs: 1, keyBias: { dims: [4, 3], data: new Float32Array(11) } },
    },
    message: /fitted\.0\.keyBias must be as many numbers as its dims say/,
  },
  {
    name: 'fitted',
    value: { 0: { featureMap: 'exp', signs: 3 } },
    message: /fitted\.0\.signs must/,
  },
  { name: 'decay', value: '-1', message: /decay must be Array, received "-1"/ },
];

describe('options', () => {
  const model = (): Model => gpt2.build(new Writer(makeLayer()));
  const bad: { options: RewriteOptions; message: RegExp }[] = [
    {
      options: { variant: 'quadratic' as 'linear' },
      message: /variant must be one of none, linear, .* received quadratic/,
    },
    {
      options: { variant: 'linear', layers: [0, 3] },
      message: /layer must be one of the model's \(0\.\.0\), received 3/,
    },
    { options: { variant: 'linear', keepSoftmax: [-1] }, message: /received -1/ },
    {
      options: { variant: 'gla', gates: { 2: { decay: { constant: -1 } } } },
      message: /layer must be one of the model's \(0\.\.0\), received 2/,
    },
    { options: { variant: 'linear', decay: [-1] }, message: /decay is for variant retention/ },
    {
      options: { variant: 'none', gates: { default: {} } },
      message: /gates are for variants gla, mamba2, delta, gated-delta, received none/,
    },
    { options: { variant: 'gla' }, message: /gla needs gates\.decay for layer 0/ },
    {
      options: { variant: 'gated-delta', gates: { 0: { decay: { constant: -1 } } } },
      message: /gated-delta needs gates\.beta for layer 0/,
    },
    {
      options: { variant: 'gla', gates: { 0: { decay: { constant: 0.5 } } } },
      message: /decay must be 4 numbers <= 0 \(log decay\), received 0.5,0.5,0.5,0.5/,
    },
    {
      options: { variant: 'gla', gates: { 0: { decay: { constant: [-1, -2] } } } },
      message: /decay must be 4 numbers <= 0 .* received -1,-2/,
    },
    {
      options: { variant: 'gla', gates: { 0: { decay: { weight: new Float32Array(7) } } } },
      message: /decay weight must be \[12, 4 or 12\] .* received 7 weights/,
    },
    {
      options: {
        variant: 'gla',
        gates: { 0: { decay: { weight: new Float32Array(48), dims: [4, 12] } } },
      },
      message: /decay weight must be \[12, 4 or 12\] .* received \[4, 12\] and no biases/,
    },
    {
      options: { variant: 'mamba2', gates: { 0: { dt: { constant: 1 } } } },
      message: /mamba2 needs gates\.a for layer 0, received dt/,
    },
    {
      options: { variant: 'mamba2', gates: { 0: { a: { constant: -1 }, dt: { constant: 0 } } } },
      message: /layer 0: dt must be 4 numbers > 0, received 0,0,0,0/,
    },
    {
      options: { variant: 'mamba2', gates: { 0: { a: { constant: 1 }, dt: { constant: 1 } } } },
      message: /layer 0: a must be 4 numbers <= 0 .* received 1,1,1,1/,
    },
    {
      options: { variant: 'delta', gates: { 0: { decay: { constant: -1 } } } },
      message: /delta takes beta for layer 0, received decay/,
    },
    {
      options: {
        variant: 'gla',
        gates: { 0: { decay: { constant: -1 }, gain: { constant: [1, 2] } } },
      },
      message: /layer 0: gain must be 4 numbers, received 1,2/,
    },
    {
      options: { variant: 'performer', featureMap: 'relu' },
      message: /performer takes no feature map relu/,
    },
    { options: { variant: 'linear', seed: 1 }, message: /seed is for performer, received linear/ },
    {
      options: { variant: 'performer', seed: 0.5 },
      message: /seed must be a whole number, received 0.5/,
    },
    {
      options: { variant: 'linear', features: 8 },
      message: /features is for hybrid and performer, received linear/,
    },
    ...ODD.map(({ name, value, message }) => ({
      options: { variant: 'linear', [name]: value } as unknown as RewriteOptions,
      message,
    })),
    { options: { variant: 'retention', decay: [-1] }, message: /decay must be 4 numbers/ },
    { options: { variant: 'none', featureMap: 'relu' }, message: /none takes no feature map/ },
    {
      options: {
        variant: 'gated-delta',
        normalize: true,
        gates: { default: { decay: { constant: -1 }, beta: { constant: 1 } } },
      },
      message: /normalize must be false for gated-delta/,
    },
    { options: { variant: 'linear', window: 8 }, message: /window is for hybrid and window/ },
    { options: { variant: 'window', cache: 8 }, message: /cache is for hybrid, received window/ },
    {
      options: { variant: 'hybrid', window: 0 },
      message: /window must be a whole number from 1 to 131072, received 0/,
    },
    {
      options: { variant: 'window', window: 2 ** 31 },
      message: /window must be a whole number from 1 to 131072, received 2147483648/,
    },
    {
      options: { variant: 'performer', features: 2 ** 31 },
      message: /features must be a whole number from 1 to 65536, received 2147483648/,
    },
    {
      options: { variant: 'hybrid', features: 7 },
      message: /features must be a multiple of 2 for softmax, received 7/,
    },
    { options: { variant: 'hybrid', featureMap: 'silu' }, message: /takes no feature map silu/ },
    { options: { variant: 'window', normalize: false }, message: /takes no normalize/ },
    { options: { variant: 'linear', hybrid: {} }, message: /fitted features are for hybrid/ },
    {
      options: {
        variant: 'hybrid',
        hybrid: {
          0: {
            featureMap: 'exp',
            signs: 2,
            alpha: { dims: [3], data: new Float32Array(3) },
          },
        },
      },
      message: /hybrid\.0\.alpha must be \[4\], received \[3\]/,
    },
  ];
  it.each(bad)('refuses $options.variant: $message', async ({ options, message }) => {
    await expect(rewriteModel(model(), options)).rejects.toMatchObject({
      code: 'invalid_argument',
      message: expect.stringMatching(message),
    });
  });

  it('leaves the model as it is in a dry run, and reports what it would do', async () => {
    const subject = model();
    const before = modelBytes(subject);
    const report = await rewriteModel(subject, { variant: 'linear', dryRun: true });
    expect(report.sites).toMatchObject([{ layer: 0, rewritten: true, kept: null }]);
    expect(modelBytes(subject)).toEqual(before);
  });

  it('leaves layers alone that were asked to stay', async () => {
    const subject = model();
    const before = modelBytes(subject);
    const report = await rewriteModel(subject, { variant: 'linear', keepSoftmax: [0] });
    expect(report.sites).toMatchObject([
      { rewritten: false, kept: 'it was asked to stay softmax' },
    ]);
    expect(modelBytes(subject)).toEqual(before);
  });

  it('stops when interrupted', async () => {
    const signal = AbortSignal.abort();
    await expect(rewriteModel(model(), { variant: 'linear', signal })).rejects.toMatchObject({
      code: 'aborted',
    });
  });

  it('keeps a window unless the layer is asked for', async () => {
    const window = family('Mistral').build(new Writer(makeLayer()));
    const report = await rewriteModel(window, { variant: 'linear' });
    expect(report.sites).toMatchObject([
      {
        mask: 'window 3',
        rewritable: true,
        rewritten: false,
        kept: expect.stringContaining('window of 3 keys'),
      },
    ]);
  });

  it('reports progress up to the number of sites', async () => {
    const seen: [number, number][] = [];
    await rewriteModel(model(), { variant: 'linear', onProgress: (...at) => seen.push(at) });
    expect(seen.at(-1)).toEqual([1, 1]);
  });
});
