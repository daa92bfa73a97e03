import {
  inspectModel,
  loadModel,
  type Model,
  type RewrittenSite,
  rewriteModel,
} from '../../../exporter/index.js';
import { OCR_DETECTOR, OCR_RECOGNISER, TINYLM } from '../../support/models.js';
import { all, column, GATED, LINEAR } from './compatibility_answers.js';
import { realFilesTable } from './compatibility_real.js';
import { BUFFERS, DECODERS, decoder, GROUPED } from './decoder.js';
import { QUANTISED, quantiser } from './families/quantised.js';
import { BIASED, FAMILIES, type Family, Writer } from './families.js';
import { makeLayer } from './layer.js';
import { NEAR_MISSES } from './near_misses.js';
import { ONE_TOKEN } from './one_token.js';
import { mergedSeq2Seq } from './seq2seq.js';
import { loadTorch, TORCH_EXPORTS } from './torch.js';

/** What docs/compatibility.md says of one model. */
interface Row {
  readonly name: string;
  readonly form?: string;
  readonly exporter: string;
  readonly build: () => Model;
}

const TORCHSCRIPT = 'PyTorch, TorchScript';

/** The page, from what the rewriter says of every model that the tests run. */
export async function compatibilityPage(): Promise<string> {
  const plain = [...FAMILIES, ...BIASED]
    .filter((f) => !f.pattern)
    .map((f) => family(f, TORCHSCRIPT));
  const onnx = FAMILIES.filter((f) => f.pattern?.startsWith('ai.onnx'));
  const fused = FAMILIES.filter((f) => f.pattern?.startsWith('com.microsoft'));
  const genai = (f: Family) =>
    f.name.includes('GroupQuery') ? 'onnxruntime-genai, Olive' : 'ONNX Runtime';
  return `# Compatibility

<!-- Generated from the models of the tests by \`npm run gen\`. Do not edit. -->

What \`inspect\` and \`rewrite\` say of every model that the tests build or bring. Most are one layer, built by hand after the node
sequence that the exporter named writes; *Real files* are as an exporter wrote them.

- **mask** is what probing found
- **none**: softmax attention written again from its description. The tests compare it with the original, in ONNX Runtime's own kernels
- **linear**: variants \`linear\` and \`performer\`. The tests compare \`linear\` with a float64 model of the same layer (families and fused nodes), of the whole
  model (real files of transformers, diffusers, timm and torch.nn), with the same text read in one call (caches), or run it (the rest)
- **gated**: \`retention\`, \`gla\`, \`mamba2\`, \`delta\`, \`gated-delta\`, which need a causal mask; what they compute is tested on some of the models, among the
  real files on Llama, GPT-2, Qwen 3 and BLOOM, gates and all
- what follows a *yes* is what the variant makes of ALiBi, a softcap or a sink
- **on request**: a window costs little as it is, and is converted when its layer is asked for

## MatMul, Softmax, MatMul

Each of these is also understood with its weights as Constant nodes, in opsets 9, 10, 11, 13, 18 and 26 as far as its operators exist there, and
after ONNX Runtime's own optimizer at every level (which makes FusedMatMul, SkipLayerNormalization, BiasGelu and Attention).

${await table(plain)}
## Attention of ai.onnx

${await table(onnx.map((f) => family(f, 'PyTorch, dynamo; opset 23 and 24')))}
## Fused nodes of com.microsoft

${await table(fused.map((f) => family(f, genai(f))))}
## With a KV cache

The cache becomes a state of fixed size. *positions* is where the model takes positions from; rows are padded on the left, with
GroupQueryAttention on the right of the first call.

${await table([
  ...DECODERS.map(({ name, spec }) => ({
    name,
    exporter: spec.attention === 'decomposed' ? TORCHSCRIPT : 'ONNX Runtime',
    build: () => decoder(spec),
  })),
  ...GROUPED.map(({ name, spec }) => ({
    name: `GroupQueryAttention: ${name}`,
    exporter: 'onnxruntime-genai, Olive',
    build: () => decoder(spec),
  })),
  ...BUFFERS.map(({ name, spec }) => ({
    name: `${name}, as long as rows are not padded`,
    exporter: 'opset 24',
    build: () => decoder(spec),
  })),
  {
    name: 'Marian, decoder merged with its twin without a cache, cross-attention left alone',
    exporter: 'Optimum',
    build: () => mergedSeq2Seq(),
  },
  ...ONE_TOKEN.map(({ name, build }) => ({
    name: `${name}, one token at a time, a buffer written in place`,
    exporter: 'ONNX Runtime',
    build,
  })),
])}
## Weights and activations of 8 and 4 bits

Weights stay as they are. QuantizeLinear and DequantizeLinear between the steps of attention are dropped with those steps; where
the optimizer made QLinearMatMul of them, the attention is left alone.

${await table(
  QUANTISED.map(({ name, build }) => ({
    name,
    exporter: 'onnxruntime.quantization',
    build: () => build(quantiser()),
  })),
)}
## Real files

${await table([
  ...TORCH_EXPORTS.map(({ name }) => ({
    name: `test/fixtures/torch/${name}.onnx`,
    exporter: 'PyTorch 1.13, TorchScript',
    build: () => loadTorch(name),
  })),
  { name: 'tinylm', exporter: 'by hand', build: () => loadModel(TINYLM.model) },
  { name: 'tinylm, KV cache', exporter: 'by hand', build: () => loadModel(TINYLM.modelKv) },
  { name: 'PP-OCRv4 recogniser', exporter: 'Paddle', build: () => loadModel(OCR_RECOGNISER) },
  { name: 'PP-OCRv4 detector', exporter: 'Paddle', build: () => loadModel(OCR_DETECTOR) },
])}
### Of transformers, diffusers, timm and torch.nn

Small models with random weights, written by torch 2.11, transformers 5.17, onnxscript 0.7.2, ONNX Runtime 1.30, and the sources of diffusers, Optimum,
Olive and onnxruntime-genai; the tests run each file, its round trip (variant \`none\`) and what \`linear\` makes of it, as far as ONNX Runtime has kernels for
the file on the CPU. Both with softmax and with \`linear\` (there also where \`bias: 'drop'\` is needed for it) a file must yield what PyTorch does in float64, with linear
attention written anew in place of softmax, to 1e-5 of the largest output; files in float16 to 2e-3; of 8 and 4 bits no further off than twice what the file with softmax
is. Tokens that are hidden do not count. *torch.nn* is \`transformer_encoder\` and \`multihead\`, *diffusers* \`unet\`, \`vae\` and \`dit\`. Reasons are in short what \`inspect\` says.

${await realFilesTable()}
## Left alone

| what | attention | the reason given |
|---|---|---|
${(await Promise.all(NEAR_MISSES.map(refusal))).join('\n')}

Attention in the bodies of If, Loop and Scan and in model-local functions (of the model's opset) is rewritten like any other. Merged decoders
(Optimum's \`use_cache_branch\`) are taken apart; where there is an encoder, the caches of its keys and values stay. Other models with a KV cache and
nested graphs are left alone there.
`;
}

