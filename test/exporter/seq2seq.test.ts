/** Merged decoders with an encoder, driven as @huggingface/transformers does, and by itself. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {
  env,
  MarianMTModel,
  type PreTrainedModel,
  random,
  T5ForConditionalGeneration,
  Tensor,
  WhisperForConditionalGeneration,
} from '@huggingface/transformers';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import {
  inspectModel,
  type Model,
  modelBytes,
  parseModel,
  type RewriteOptions,
  retarget,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { logitsRow } from '../../exporter/text/engine.js';
import { generateBatch, nextToken } from '../../exporter/text/generate.js';
import { readGenerationConfig } from '../../exporter/text/generation_config.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { distance, type Feeds, floats, ints, run, zeros } from './support/run.js';
import { encoder, mergedSeq2Seq, SEQ2SEQ } from './support/seq2seq.js';
import { loadTransformers } from './support/transformers.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-seq2seq-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));
env.allowRemoteModels = false;
env.localModelPath = folder;

const { heads, dim, layers, vocabulary } = SEQ2SEQ;
const BATCH = 2;
const SOURCE = [3, 9, 14, 7, 2, 11, 5, 1];
const LENGTHS = [4, 3]; // of the rows of SOURCE
const MASK = LENGTHS.flatMap((n) => Array.from({ length: 4 }, (_, i) => (i < n ? 1 : 0)));
const TARGET = [
  [6, 20, 4, 13, 8],
  [17, 2, 25, 10, 3],
];

const reread = (model: Model) => parseModel(modelBytes(model));
async function changed(options: RewriteOptions) {
  const model = reread(mergedSeq2Seq());
  const report = await rewriteModel(model, options);
  return { model: reread(model), report };
}

/** The logits of TARGET, read in pieces: caches by name, and use_cache_branch from the second call on. */
async function read(model: Model, pieces: readonly number[]): Promise<number[]> {
  const mask = ints([BATCH, 4], MASK);
  const { last_hidden_state } = await run(ENCODER, {
    input_ids: ints([BATCH, 4], SOURCE),
    attention_mask: mask,
  });
  const { inputs, outputs } = model.graph;
  let past: Feeds = {};
  for (const { name } of inputs.filter((i) => i.name.startsWith('past'))) {
    const shape = model.graph
      .dims(name)!
      .map((d) => (typeof d === 'string' && d !== 'batch_size' ? 0 : d)) as (number | string)[];
    past[name] = zeros(model.graph.dtype(name)!, shape, BATCH);
  }
  const said: number[][] = TARGET.map(() => []);
  let from = 0;
  for (const count of pieces) {
    const ids = TARGET.flatMap((row) => row.slice(from, from + count));
    const out = await run(model, {
      input_ids: ints([BATCH, count], ids),
      encoder_attention_mask: mask,
      encoder_hidden_states: last_hidden_state!,
      use_cache_branch: new ort.Tensor('bool', [from > 0], [1]),
      ...past,
    });
    past = Object.fromEntries(
      outputs
        .filter((o) => o.name.startsWith('present'))
        .map(({ name }) => {
          const input = name.replace('present', 'past_key_values');
          return [input, from > 0 && name.includes('encoder') ? past[input]! : out[name]!];
        }),
    );
    const logits = out.logits!.data as Float32Array;
    const size = count * vocabulary;
    said.forEach((row, b) => {
      row.push(...logits.subarray(b * size, (b + 1) * size));
    });
    from += count;
  }
  return said.flat();
}

/** The largest difference, in parts of the largest number. */
const far = (a: readonly number[], b: readonly number[]) =>
  distance(a, b) / Math.max(...a.map(Math.abs));

const ENCODER = encoder();

