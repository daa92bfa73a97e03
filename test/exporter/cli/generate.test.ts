/** `generate` with encoder-decoders, as files lie in the folders of the hub. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { writeNpz } from '../../../exporter/calibrate/data/npz.js';
import { saveModel } from '../../../exporter/index.js';
import { generate } from '../../../exporter/text/generate.js';
import { LanguageModel } from '../../../exporter/text/language_model.js';
import { loadTokenizer } from '../../../exporter/text/tokenizer.js';
import { random } from '../support/run.js';
import { loadTransformers } from '../support/transformers.js';
import { runCli, runJson } from './run_cli.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-generate-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));
const at = (name: string) => path.join(folder, name);

interface Result {
  text: string;
  ids: number[];
  prompt_tokens: number;
  memory: string;
}
const next = random(7);
const FEATURES = Float32Array.from({ length: 320 }, () => 3 * next());
/** Features of two sources, [2,8,20], as NumPy and safetensors write them. */
const head = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 8, 20), }\n".padStart(118);
const NPY = Buffer.concat([
  Buffer.from(`\x93NUMPY\x01\0${String.fromCharCode(head.length)}\0${head}`, 'latin1'),
  Buffer.from(FEATURES.buffer),
]);

beforeAll(() => {
  fs.mkdirSync(at('onnx'));
  for (const name of [
    'bart_encoder',
    'bart_decoder',
    'bart_decoder_cache',
    'whisper_encoder',
    'whisper_merged',
    'gpt2',
    'gpt2_cache',
  ]) {
    saveModel(loadTransformers(`${name}.torchscript`), at(`onnx/${name}.onnx`));
  }
  const vocab = { '<pad>': 0, '<s>': 1, '</s>': 2 } as Record<string, number>;
  for (let i = 3; i < 64; i++) vocab[`w${i}`] = i;
  const special = ['<pad>', '<s>', '</s>'].map((content, id) => ({
    ...{
      id,
      content,
      special: true,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
    },
  }));
  const tokenizer = {
    added_tokens: special,
    ...{ normalizer: null, post_processor: null, decoder: null },
    pre_tokenizer: { type: 'WhitespaceSplit' },
    model: { type: 'WordLevel', vocab, unk_token: '<pad>' },
  };
  fs.writeFileSync(at('tokenizer.json'), JSON.stringify(tokenizer));
  fs.writeFileSync(at('features.npy'), NPY);
  writeNpz(at('features.npz'), { input_features: { dims: [2, 8, 20], data: FEATURES } });
  fs.writeFileSync(at('config.json'), JSON.stringify({ decoder_start_token_id: 1 }));
});

const greedy = ['--temperature', '0', '--max-new-tokens', '6'];
const bart = (...more: string[]) => [
  ...['generate', at('onnx/bart_decoder.onnx'), '--encoder', at('onnx/bart_encoder.onnx')],
  ...['--tokenizer', at('tokenizer.json'), ...greedy, ...more],
];

test('text in, text out: one, several, and rewritten', async () => {
  const withPast = at('onnx/bart_decoder_cache.onnx');
  const prompts = ['w7 w21 w9', 'w16 w5'];
  const one = await runJson<Result>(...bart('--prompt', prompts[0]!));
  expect(one.text).toBe(one.ids.map((id) => `w${id}`).join(' '));
  expect(one).toMatchObject({ memory: 'none', prompt_tokens: 4, new_tokens: 6 });
  const two = await runJson<{ texts: Result[]; memory: string }>(
    ...bart('--with-past', withPast, ...prompts.flatMap((p) => ['--prompt', p])),
  );
  expect(two.memory).toBe('cache');
  expect(two.texts[0]).toEqual({ text: one.text, ids: one.ids });
  await runJson('rewrite', withPast, '-o', at('onnx/linear.onnx'));
  const linear = await runJson<Result>(
    ...bart('--with-past', at('onnx/linear.onnx'), '--prompt', prompts[0]!),
  );
  expect(linear).toMatchObject({ memory: 'state', new_tokens: 6 });
});

test('a configuration ends texts, and forces tokens on decoders with an encoder', async () => {
  const gpt2 = (...more: string[]) =>
    runJson<Result>(
      ...['generate', at('onnx/gpt2.onnx'), '--tokenizer', at('tokenizer.json'), ...greedy],
      ...['--prompt', 'w7 w21', ...more],
    );
  const { ids } = await gpt2();
  const other = ids[0] === 9 ? 10 : 9;
  fs.writeFileSync(at('generation_config.json'), JSON.stringify({ forced_bos_token_id: other }));
  try {
    expect((await gpt2()).ids).toEqual(ids);
    expect((await runJson<Result>(...bart('--prompt', 'w7'))).ids[0]).toBe(other);
    fs.writeFileSync(at('generation_config.json'), JSON.stringify({ eos_token_id: [ids[0]] }));
    expect(await gpt2()).toMatchObject({ text: '', ids: [], new_tokens: 0 });
  } finally {
    fs.rmSync(at('generation_config.json'));
  }
});