function family(f: Family, exporter: string): Row {
  const [name, ...form] = f.name.split(': ');
  return {
    name: name!,
    form: form.join(': '),
    exporter: f.exporter ?? exporter,
    build: () => f.build(new Writer(f.layer?.() ?? makeLayer())),
  };
}

async function table(rows: readonly Row[]): Promise<string> {
  const forms = rows.some((r) => r.form);
  const head = [
    'model',
    ...(forms ? ['form'] : []),
    'written by',
    'mask',
    'none',
    'linear',
    'gated',
  ];
  const lines = [head, head.map(() => '---')];
  for (const { name, form, exporter, build } of rows) {
    const start = [name, ...(forms ? [form ?? ''] : []), exporter];
    lines.push([...start, ...(await answers(build))]);
  }
  return `${lines.map((cells) => `| ${cells.map(cell).join(' | ')} |`).join('\n')}\n`;
}

/** mask, none, linear, gated. */
async function answers(build: () => Model): Promise<string[]> {
  const { sites } = await rewriteModel(build(), { variant: 'none', dryRun: true });
  const layers = sites.filter(isOwn);
  if (layers.length === 0) return ['no attention', '', '', ''];
  const reason = (text: string) => text.replace(/^mask: /, '');
  return [
    all(layers.map((s) => s.mask ?? '?')),
    all(layers.map((s) => (s.rewritten ? 'yes' : `no: ${s.reason ?? s.kept}`))),
    await column(build, LINEAR, isOwn, reason),
    await column(build, GATED, isOwn, reason),
  ];
}

/** What a decoder has besides stays as it is, as "Left alone" says. */
function isOwn({ layer, reason }: RewrittenSite): boolean {
  return layer !== null && !reason?.startsWith('cross-attention');
}

async function refusal(miss: (typeof NEAR_MISSES)[number]): Promise<string> {
  const layer = makeLayer(12, 4, miss.grouped ? 2 : 4, miss.dim ?? 3);
  const { sites } = await inspectModel(miss.build(new Writer(layer)));
  const [site] = sites;
  const cells = [miss.name, site!.layer === null ? 'no' : 'yes', site!.reason ?? ''];
  return `| ${cells.map(cell).join(' | ')} |`;
}

/** Text in a cell of a table. */
function cell(text: string): string {
  return text.replaceAll('|', '\\|').replaceAll('\n', ' ');
}