describe('a merged decoder with an encoder', () => {
  it('has causal caches, as the branch without a cache says, and cross-attention', async () => {
    const { sites } = await inspectModel(reread(mergedSeq2Seq()));
    const own = { cache: true, mask: 'causal', rewritable: true };
    const cross = {
      rewritable: false,
      reason: expect.stringMatching(
        /^cross-attention: .* values from present\.\d\.encoder\.value$/,
      ),
    };
    expect(sites).toMatchObject([own, cross, own, cross]);
  });

  it('is left alone where the branch without a cache has no causal mask', async () => {
    const { sites } = await inspectModel(reread(mergedSeq2Seq(false)));
    expect(sites[0]).toMatchObject({
      rewritable: false,
      reason:
        'mask: there is no mask although keys are cached: new tokens would see one another both ways',
    });
  });

  it('is left alone where the branch with a cache takes one token only', async () => {
    const { sites } = await inspectModel(reread(mergedSeq2Seq(true, 1)));
    expect(sites[0]).toMatchObject({
      rewritable: false,
      reason: 'the branch with a cache takes one new token, and the first call brings several',
    });
  });

  it('survives a round trip, its first call of any length', async () => {
    for (const pieces of [
      [1, 1, 1, 1, 1],
      [3, 1, 1],
    ]) {
      const { model } = await changed({ variant: 'none' });
      const expected = await read(mergedSeq2Seq(), pieces);
      expect(far(expected, await read(model, pieces))).toBeLessThan(4e-6);
      expect(far(expected, await read(model, [5]))).toBeLessThan(4e-6);
    }
  });

  it.each([
    { variant: 'linear' },
    { variant: 'retention' },
    { variant: 'window', window: 2, sinks: 1 },
  ] as RewriteOptions[])('carries states and the encoder caches ($variant)', async (options) => {
    const { model, report } = await changed(options);
    const kind = options.variant === 'window' ? 'window' : 'state';
    expect(report.state.map((s) => s.past)).toEqual([
      ...[0, 1].map((i) => `past_key_values.${i}.decoder.${kind}`),
      'past_key_values.position',
    ]);
    expect(model.graph.inputs.map((i) => i.name)).toContain('past_key_values.1.encoder.value');
    const whole = await read(model, [5]);
    expect(far(whole, await read(model, [1, 1, 1, 1, 1]))).toBeLessThan(4e-6);
    expect(far(whole, await read(model, [3, 1, 1]))).toBeLessThan(4e-6);
    expect(far(whole, await read(mergedSeq2Seq(), [5]))).toBeGreaterThan(1e-2);
  });

  it('makes keys and values of the encoder without the decoder, where names say that their batch is its own', async () => {
    const branches = async (change: (model: Model) => void) => {
      const model = loadTransformers('whisper_merged.torchscript');
      change(model);
      const { sites } = await rewriteModel(model, { variant: 'none' });
      const { graph } = model;
      const node = graph.nodes.find((n) => n.is('If'))!;
      const made = node.attribute('else_branch')!.g!.node.map((n) => n.opType);
      return { made, reasons: sites.map((s) => s.reason) };
    };
    const cross = expect.stringMatching(/^cross-attention/);
    const { made, reasons } = await branches(() => {});
    expect(reasons).toEqual([null, cross]);
    expect(made.filter((op) => /MatMul|Reshape|Transpose/.test(op))).toHaveLength(6);
    expect(made).not.toContain('Softmax');
    // The same file, but for a batch of another name: nothing says then that the number is that of the encoder.
    const other = await branches(({ graph }) => {
      graph.info('encoder_hidden_states')!.type!.tensorType!.shape!.dim[0]!.dimParam = 'other';
    });
    expect(other.reasons).toEqual([expect.stringMatching(/nested graph/), null, cross]);
    expect(other.made).toContain('Softmax');
  });

  it('hands on the caches of the encoder where the original gave back empty ones', async () => {
    const { model } = await changed({ variant: 'linear' });
    const cache = floats([BATCH, heads, 4, dim], (i) => Math.sin(i));
    const given: Feeds = {
      input_ids: ints([BATCH, 1], [1, 2]),
      encoder_attention_mask: ints([BATCH, 4], MASK),
      encoder_hidden_states: floats([BATCH, 4, SEQ2SEQ.hidden], () => 0),
      use_cache_branch: new ort.Tensor('bool', [true], [1]),
      'past_key_values.position': ints([1], [1]),
    };
    for (let i = 0; i < layers; i++) {
      for (const k of ['key', 'value']) given[`past_key_values.${i}.encoder.${k}`] = cache;
      given[`past_key_values.${i}.decoder.state`] = floats([BATCH, heads, dim, dim + 1], () => 0.1);
    }
    const out = await run(model, given);
    expect(out['present.1.encoder.key']!.data).toEqual(cache.data);
  });
});