describe('features in, text out', () => {
  const whisper = (...more: string[]) => [
    ...['generate', at('onnx/whisper_merged.onnx'), '--encoder', at('onnx/whisper_encoder.onnx')],
    ...['--tokenizer', at('tokenizer.json'), ...greedy, ...more],
  ];
  const texts = async (...args: string[]) =>
    (await runJson<{ texts: Result[] }>(...args)).texts.map((t) => t.ids);

  test('from .npy and .npz, what the classes behind the command say', async () => {
    const written = await texts(...whisper('--encoder-input', at('features.npy')));
    expect(await texts(...whisper('--encoder-input', at('features.npz')))).toEqual(written);
    const model = await LanguageModel.open(at('onnx/whisper_merged.onnx'), {
      encoder: at('onnx/whisper_encoder.onnx'),
    });
    const { endIds } = loadTokenizer(at('tokenizer.json'));
    for (const [b, ids] of written.entries()) {
      const data = FEATURES.subarray(b * 160, (b + 1) * 160);
      await model.readSource(new Map([['input_features', { dims: [1, 8, 20], data }]]));
      const options = { maxNewTokens: 6, temperature: 0, topK: 0, topP: 1, seed: 0, endIds };
      expect((await generate(model, [1], options)).ids).toEqual(ids);
    }
    await model.release();
  });

  test('generation_config.json goes before config.json, options before both', async () => {
    const free = await texts(...whisper('--encoder-input', at('features.npy')));
    const rules = {
      forced_decoder_ids: [
        [1, null],
        [2, 40],
      ],
      suppress_tokens: [free[0]![0]],
      begin_suppress_tokens: [],
      decoder_start_token_id: 5,
    };
    fs.writeFileSync(at('generation_config.json'), JSON.stringify(rules));
    try {
      const start = ['--decoder-start-token-id', '1'];
      const told = await texts(...whisper('--encoder-input', at('features.npy'), ...start));
      expect(told.map((ids) => ids[1])).toEqual([40, 40]);
      expect(told.flat()).not.toContain(free[0]![0]);
      // A prompt of the decoder takes the place of what is forced; its own first token is not doubled.
      const [named, plain] = await Promise.all(
        ['<s> w9', 'w9'].map((prompt) =>
          texts(
            ...whisper('--encoder-input', at('features.npy'), ...start, '--decoder-prompt', prompt),
          ),
        ),
      );
      expect(named).toEqual(plain);
      expect(named).not.toEqual(told);
      fs.writeFileSync(at('generation_config.json'), JSON.stringify({ suppress_tokens: 'w9' }));
      const { stderr, code } = await runCli(...whisper('--encoder-input', at('features.npy')));
      expect(code).toBe(1);
      expect(stderr).toMatch(
        /generation_config\.json: suppress_tokens must be a token or a list of tokens, received "w9"$/m,
      );
    } finally {
      fs.rmSync(at('generation_config.json'));
    }
  });
});

test.each<[string, () => string[], RegExp]>([
  [
    'nothing that tells where to start',
    () => {
      fs.mkdirSync(at('bare'), { recursive: true });
      for (const name of ['bart_encoder', 'bart_decoder']) {
        fs.copyFileSync(at(`onnx/${name}.onnx`), at(`bare/${name}.onnx`));
      }
      const args = bart('--prompt', 'w7');
      return args.map((a) => a.replace('/onnx/', '/bare/'));
    },
    /^onnx-fla: generate: no .* beside \S+bare\/bart_decoder\.onnx tells .* give --decoder-start-token-id$/m,
  ],
  [
    'a start that is no token',
    () => bart('--prompt', 'w7', '--decoder-start-token-id', '-1'),
    /--decoder-start-token-id .* expected 0 or a positive integer/,
  ],
  [
    'a configuration that is none',
    () => {
      fs.mkdirSync(at('odd'), { recursive: true });
      fs.writeFileSync(at('odd/config.json'), '7');
      fs.copyFileSync(at('onnx/gpt2.onnx'), at('odd/gpt2.onnx'));
      return [
        ...['generate', at('odd/gpt2.onnx'), '--tokenizer', at('tokenizer.json')],
        ...['--prompt', 'w3'],
      ];
    },
    /odd\/config\.json: must hold a JSON object, received 7$/m,
  ],
  [
    'a first decoder with a cache',
    () => [
      ...['generate', at('onnx/gpt2_cache.onnx'), '--with-past', at('onnx/gpt2_cache.onnx')],
      ...['--tokenizer', at('tokenizer.json'), '--prompt', 'w3'],
    ],
    /^onnx-fla: \S+gpt2_cache\.onnx: must have no cache, .*, received 4 caches$/m,
  ],
  [
    'a decoder that is not there',
    () => [
      ...['generate', at('onnx/none.onnx'), '--with-past', at('onnx/gpt2_cache.onnx')],
      ...['--tokenizer', at('tokenizer.json'), '--prompt', 'w3'],
    ],
    /^onnx-fla: \S+none\.onnx: (?!.*gpt2_cache)/m,
  ],
  [
    'two things to read',
    () => bart('--prompt', 'w7', '--encoder-input', at('features.npy')),
    /the encoder reads a prompt or --encoder-input, not both/,
  ],
  [
    'features for an encoder of texts',
    () => bart('--encoder-input', at('features.npz')),
    /bart_encoder\.onnx: input 'input_ids' must be \[batch_size,sequence_length\], received input_features \[2,8,20\]/,
  ],
  [
    'features that are none',
    () => bart('--encoder-input', at('tokenizer.json')),
    /tokenizer\.json: must be an \.npy, \.npz or \.safetensors file/,
  ],
  [
    'an option of encoders without one',
    () => ['generate', at('onnx/bart_decoder.onnx'), ...bart('--decoder-prompt', 'w3').slice(4)],
    /generate: --decoder-prompt is for a model with an --encoder/,
  ],
])('%s is refused', async (_, args, message) => {
  const { code, stderr } = await runCli(...args());
  expect(code).toBe(1);
  expect(stderr).toMatch(message);
  expect(stderr.trim().split('\n')).toHaveLength(1);
});
