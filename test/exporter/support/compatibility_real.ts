import type { RewrittenSite } from '../../../exporter/index.js';
import { all, column, GATED, LINEAR } from './compatibility_answers.js';
import { loadTransformers, REFUSALS, TRANSFORMERS, type TransformersFile } from './transformers.js';

const EXPORTERS: Record<string, string> = {
  torchscript: 'torch, TorchScript, opset 17',
  dynamo: 'torch, dynamo, opset 18',
  dynamo23: 'torch, dynamo, opset 23',
  functions: 'torch, dynamo without its optimizer, opset 18',
};

/** What the tests read from the names of files. */
const VARIANTS: Record<string, string> = {
  '': 'plain',
  ort: 'ONNX Runtime optimizer',
  'ort-cpu': 'ONNX Runtime optimizer, for the CPU',
  'ort-int8': 'ONNX Runtime optimizer, then dynamic int8',
  session: 'as an ONNX Runtime session writes it',
  buffer: "ONNX Runtime's convert_generation, shared buffer",
  masked: "ONNX Runtime's convert_generation, masked attention",
  olive: 'Olive graph surgery',
  peephole: 'Olive peephole optimizer',
  onnxscript: 'onnxscript fusions',
  fp16: 'float16',
  int8: 'dynamic int8',
  qdq: 'QDQ int8',
  int4: 'int4',
};

const WHY: Record<keyof typeof REFUSALS, string> = {
  cross: 'cross-attention',
  bias: 'relative positions added to scores',
  bfloat16: 'its mask is made in bfloat16, which ONNX Runtime does not compute',
  evicting: 'a cache that forgets tokens',
  traced: 'works for the traced length only',
  rows: 'a mask of another batch than the scores',
  beams: 'beams that share a cache',
  batch: 'works for the traced lengths only',
};

/** One row for each model and exporter whose files get the same answers. */
export async function realFilesTable(): Promise<string> {
  const rows = new Map<string, { cells: string[]; variants: Set<string> }>();
  const plainFirst = [...TRANSFORMERS].sort(
    (a, b) => Number(a.variant > '') - Number(b.variant > ''),
  );
  for (const file of plainFirst.sort((a, b) => order(a).localeCompare(order(b)))) {
    const cells = [modelOf(file), exporterOf(file), ...(await answersOf(file))];
    const row = rows.get(cells.join('|')) ?? { cells, variants: new Set() };
    row.variants.add(variantOf(file));
    rows.set(cells.join('|'), row);
  }
  const lines = [...rows.values()].map(({ cells: [model, exporter, ...answers], variants }) => [
    model!,
    exporter!,
    [...variants].join('; '),
    ...answers,
  ]);
  const head = ['model', 'written by', 'files', 'mask', 'linear', 'gated'];
  return [head, head.map(() => '---'), ...lines].map((row) => `| ${row.join(' | ')} |\n`).join('');
}

function order({ model, exporter }: TransformersFile): string {
  return `${model.replace('_sdpa', '~')} ${exporter}`;
}

function modelOf({ model }: TransformersFile): string {
  const [name] = model.split(/_(?:cache|merged|past|sdpa)/);
  const stacked = /_past/.test(model) ? ', KV cache [2,B,H,T,D]' : '';
  const cached = /_cache/.test(model) ? ', KV cache' : stacked;
  const merged = /_merged/.test(model) ? ', decoder merged with its twin without a cache' : '';
  return `${name}${cached}${merged}`;
}

function exporterOf({ model, exporter }: TransformersFile): string {
  const [tool, type, provider] = exporter.split('-');
  if (tool === 'genai') return `onnxruntime-genai, ${type} for ${provider}`;
  return model.includes('_merged') ? 'the same, merged by Optimum' : EXPORTERS[exporter]!;
}

function variantOf({ model, variant }: TransformersFile): string {
  return model.includes('_sdpa') ? `${VARIANTS[variant]}, sdpa` : VARIANTS[variant]!;
}

/** The mask, and what `linear` and `performer`, and variants with gates say. */
async function answersOf({ name, layers }: TransformersFile): Promise<string[]> {
  const build = () => loadTransformers(name);
  const counts = ({ layer }: RewrittenSite) => layer !== null;
  return [
    all(layers.filter((l) => !(l in REFUSALS))),
    await column(build, LINEAR, counts, why),
    await column(build, GATED.slice(0, 1), counts, why),
  ];
}

function why(reason: string): string {
  const keys = Object.keys(REFUSALS) as (keyof typeof REFUSALS)[];
  const key = keys.find((k) => REFUSALS[k].test(reason));
  if (!key) throw new Error(`nothing short is said of '${reason}'`);
  return WHY[key];
}
