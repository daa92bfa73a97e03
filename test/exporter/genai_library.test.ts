/**
 * Rewritten decoders under onnxruntime-genai itself, where FLA_GENAI is a folder with libonnxruntime-genai.so and libonnxruntime.so.
 * CONTRIBUTING.md says where these come from. genai.test.ts, which always runs, has its state handling written again.
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  loadModel,
  mergePatch,
  type RewriteOptions,
  retarget,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { generate } from '../../exporter/text/generate.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { nativeFile, OPS_LIBRARY } from '../../runtime/native.js';
import { ROOT } from '../support/models.js';
import { distance } from './support/run.js';
import { TRANSFORMERS, transformersBytes } from './support/transformers.js';

const GENAI = process.env.FLA_GENAI;
if (!GENAI) {
  console.warn(
    'genai_library.test.ts: SKIPPED, set FLA_GENAI to a folder with libonnxruntime-genai.so and libonnxruntime.so (CONTRIBUTING.md)',
  );
}
const STEPS = 8;
const PROMPTS = [
  [6, 3, 19, 12, 11, 4],
  [9, 17, 5, 13],
];
const VOCABULARY = 80;
/** Kept from being chosen, so that all texts have one length. */
const END = 2;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-genai-'));
const driver = path.join(folder, 'generate');
afterAll(() => fs.rmSync(folder, { recursive: true }));

interface Said {
  tokens: number[][];
  /** By step, of all rows. */
  logits: number[][];
}
type Config = ReturnType<typeof configOf>;

/** What genai's builder writes beside a model. */
function configOf(name: string) {
  const { heads, layers } = TRANSFORMERS.find((t) => t.name === name)!;
  const [queries, keys, dim] = heads;
  return {
    model: {
      bos_token_id: 1,
      context_length: 64,
      decoder: {
        session_options: { log_id: 'onnxruntime-genai', provider_options: [] } as object,
        filename: 'model.onnx',
        head_size: dim,
        hidden_size: queries * dim,
        inputs: {
          input_ids: 'input_ids',
          attention_mask: 'attention_mask',
          past_key_names: 'past_key_values.%d.key',
          past_value_names: 'past_key_values.%d.value',
        },
        outputs: {
          logits: 'logits',
          present_key_names: 'present.%d.key',
          present_value_names: 'present.%d.value',
        },
        num_attention_heads: queries,
        num_hidden_layers: layers.length,
        num_key_value_heads: keys,
      },
      eos_token_id: END,
      pad_token_id: 0,
      type: name.split('.')[0]!.replace('_', ''),
      vocab_size: VOCABULARY,
    },
    search: {
      do_sample: false,
      max_length: 40,
      min_length: 40,
      num_beams: 1,
      past_present_share_buffer: true,
    },
  };
}

const at = (...parts: string[]) => path.join(folder, ...parts);

/** Writes a model of genai's builder with its configuration. */
function original(name: string): string {
  const file = at(name, 'model.onnx');
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, transformersBytes(name));
  fs.writeFileSync(at(name, 'genai_config.json'), JSON.stringify(configOf(name)));
  return file;
}

let made = 0;
/** The model rewritten, as itself and, in a folder with its configuration, for genai. */
async function rewritten(name: string, options: RewriteOptions) {
  const file = original(name);
  const model = loadModel(file);
  await rewriteModel(model, options);
  const to = at(`${made++}`);
  fs.mkdirSync(to);
  const plain = `${to}.onnx`;
  saveModel(model, plain, { externalData: 'inline' });
  const config = configOf(name);
  const patch = options.variant === 'none' ? {} : retarget(model, 'genai', { config }).config;
  saveModel(model, path.join(to, 'model.onnx'), { externalData: 'inline' });
  fs.writeFileSync(
    path.join(to, 'genai_config.json'),
    JSON.stringify(mergePatch(config, patch ?? {})),
  );
  return { plain, folder: to };
}

/** Changes the genai_config.json in a folder. */
function configure(model: string, change: (config: Config) => void): void {
  const file = path.join(model, 'genai_config.json');
  const config = JSON.parse(fs.readFileSync(file, 'utf8'));
  change(config);
  fs.writeFileSync(file, JSON.stringify(config));
}

/** What genai says of a model in a folder. Prompts are as generate.c reads them. */
function genai(model: string, prompts: readonly string[], steps = STEPS): Said {
  const args = [path.join(GENAI!, 'libonnxruntime-genai.so'), model, `${steps}`, ...prompts];
  const env = { ...process.env, LD_LIBRARY_PATH: GENAI };
  return JSON.parse(execFileSync(driver, args, { env, encoding: 'utf8', stdio: 'pipe' }));
}
const shown = (prompts: readonly (readonly number[])[]) => prompts.map((p) => p.join());

/** Holds what genai said of prompts, alone or in a batch, against our own generation by another file. */
async function expectSame(
  said: Said,
  file: string,
  prompts: readonly (readonly number[])[],
  tolerance = 8e-6,
) {
  const model = await LanguageModel.open(file);
  const width = Math.max(...prompts.map((p) => p.length));
  for (const [row, prompt] of prompts.entries()) {
    await model.reset();
    const { ids } = await generate(model, prompt, {
      maxNewTokens: STEPS,
      seed: 0,
      temperature: 0,
      topK: 0,
      topP: 1,
      rules: { forced: new Map(), suppressed: [END], suppressedFirst: [] },
    });
    const padding = Array(width - prompt.length).fill(0);
    expect(said.tokens[row]).toEqual([...prompt, ...padding, ...ids]);
    await model.reset();
    await expectLogits(said, row, model, [...prompt, ...ids.slice(0, -1)], tolerance);
  }
  await model.release();
}

