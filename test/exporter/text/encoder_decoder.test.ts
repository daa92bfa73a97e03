/** Encoder-decoders and merged decoders as Optimum lays them out, generated from as they are and rewritten. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import {
  loadModel,
  type Model,
  type RewriteOptions,
  rewriteModel,
  saveModel,
} from '../../../exporter/index.js';
import { generate, generateBatch } from '../../../exporter/text/generate.js';
import { LanguageModel, type LanguageModelChoice } from '../../../exporter/text/language_model.js';
import { distance, type Feeds, floats, ints, numbers, random, run, zeros } from '../support/run.js';
import { encoder, mergedSeq2Seq } from '../support/seq2seq.js';
import { loadTransformers } from '../support/transformers.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-encoder-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

const STEPS = 8;
const GREEDY = { maxNewTokens: STEPS, temperature: 0, topK: 0, topP: 1, seed: 5 };
const SAMPLED = { ...GREEDY, temperature: 1.5 };
const SOURCES = [
  [7, 21, 9, 13, 4, 26],
  [16, 5],
  [28, 3, 8, 19],
];

async function write(name: string, model: Model, options?: RewriteOptions): Promise<string> {
  if (options) await rewriteModel(model, options);
  const file = path.join(folder, `${name}-${options?.variant ?? 'original'}.onnx`);
  saveModel(model, file);
  return file;
}

/** Models by their place in Optimum's folders. */
interface Layout {
  name: string;
  encoder: () => Model;
  /** The decoder that reads everything again, where there is one with these weights. */
  plain?: () => Model;
  decoder: () => Model;
  withPast?: () => Model;
  start: number;
  spectrum?: boolean;
  /** There are biases by position, which linear attention leaves out. */
  drop?: boolean;
  /** Nothing is carried. */
  alone?: boolean;
}

const fixture = (name: string) => () => loadTransformers(name);
const t5 = { encoder: fixture('t5_encoder.torchscript'), plain: fixture('t5_decoder.torchscript') };
const whisper = {
  encoder: fixture('whisper_encoder.torchscript'),
  plain: fixture('whisper_decoder.torchscript'),
};
const pair = (family: string, exporter: string) => ({
  name: `${family}: decoder_model and decoder_with_past_model by ${exporter}`,
  encoder: fixture(`${family}_encoder.${exporter}`),
  plain: fixture(`${family}_decoder.${exporter}`),
  decoder: fixture(`${family}_decoder.${exporter}`),
  withPast: fixture(`${family}_decoder_cache.${exporter}`),
});
const LAYOUTS: Layout[] = [
  { ...pair('bart', 'torchscript'), start: 1 },
  { ...pair('bart', 'dynamo'), start: 1 },
  { ...pair('whisper', 'dynamo'), start: 1, spectrum: true },
  { ...pair('t5', 'torchscript'), start: 0, drop: true },
  {
    ...t5,
    ...{ name: 't5: merged', decoder: fixture('t5_merged.torchscript'), start: 0, drop: true },
  },
  {
    ...whisper,
    ...{ name: 'whisper: merged', decoder: fixture('whisper_merged.torchscript'), start: 1 },
    spectrum: true,
  },
  { name: 'Marian, as transformers.js has it: merged', encoder, decoder: mergedSeq2Seq, start: 0 },
  {
    ...{ name: 'bart: decoder_model alone', start: 1, alone: true },
    encoder: fixture('bart_encoder.torchscript'),
    decoder: fixture('bart_decoder.torchscript'),
  },
];

type Source = readonly (readonly number[])[] | Map<string, { dims: number[]; data: number[] }>;

/** input_features [B,8,20] of some sources. */
function spectra(sources: readonly (readonly number[])[]): Source {
  const data = sources.flatMap(([first]) => {
    const next = random(first!);
    return Array.from({ length: 160 }, () => 3 * next());
  });
  return new Map([['input_features', { dims: [sources.length, 8, 20], data }]]);
}

/** What is generated for some sources. */
async function generated(
  file: string,
  choice: LanguageModelChoice,
  { start, spectrum }: Layout,
  sources: readonly (readonly number[])[],
  options: typeof GREEDY,
): Promise<number[][]> {
  const model = await LanguageModel.open(file, { threads: 1, ...choice, batch: sources.length });
  await model.readSource(spectrum ? spectra(sources) : sources);
  const { ids } =
    sources.length > 1
      ? await generateBatch(model, Array(sources.length).fill([start]), options)
      : await generate(model, [start], options).then((one) => ({ ids: [one.ids] }));
  await model.release();
  return ids;
}

async function hiddenOf({ encoder, spectrum }: Layout, source: readonly number[]) {
  const ones = ints(
    [1, source.length],
    source.map(() => 1),
  );
  const features =
    spectrum && (spectra([source]) as Map<string, { dims: number[]; data: number[] }>);
  const given: Feeds = features
    ? { input_features: floats([1, 8, 20], (i) => features.get('input_features')!.data[i]!) }
    : { input_ids: ints([1, source.length], source), attention_mask: ones };
  return { hidden: (await run(encoder(), given)).last_hidden_state!, ones };
}