describe.each<[string, RewriteOptions | undefined, object?]>([
  ['original', undefined],
  ['none', { variant: 'none' }],
  ['linear', { variant: 'linear' }],
  ['retention', { variant: 'retention' }],
  ['hybrid', { variant: 'hybrid', window: 3, sinks: 1 }, { decoder_layers: 3 }],
])('under @huggingface/transformers: %s', (name, options, more) => {
  it('writes what its logits say, alone and in a batch', async () => {
    const model = reread(mergedSeq2Seq());
    if (options) await rewriteModel(model, options);
    if (options && options.variant !== 'none') {
      expect(retarget(model, 'transformersjs').config).toEqual(more ?? null);
    }
    publish(name, model, more);
    const writer = await MarianMTModel.from_pretrained(name, { dtype: 'fp32' });
    const texts = LENGTHS.map((n, b) => SOURCE.slice(b * 4, b * 4 + n));
    const expected = await Promise.all(texts.map((text) => written(model, text)));
    expect(new Set(expected.flat()).size).toBeGreaterThan(2);
    for (const [i, text] of texts.entries())
      expect(await generated(writer, [text])).toEqual([expected[i]]);
    expect(await generated(writer, texts)).toEqual(expected);
    await writer.dispose();
  });
});

describe.each<[string, RewriteOptions | undefined]>([
  ['ruled-original', undefined],
  ['ruled-none', { variant: 'none' }],
  ['ruled-linear', { variant: 'linear' }],
])('under @huggingface/transformers and under onnx-fla: %s', (name, options) => {
  it('follows one generation_config.json, greedy and sampled', async () => {
    const model = reread(mergedSeq2Seq());
    if (options) await rewriteModel(model, options);
    if (options?.variant === 'linear') retarget(model, 'transformersjs');
    const free = (await written(model, SOURCE.slice(0, 4)))[1]!;
    const rules = {
      forced_bos_token_id: 4,
      suppress_tokens: [free],
      begin_suppress_tokens: [11, 13],
      eos_token_id: [vocabulary, vocabulary + 2],
    };
    const at = publish(name, model, rules);
    const writer = await MarianMTModel.from_pretrained(name, { dtype: 'fp32' });
    const texts = LENGTHS.map((n, b) => SOURCE.slice(b * 4, b * 4 + n));
    const file = path.join(at, 'onnx/decoder_model_merged.onnx');
    const { decoderStart, endIds, rules: read } = readGenerationConfig(file);
    expect([decoderStart, ...endIds]).toEqual([0, vocabulary, vocabulary + 2]);
    const encoderFile = path.join(at, 'onnx/encoder_model.onnx');
    for (const temperature of [0, 1.2]) {
      for (const text of texts) {
        random.seed(5);
        const [theirs] = await generated(writer, [text], temperature);
        // A forced token is drawn, too: one number of the library's stream is spent on it.
        const source = new random.Random(5);
        source.random();
        const ours = await LanguageModel.open(file, { encoder: encoderFile });
        await ours.readSource([text]);
        const options = { temperature, topK: 0, topP: 1, rules: read };
        const ids: number[] = [];
        for (let last = 0; ids.length < STEPS; ids.push(last)) {
          const logits = logitsRow(await ours.advance([last]), 0);
          last = nextToken(logits, ids.length, options, () => source.random());
        }
        await ours.release();
        expect(ids).toEqual(theirs);
        expect(ids[0]).toBe(4);
        expect(ids).not.toContain(free);
      }
    }
    await writer.dispose();
  });
});

