/** Rewritten decoders under the state handling of onnxruntime-genai, which is written again in support/genai_runtime.ts. */
import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  type Model,
  modelBytes,
  parseModel,
  type RewriteOptions,
  retarget,
  rewriteModel,
} from '../../exporter/index.js';
import { type DecoderSpec, decoder } from './support/decoder.js';
import { genaiModel } from './support/genai.js';
import { DecoderOnlyState, type GenaiSettings, padInputs } from './support/genai_runtime.js';
import { distance, type Feeds, floats, ints, run, zeros } from './support/run.js';

const PAD = 0;
const PROMPTS = [
  [6, 3, 19, 2, 11, 4],
  [9, 17, 5, 13],
];
const STEPS = [
  [8, 1],
  [15, 20],
  [2, 2],
];

const settings = (kvHeads: number, dim: number, share = false): GenaiSettings => ({
  model: {
    pad_token_id: PAD,
    decoder: {
      num_hidden_layers: 2,
      num_key_value_heads: kvHeads,
      head_size: dim,
      inputs: {
        past_key_names: 'past_key_values.%d.key',
        past_value_names: 'past_key_values.%d.value',
      },
      outputs: { present_key_names: 'present.%d.key', present_value_names: 'present.%d.value' },
    },
  },
  search: { max_length: 16, past_present_share_buffer: share },
});

/** A rewritten model, and the same for genai. */
async function both(build: () => Model, options: RewriteOptions) {
  const plain = build();
  const { state } = await rewriteModel(plain, options);
  const model = parseModel(modelBytes(plain));
  const report = retarget(model, 'genai');
  const session = await ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 3 });
  return { plain: parseModel(modelBytes(plain)), state, model, report, session };
}

/** What a rewritten model says of a row's whole text in one call, for all inputs but its states. */
async function alone(
  plain: Model,
  state: readonly { past: string; dtype: string; shape: readonly (number | string)[] }[],
  text: readonly number[],
  caches: Feeds,
): Promise<number[]> {
  const n = text.length;
  const given: Feeds = {
    input_ids: ints([1, n], text),
    attention_mask: ints([1, n], Array(n).fill(1)),
    position_ids: ints([1, n], [...text.keys()]),
    ...caches,
    ...Object.fromEntries(state.map((s) => [s.past, zeros(s.dtype, s.shape, 1)])),
  };
  const takes = new Set(plain.graph.inputs.map((i) => i.name));
  const out = await run(
    plain,
    Object.fromEntries(Object.entries(given).filter(([k]) => takes.has(k))),
  );
  return [...(out[plain.graph.outputs[0]!.name]!.data as Float32Array)];
}

/** What genai is told of the same texts, token by token behind the prompts. */
async function driven(session: ort.InferenceSession, config: GenaiSettings, prompts: number[][]) {
  const state = new DecoderOnlyState(session, config, prompts.length);
  const said: number[][] = prompts.map(() => []);
  const keep = (logits: ort.Tensor, seen: (row: number, t: number) => boolean) => {
    const [rows, count, width] = logits.dims as [number, number, number];
    for (let row = 0; row < rows; row++)
      for (let t = 0; t < count; t++) {
        const at = (row * count + t) * width;
        if (seen(row, t))
          said[row]!.push(...(logits.data as Float32Array).subarray(at, at + width));
      }
  };
  keep(await state.run(padInputs(prompts, PAD)), (row, t) => t < prompts[row]!.length);
  for (const step of STEPS) {
    keep(await state.run(prompts.map((_, row) => [step[row]!])), () => true);
  }
  return said;
}

async function check(
  { plain, state, session }: Awaited<ReturnType<typeof both>>,
  config: GenaiSettings,
  prompts: number[][],
  caches: Feeds = {},
) {
  const said = await driven(session, config, prompts);
  for (const [row, prompt] of prompts.entries()) {
    const whole = await alone(plain, state, [...prompt, ...STEPS.map((s) => s[row]!)], caches);
    const size = Math.max(...whole.map(Math.abs));
    expect(distance(whole, said[row]!) / size).toBeLessThan(8e-6);
  }
}

const ROPE: DecoderSpec = {
  attention: 'GroupQueryAttention',
  cache: true,
  padding: 'right',
  positions: 'none',
  rope: { rotary: 16 },
};
const VARIANTS: RewriteOptions[] = [
  { variant: 'linear' },
  { variant: 'linear', body: 'standard' },
  { variant: 'retention', body: 'standard' },
  { variant: 'retention' },
  { variant: 'hybrid', window: 2, sinks: 1 },
  { variant: 'window', window: 3, sinks: 1 },
];