/** Holds the logits of a row against those behind each of the last tokens of its text, read in one call. */
async function expectLogits(
  said: Said,
  row: number,
  model: LanguageModel,
  text: number[],
  tolerance = 8e-6,
) {
  const whole = (await model.advance(text)).data.slice(-STEPS * VOCABULARY);
  const steps = said.logits.slice(-STEPS);
  const logits = steps.flatMap((s) => s.slice(row * VOCABULARY, (row + 1) * VOCABULARY));
  expect(logits).toHaveLength(STEPS * VOCABULARY);
  expect(distance(logits, whole) / Math.max(...whole.map(Math.abs))).toBeLessThan(tolerance);
}

/** Inputs of 4-bit products are rounded to 8 bits, so that 1e-7 before may be one of 127 steps behind: 0.006 between our own two backends. */
const INT4 = 0.02;
const LLAMA = 'llama.genai-fp32-cpu';
const HYBRID: RewriteOptions = { variant: 'hybrid', window: 3, sinks: 1 };
const CASES: [name: string, options: RewriteOptions][] = [
  [LLAMA, { variant: 'none' }],
  [LLAMA, { variant: 'linear' }],
  [LLAMA, { variant: 'linear', body: 'standard' }],
  [LLAMA, { variant: 'linear', keepSoftmax: [0] }],
  [LLAMA, { variant: 'linear', keepSoftmax: [1] }],
  [LLAMA, { variant: 'retention' }],
  [LLAMA, { variant: 'performer', features: 32 }],
  [LLAMA, { variant: 'delta' }],
  [LLAMA, { variant: 'window', window: 3, sinks: 1 }],
  [LLAMA, HYBRID],
  [LLAMA, { ...HYBRID, body: 'standard' }],
  ['llama.genai-int4-cpu', { variant: 'linear' }],
  ['qwen3.genai-fp32-cpu', { variant: 'linear' }],
  ['qwen3.genai-fp32-cpu', HYBRID],
  ['phi3.genai-fp32-cpu', { variant: 'linear' }],
  ['gemma2.genai-fp32-cpu', { variant: 'linear' }],
  ['gpt_oss.genai-fp32-cpu', { variant: 'linear' }],
  ['mistral.genai-fp32-cpu', { variant: 'retention', layers: [0] }],
];

describe.skipIf(!GENAI)('onnxruntime-genai', () => {
  beforeAll(() => {
    const source = path.join(ROOT, 'test/native/genai/generate.c');
    execFileSync('cc', ['-O1', '-Wall', '-Werror', '-o', driver, source, '-ldl']);
  });

  it.each([...new Set(CASES.map(([name]) => name))])('says of %s what we say', async (name) => {
    const file = original(name);
    for (const prompts of [[PROMPTS[0]!], PROMPTS])
      await expectSame(genai(path.dirname(file), shown(prompts)), file, prompts);
  });

  it.each(CASES)('runs %s rewritten: %j', async (name, options) => {
    const model = await rewritten(name, options);
    const tolerance = name.includes('int4') ? INT4 : undefined;
    for (const library of [undefined, nativeFile(OPS_LIBRARY)]) {
      configure(model.folder, ({ model: { decoder } }) => {
        Object.assign(decoder.session_options, { custom_ops_library: library });
      });
      for (const share of [true, false]) {
        configure(model.folder, (c) =>
          Object.assign(c.search, { past_present_share_buffer: share }),
        );
        await expectSame(
          genai(model.folder, shown([PROMPTS[0]!])),
          model.plain,
          [PROMPTS[0]!],
          tolerance,
        );
        await expectSame(genai(model.folder, shown(PROMPTS)), model.plain, PROMPTS, tolerance);
      }
    }
  });

  it('says the same of none as of the original', async () => {
    const { folder: none } = await rewritten(LLAMA, { variant: 'none' });
    const [a, b] = [path.dirname(original(LLAMA)), none].map((f) => genai(f, shown(PROMPTS)));
    expect(b!.tokens).toEqual(a!.tokens);
  });

  it.each([{ variant: 'linear' }, HYBRID] as RewriteOptions[])(
    'reads on behind what it generated, from the start again and in pieces: $variant',
    async (options) => {
      const model = await rewritten(LLAMA, options);
      const on = genai(model.folder, ['6,3,19+7,8']);
      const ours = await LanguageModel.open(model.plain);
      expect(on.tokens[0]).toHaveLength(2 * STEPS + 5);
      await expectLogits(on, 0, ours, on.tokens[0]!.slice(0, -1));
      await ours.release();
      const again = genai(model.folder, ['5,2/6,3,19,12,11,4', '1,7/9,17,5,13']);
      await expectSame(again, model.plain, PROMPTS);
      configure(model.folder, ({ search }) => Object.assign(search, { chunk_size: 2 }));
      await expectSame(genai(model.folder, shown([PROMPTS[0]!])), model.plain, [PROMPTS[0]!]);
      expect(() => genai(model.folder, ['6,3<4'])).toThrow(
        /Recurrent states cannot be partially rewound/,
      );
    },
  );
});