it.each<[string, RewriteOptions | undefined]>([
  ['t5-original', undefined],
  ['t5-linear', { variant: 'linear', bias: 'drop' }],
])('Optimum merged T5 writes under both: %s', async (name, options) => {
  const model = loadTransformers('t5_merged.torchscript');
  if (options) {
    await rewriteModel(model, options);
    retarget(model, 'transformersjs');
  }
  const at = publish(name, model, T5, loadTransformers('t5_encoder.torchscript'));
  const writer = await T5ForConditionalGeneration.from_pretrained(name, { dtype: 'fp32' });
  const ours = await LanguageModel.open(path.join(at, 'onnx/decoder_model_merged.onnx'), {
    ...{ encoder: path.join(at, 'onnx/encoder_model.onnx'), batch: 2 },
  });
  const texts = [
    [7, 21, 9, 13, 4, 26],
    [16, 5, 31],
  ];
  await ours.readSource(texts);
  const { ids } = await generateBatch(ours, [[0], [0]], {
    ...{ maxNewTokens: STEPS, temperature: 0, topK: 0, topP: 1, seed: 0 },
  });
  await ours.release();
  expect(ids[0]).not.toEqual(ids[1]);
  expect(new Set(ids.flat()).size).toBeGreaterThan(2);
  expect(await generated(writer, texts)).toEqual(ids);
  await writer.dispose();
});

it.each<[string, RewriteOptions | undefined]>([
  ['whisper-original', undefined],
  ['whisper-none', { variant: 'none' }],
  ['whisper-linear', { variant: 'linear' }],
])('Optimum merged Whisper writes under both: %s', async (name, options) => {
  const model = loadTransformers('whisper_merged.torchscript');
  if (options) await rewriteModel(model, options);
  if (options?.variant === 'linear') retarget(model, 'transformersjs');
  const at = publish(name, model, WHISPER, loadTransformers('whisper_encoder.torchscript'));
  const writer = await WhisperForConditionalGeneration.from_pretrained(name, { dtype: 'fp32' });
  const file = path.join(at, 'onnx/decoder_model_merged.onnx');
  const ours = await LanguageModel.open(file, {
    ...{ encoder: path.join(at, 'onnx/encoder_model.onnx'), batch: 2 },
  });
  const data = Float32Array.from({ length: 320 }, (_, i) => 3 * Math.sin(i * i + 1));
  await ours.readSource(new Map([['input_features', { dims: [2, 8, 20], data }]]));
  const prompt = [1, 5, 9, 11];
  const { ids } = await generateBatch(ours, [prompt, prompt], {
    ...{ maxNewTokens: STEPS, temperature: 0, topK: 0, topP: 1, seed: 0 },
    rules: readGenerationConfig(file).rules,
  });
  await ours.release();
  expect(ids[0]).not.toEqual(ids[1]);
  for (const [b, row] of ids.entries()) {
    // The library's Whisper starts one text only.
    const features = new Tensor('float32', data.slice(b * 160, (b + 1) * 160), [1, 8, 20]);
    const more = { inputs: features, language: 'en', max_new_tokens: STEPS };
    const out = (await writer.generate(more as never)) as Tensor;
    expect((out.tolist() as bigint[][])[0]!.map(Number)).toEqual([...prompt, ...row]);
  }
  await writer.dispose();
});