describe.each(VARIANTS)('genai: $variant', (options) => {
  it('reads the two layers of a model of its own builder, alone and in a batch padded on the right', async () => {
    const made = await both(genaiModel, options);
    const names = made.report.state.map((s) => s.past);
    expect(names).toEqual(
      [0, 1].flatMap((i) =>
        ['conv_state', 'recurrent_state'].map((what) => `past_key_values.${i}.${what}`),
      ),
    );
    for (const { shape } of made.report.state) expect(shape[0]).toBe('batch_size');
    await check(made, settings(2, 16), [PROMPTS[0]!]);
    await check(made, settings(2, 16), PROMPTS);
  });

  it('counts positions from the mask', async () => {
    for (const spec of [
      ROPE,
      { ...ROPE, attention: 'decomposed', padding: true, positions: 'mask' },
    ] as const) {
      const made = await both(() => decoder(spec as DecoderSpec), options);
      expect(made.state.some((s) => s.dtype === 'int64')).toBe(true);
      expect(made.report.state.some((s) => s.dtype === 'int64')).toBe(false);
      await check(made, settings(2, 16), PROMPTS);
    }
  });
});

describe('genai', () => {
  it.each([false, true])(
    'hands on the cache of a layer that stays softmax (shared buffer: %s)',
    async (share) => {
      const made = await both(genaiModel, { variant: 'linear', keepSoftmax: [1] });
      const caches = Object.fromEntries(
        ['key', 'value'].map((k) => [`past_key_values.1.${k}`, floats([1, 2, 0, 16], () => 0)]),
      );
      await check(made, settings(2, 16, share), PROMPTS, caches);
    },
  );

  it('says what does not fit', async () => {
    const made = async (build: () => Model, options: RewriteOptions) => {
      const model = build();
      await rewriteModel(model, options);
      return model;
    };
    const linear = await made(genaiModel, { variant: 'linear' });
    const config = { model: { decoder: { inputs: { past_key_names: 'past_key_%d' } } } };
    expect(() => retarget(linear, 'genai', { config })).toThrow(
      'genai_config.json: model.decoder.inputs.past_key_names must hold %d and a dot behind it, as past_key_values.%d.key does, received "past_key_%d"',
    );
    for (const [odd, message] of [
      [null, 'must be Object, received null'],
      [{ model: 1 }, 'model must be Object, received 1'],
      [{ model: { decoder: { inputs: { past_key_names: 3 } } } }, 'must be string, received 3'],
      [{ search: { num_beams: '2' } }, 'search.num_beams must be number, received "2"'],
    ] as const) {
      expect(() => retarget(linear, 'genai', { config: odd as object })).toThrow(
        expect.objectContaining({
          code: 'invalid_argument',
          message: expect.stringContaining(message),
        }),
      );
    }
    expect(() => retarget(genaiModel(), 'genai')).toThrow(
      'target genai: the model must have states, received none',
    );
    const mixed = genaiModel();
    await rewriteModel(mixed, { variant: 'linear', layers: [0] });
    await rewriteModel(mixed, { variant: 'linear', normalize: false });
    expect(() => retarget(mixed, 'genai')).toThrow(
      'target genai: states must be of one type and shape in all layers, received float32 [2,16,17] in layer 0 and float32 [2,16,16] in layer 1',
    );
    const spec: DecoderSpec = {
      ...ROPE,
      attention: 'decomposed',
      padding: false,
      positions: 'cache',
    };
    const maskless = await made(() => decoder(spec), { variant: 'linear' });
    expect(() => retarget(maskless, 'genai')).toThrow(
      "target genai: positions follow from 'past_key_values.position', which is counted from an input 'attention_mask' [batch, total], received none",
    );
  });

  it('follows the names and undoes the settings of a genai_config.json', async () => {
    const model = genaiModel();
    await rewriteModel(model, { variant: 'linear' });
    const { config, state } = retarget(model, 'genai', {
      filename: 'linear.onnx',
      config: {
        model: {
          decoder: {
            inputs: { past_key_names: 'cache.%d.in.key' },
            outputs: { present_key_names: 'cache.%d.out.key' },
            sliding_window: { window_size: 8 },
          },
        },
        search: { num_beams: 3 },
      },
    });
    expect(state.map((s) => [s.past, s.present])).toEqual(
      [0, 1].flatMap((i) =>
        ['conv_state', 'recurrent_state'].map((w) => [`cache.${i}.in.${w}`, `cache.${i}.out.${w}`]),
      ),
    );
    expect(config).toEqual({
      model: { decoder: { filename: 'linear.onnx', sliding_window: null } },
      search: { num_beams: 1 },
    });
  });

  it('writes a state when all that reads it has run: past and present are one memory', async () => {
    const { model, report } = await both(genaiModel, { variant: 'hybrid', window: 2, sinks: 1 });
    for (const { past, present } of report.state) {
      const writer = model.graph.producer(present)!;
      expect(writer.opType).toBe('Reshape');
      const behind = new Set<string>();
      const stack = [...writer.inputs];
      while (stack.length > 0) {
        const value = stack.pop()!;
        behind.add(value);
        stack.push(...(model.graph.producer(value)?.inputs ?? []));
      }
      const reader = model.graph.uses(past)[0]!.node;
      const op = reader.is('Reshape') ? model.graph.uses(reader.outputs[0]!)[0]!.node : reader;
      expect(op.opType).toBe('HybridAttention');
      expect(behind.has(op.outputs[0]!)).toBe(true);
    }
  });
});
