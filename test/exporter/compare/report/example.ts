import { emptyRow } from '../../../../exporter/compare/index.js';
import { compareLanguage } from '../../../../exporter/compare/language.js';
import {
  FORMAT,
  type Report,
  type ReportRow,
  VERSION,
} from '../../../../exporter/compare/report/schema.js';
import { runTasks, TASKS, TokenMaterial } from '../../../../exporter/compare/tasks/index.js';
import { induction, RuleReader } from '../support.js';

const VOCABULARY = 32;
const text = Array.from({ length: 400 }, (_, i) => (i * i + (i >> 3)) % VOCABULARY);

async function row(
  base: Pick<ReportRow, 'id' | 'role' | 'name' | 'about'>,
  window: number,
  kld: number,
): Promise<ReportRow> {
  const rule = (seen: readonly number[]) => (seen.at(-1)! + 1) % VOCABULARY;
  const a = new RuleReader(VOCABULARY, rule, 'state', 5);
  const b = new RuleReader(VOCABULARY, rule, 'state', 5 - kld);
  const plan = {
    tasks: [TASKS.passkey!, TASKS.mqar!],
    lengths: [64, 128, 1024],
    samples: 1,
    material: new TokenMaterial(VOCABULARY),
  };
  return {
    ...emptyRow(base),
    backend: 'stock',
    attention: { layers: 4, softmax: base.role === 'model' ? 1 : 4 },
    state_bytes: 4096,
    outputs: { logits: { max_abs: kld, cosine: 1 - kld / 10 } },
    language: base.role === 'original' ? null : await compareLanguage(a, b, text, { context: 100 }),
    tasks: await runTasks(new RuleReader(VOCABULARY, induction(3, window)), plan),
  };
}

const cost = (length: number) => ({
  length,
  original_ms: length / 4,
  rewritten_ms: length / 8,
  speedup: 2,
  original_decode_ms: 3,
  rewritten_decode_ms: 1,
  original_peak_bytes: 2e8,
  rewritten_peak_bytes: 1e8,
  original_state_bytes: length * 1024,
  rewritten_state_bytes: 65536,
  runs: 3,
});

/** A report in which every part is there, as compareModels would give it. */
export async function exampleReport(): Promise<Report> {
  const control = 'control' as const;
  const rows = [
    await row({ id: 'original', role: 'original', name: 'original', about: 'as it came' }, 1e6, 0),
    await row(
      { id: 'parity', role: control, name: 'rewritten, but softmax', about: 'same' },
      1e6,
      0,
    ),
    await row({ id: 'zeroed', role: control, name: 'attention zeroed', about: 'zeros' }, 0, 4),
    await row({ id: 'window', role: control, name: 'window only', about: 'near' }, 64, 1),
    await row({ id: 'model', role: 'model', name: 'a <b>&"c".onnx', about: '' }, 100, 0.5),
  ];
  rows[4]!.cost = [cost(128), cost(1024)];
  return JSON.parse(
    JSON.stringify({
      format: FORMAT,
      version: VERSION,
      run: {
        created: '2026-01-02T03:04:05.000Z',
        seconds: 1,
        versions: { node: '20' },
        machine: 'one',
      },
      settings: {
        original: 'model.onnx',
        seed: 0,
        window: 64,
        sinks: 4,
        state_tokens: 100,
        text: { name: 'text.txt', sha256: 'ab', tokens: 400, context: 100 },
        tasks: {
          names: ['passkey', 'mqar'],
          lengths: [64, 128, 1024],
          depths: [0, 0.25, 0.5, 0.75, 1],
          samples: 1,
          mode: 'tokens',
        },
      },
      rows,
      pareto: [
        { kept: 0, layers: [], ppl_ratio: 1.5, kld: 0.5, recall: 0.1, state_bytes: 1000 },
        { kept: 1, layers: [2], ppl_ratio: 1.1, kld: 0.1, recall: 0.9, state_bytes: 4000 },
      ],
      notices: ['something <i>stands</i> out'],
      changes: [{ row: 'model', metric: 'kl', before: 0.1, after: 0.2 }],
    } satisfies Report),
  ) as Report;
}