const STEPS = 6;
const WHISPER = {
  ...{ model_type: 'whisper', d_model: 16, num_mel_bins: 8, vocab_size: 64, is_multilingual: true },
  ...{ encoder_layers: 1, decoder_layers: 1 },
  ...{ encoder_attention_heads: 4, decoder_attention_heads: 4, decoder_start_token_id: 1 },
  ...{ lang_to_id: { '<|en|>': 5 }, task_to_id: { transcribe: 9 }, no_timestamps_token_id: 11 },
  ...{ begin_suppress_tokens: [12, 40], suppress_tokens: [13], eos_token_id: 64, pad_token_id: 65 },
};
const T5 = {
  ...{ model_type: 't5', d_model: 16, d_kv: 4, num_layers: 2, num_decoder_layers: 2, num_heads: 4 },
  vocab_size: 64,
  eos_token_id: 64,
  pad_token_id: 65,
};

/** A folder as the hub has it. */
function publish(name: string, model: Model, more: object | undefined, reader = encoder()): string {
  const at = path.join(folder, name);
  fs.mkdirSync(path.join(at, 'onnx'), { recursive: true });
  saveModel(reader, path.join(at, 'onnx/encoder_model.onnx'));
  saveModel(model, path.join(at, 'onnx/decoder_model_merged.onnx'));
  const size = (what: string) => ({
    [`${what}_layers`]: layers,
    [`${what}_attention_heads`]: heads,
  });
  const config = {
    ...{ model_type: 'marian', is_encoder_decoder: true, d_model: SEQ2SEQ.hidden },
    ...{ ...size('encoder'), ...size('decoder'), vocab_size: vocabulary },
    ...{
      decoder_start_token_id: 0,
      eos_token_id: vocabulary,
      pad_token_id: vocabulary + 1,
      ...more,
    },
  };
  fs.writeFileSync(path.join(at, 'config.json'), JSON.stringify(config));
  fs.writeFileSync(path.join(at, 'generation_config.json'), JSON.stringify(config));
  return at;
}

/** What the library writes for some sources. */
async function generated(
  writer: PreTrainedModel,
  rows: readonly (readonly number[])[],
  temperature = 0,
): Promise<number[][]> {
  const width = Math.max(...rows.map((r) => r.length));
  const tensor = (f: (row: readonly number[], i: number) => number) =>
    new Tensor(
      'int64',
      BigInt64Array.from(
        rows.flatMap((r) => Array.from({ length: width }, (_, i) => BigInt(f(r, i)))),
      ),
      [rows.length, width],
    );
  const out = (await writer.generate({
    inputs: tensor((r, i) => r[i] ?? 0),
    attention_mask: tensor((r, i) => +(i < r.length)),
    max_new_tokens: STEPS,
    do_sample: temperature > 0,
    ...(temperature > 0 && { temperature, top_k: 0 }),
  } as never)) as Tensor;
  return (out.tolist() as bigint[][]).map((row) => row.map(Number).slice(1, 1 + STEPS));
}

/** The likeliest tokens after the first one, each from a call with the whole text. */
async function written(model: Model, source: readonly number[]): Promise<number[]> {
  const mask = ints([1, source.length], Array(source.length).fill(1));
  const { last_hidden_state } = await run(ENCODER, {
    input_ids: ints([1, source.length], source),
    attention_mask: mask,
  });
  const ids = [0];
  for (let i = 0; i < STEPS; i++) {
    const out = await run(model, {
      input_ids: ints([1, ids.length], ids),
      encoder_attention_mask: mask,
      encoder_hidden_states: last_hidden_state!,
      use_cache_branch: new ort.Tensor('bool', [false], [1]),
      ...Object.fromEntries(
        model.graph.inputs
          .filter((info) => info.name.startsWith('past'))
          .map(({ name }) => {
            const shape = model.graph.dims(name)! as (number | string)[];
            const start = shape.map((d) => (typeof d === 'string' && d !== 'batch_size' ? 0 : d));
            return [name, zeros(model.graph.dtype(name)!, start, 1)];
          }),
      ),
    });
    const logits = (out.logits!.data as Float32Array).subarray(-vocabulary);
    ids.push(logits.indexOf(Math.max(...logits)));
  }
  return ids.slice(1);
}