/** The likeliest tokens, each from one call with the whole text, nothing cached. */
async function readAgain(layout: Layout, model: Model, source: readonly number[]) {
  const { hidden, ones } = await hiddenOf(layout, source);
  const ids = [layout.start];
  const known: Feeds = {
    encoder_hidden_states: hidden,
    encoder_attention_mask: ones,
    use_cache_branch: new ort.Tensor('bool', [false], [1]),
  };
  const names = model.graph.inputs.map((i) => i.name);
  const among = (feeds: Feeds, of: Model) =>
    Object.fromEntries(of.graph.inputs.flatMap(({ name: n }) => (feeds[n] ? [[n, feeds[n]]] : [])));
  const fixed = among(known, model);
  if (names.some((n) => /past.*encoder/.test(n)) && !fixed.use_cache_branch) {
    const first = layout.decoder();
    const made = await run(first, { ...among(known, first), input_ids: ints([1, 1], ids) });
    for (const [n, tensor] of Object.entries(made)) {
      if (n.includes('encoder')) fixed[n.replace('present', 'past_key_values')] = tensor;
    }
  }
  for (const name of names.filter((n) => n.startsWith('past') && !fixed[n])) {
    const shape = model.graph
      .dims(name)!
      .map((d, axis) => (typeof d === 'number' ? d : +(axis < 1)));
    fixed[name] = zeros(model.graph.dtype(name)!, shape, 1);
  }
  while (ids.length <= STEPS) {
    const { logits } = await run(model, { ...fixed, input_ids: ints([1, ids.length], ids) });
    const last = numbers(logits!).slice(-logits!.dims[2]!);
    ids.push(last.indexOf(Math.max(...last)));
  }
  return ids.slice(1);
}

describe.each(LAYOUTS)('$name', (layout) => {
  const files = async (options?: RewriteOptions) => {
    const name = layout.name.replace(/\W+/g, '_');
    const [encoder, decoder, withPast] = await Promise.all([
      write(`${name}-encoder`, layout.encoder()),
      write(`${name}-decoder`, layout.decoder(), layout.withPast ? undefined : options),
      layout.withPast && write(`${name}-past`, layout.withPast(), options),
    ]);
    return { file: decoder, choice: { encoder, ...(withPast && { withPast }) } };
  };

  it('writes what reading everything again says; a batch writes its rows; sampling goes by the seed', async () => {
    const { file, choice } = await files();
    const expected = await Promise.all(
      SOURCES.map((source) => readAgain(layout, (layout.plain ?? layout.decoder)(), source)),
    );
    expect(new Set(expected.map(String)).size).toBe(SOURCES.length);
    expect(new Set(expected.flat()).size).toBeGreaterThan(2);
    const one = (options: typeof GREEDY) =>
      Promise.all(
        SOURCES.map((s, b) =>
          generated(file, choice, layout, [s], { ...options, seed: options.seed + b }),
        ),
      );
    expect((await one(GREEDY)).flat()).toEqual(expected);
    expect(await generated(file, choice, layout, SOURCES, GREEDY)).toEqual(expected);
    const sampled = (await one(SAMPLED)).flat();
    expect(sampled).not.toEqual(expected);
    expect(await generated(file, choice, layout, SOURCES, SAMPLED)).toEqual(sampled);
    if (layout.drop) return; // all of its layers are left alone
    const none = await files({ variant: 'none' });
    expect(await generated(none.file, none.choice, layout, SOURCES, GREEDY)).toEqual(expected);
    expect(await generated(none.file, none.choice, layout, SOURCES, SAMPLED)).toEqual(sampled);
  });

  it('carries states: the same as linear attention over everything again', async () => {
    const options: RewriteOptions = { variant: 'linear', ...(layout.drop && { bias: 'drop' }) };
    const { file, choice } = await files(options);
    const model = loadModel(choice.withPast ?? file);
    expect(model.proto.opsetImport.map((o) => o.domain)).toContain('com.fla');
    expect(model.metadata('onnx_fla.state') !== undefined).toBe(!layout.alone);
    const expected = await Promise.all(SOURCES.map((s) => readAgain(layout, model, s)));
    expect(new Set(expected.map(String)).size).toBeGreaterThan(1);
    for (const backend of ['stock', 'fla'] as const) {
      const chosen = { ...choice, backend };
      expect(await generated(file, chosen, layout, SOURCES, GREEDY)).toEqual(expected);
      const [alone] = await generated(file, chosen, layout, [SOURCES[1]!], GREEDY);
      expect(alone).toEqual(expected[1]);
    }
  });
});

describe('a merged decoder without an encoder', () => {
  const load = fixture('gpt2_merged.torchscript');
  const PROMPT = [7, 21, 9, 13, 4];

  it('reads a prompt at once, and later tokens one by one', async () => {
    const plain = await LanguageModel.open(
      await write('plain', loadTransformers('gpt2.torchscript')),
    );
    const merged = await LanguageModel.open(await write('merged', load()));
    const none = await LanguageModel.open(await write('merged', load(), { variant: 'none' }));
    const two = await LanguageModel.open(path.join(folder, 'plain-original.onnx'), {
      withPast: await write('past', loadTransformers('gpt2_cache.torchscript')),
    });
    const all = [plain, merged, none, two];
    expect(all.map((m) => m.memory)).toEqual(['none', 'cache', 'cache', 'cache']);
    for (const options of [GREEDY, SAMPLED]) {
      const [a, ...others] = await Promise.all(
        all.map(async (model) => {
          await model.reset();
          return (await generate(model, PROMPT, { ...options, chunk: 2 })).ids;
        }),
      );
      expect(new Set(a).size).toBeGreaterThan(2);
      expect(others).toEqual([a, a, a]);
    }
    // The branch with a cache may have been traced with one token, so that it has no causal mask.
    await merged.reset();
    const whole = await merged.advance(PROMPT);
    await merged.reset();
    await merged.advance(PROMPT.slice(0, 2));
    const rest = await merged.advance(PROMPT.slice(2));
    const same = whole.data.subarray(2 * whole.vocabulary);
    expect(distance(rest.data, same)).toBeLessThan(1e-4);
    await Promise.all(all.map((m) => m.release()));
  });
});

it('a branch with a cache that was traced without a causal mask is given one token at a time', async () => {
  const encoderFile = await write('one-encoder', encoder());
  const model = await LanguageModel.open(await write('one', mergedSeq2Seq()), {
    encoder: encoderFile,
  });
  await model.readSource([SOURCES[0]!]);
  const whole = await model.advance([0, 6, 20, 4, 13]);
  await model.readSource([SOURCES[0]!]);
  await model.advance([0]);
  const rest = await model.advance([6, 20, 4, 13]);
  expect(rest.rows).toBe(4);
  expect(distance(rest.data, whole.data.subarray(whole.vocabulary))).toBeLessThan(1e-4);
  await model.release();
});

describe('what does not go together', () => {
  it.each<[string, string, Partial<Record<'encoder' | 'withPast', string>>, RegExp]>([
    [
      'no encoder',
      'whisper_merged.torchscript',
      {},
      /model needs its encoder, as it has the inputs/,
    ],
    [
      'an encoder for a model without one',
      'gpt2_merged.torchscript',
      { encoder: 'bart_encoder.torchscript' },
      /must have inputs that an encoder gives, such as encoder_hidden_states/,
    ],
    [
      'a decoder in place of an encoder',
      'bart_decoder.torchscript',
      { encoder: 'whisper_decoder_cache.dynamo' },
      /input 'past_key_values\.0\.decoder\.key' must be \[.*\], received input_ids \[1,2\]$/,
    ],
    [
      'a decoder with past alone',
      'bart_decoder_cache.torchscript',
      { encoder: 'bart_encoder.torchscript' },
      /nothing makes 'past_key_values.0.encoder.key': a decoder_with_past_model.onnx goes after/,
    ],
    [
      'two decoders without past',
      'bart_decoder.torchscript',
      { encoder: 'bart_encoder.torchscript', withPast: 'bart_decoder.dynamo' },
      /bart_decoder\.dynamo\S+: a decoder with past must have a cache and no branch without one, received none$/,
    ],
  ])('%s', async (_, decoder, others, message) => {
    const choice = Object.fromEntries(
      await Promise.all(
        Object.entries(others).map(async ([k, n]) => [
          k,
          await write(`odd-${n}`, loadTransformers(n)),
        ]),
      ),
    ) as Partial<LanguageModelChoice>;
    const file = await write(`odd-${decoder}`, loadTransformers(decoder));
    const attempt = async () => {
      const model = await LanguageModel.open(file, choice);
      await model.readSource([[3, 4]]);
    };
    await expect(attempt()).rejects.toThrow(message);
  });

  it('sources of another number, form or length', async () => {
    const choice = {
      encoder: await write('bart-encoder', loadTransformers('bart_encoder.dynamo')),
    };
    const file = await write('bart-decoder', loadTransformers('bart_decoder.dynamo'));
    const model = await LanguageModel.open(file, { ...choice, batch: 2 });
    await expect(model.advanceRows([[1], [1]])).rejects.toThrow(
      'the encoder must read a source before the decoder',
    );
    await expect(model.readSource([[3, 4]])).rejects.toThrow(
      'the encoder must have read 2 sources, received 1',
    );
    await expect(
      model.readSource(new Map([['input_features', { dims: [2, 8, 20], data: [] }]])),
    ).rejects.toThrow(
      /input 'input_ids' must be \[batch_size,sequence_length\], received input_features \[2,8,20\]/,
    );
    await model.readSource([[3, 4], [5]]);
    await expect(model.advanceRows([[1], [1, 2]])).rejects.toThrow(/must be of one length/);
    await model.release();
  });
});
