import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import {
  inspectModel,
  loadModel,
  type RewriteOptions,
  type RewriteReport,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { OCR_DETECTOR, OCR_RECOGNISER, TINYLM } from '../support/models.js';
import { distance, type Feeds, floats, ints, zeros } from './support/run.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-rewrite-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

const sessions = new Map<string, Promise<ort.InferenceSession>>();
function open(file: string): Promise<ort.InferenceSession> {
  const known = sessions.get(file) ?? ort.InferenceSession.create(file, { logSeverityLevel: 3 });
  sessions.set(file, known);
  return known;
}
const reports = new Map<string, Promise<{ file: string; report: RewriteReport }>>();
/** Rewrites a file into another, once for each set of options. */
function rewritten(
  source: string,
  options: RewriteOptions,
): Promise<{ file: string; report: RewriteReport }> {
  const key = JSON.stringify([source, options]);
  const make = async () => {
    const model = loadModel(source);
    const report = await rewriteModel(model, options);
    const file = path.join(folder, `${reports.size}.onnx`);
    saveModel(model, file);
    return { file, report };
  };
  const known = reports.get(key) ?? make();
  reports.set(key, known);
  return known;
}

const TOKENS = 12;
const IDS = Array.from({ length: TOKENS }, (_, i) => (i * 389 + 17) % 2048);
const VOCABULARY = 2048;

/** Left-padded rows of tokens and their masks. */
function batch(rows: readonly { ids: readonly number[]; pad: number }[]) {
  const ids = rows.flatMap(({ ids, pad }) => [...Array(pad).fill(0), ...ids]);
  const mask = rows.flatMap(({ ids, pad }) => [...Array(pad).fill(0), ...ids.map(() => 1)]);
  return { ids, mask, width: ids.length / rows.length };
}

async function logits(file: string, feeds: Feeds): Promise<Float32Array> {
  return (await (await open(file)).run(feeds)).logits!.data as Float32Array;
}
const whole = (ids: readonly number[]): Feeds => ({
  input_ids: ints([1, ids.length], ids),
  attention_mask: ints(
    [1, ids.length],
    ids.map(() => 1),
  ),
});

/** Runs one row in calls that end at `ends`, whatever the model carries; logits of all tokens. */
async function stream(
  { file, report }: { file: string; report?: RewriteReport },
  ends: readonly number[],
  maskOf: 'total' | 'current',
): Promise<number[]> {
  const session = await open(file);
  let carried: Feeds = {};
  for (const input of session.inputMetadata) {
    if (!input.isTensor || !input.name.startsWith('past')) continue;
    const { name, shape, type } = input;
    const dims = shape.map((d) => (typeof d === 'number' ? d : d === 'past_sequence' ? 0 : 1));
    carried[name] = zeros(type, dims, 1);
  }
  const out: number[] = [];
  let done = 0;
  for (const end of ends) {
    const length = maskOf === 'total' ? end : end - done;
    const feeds: Feeds = {
      ...carried,
      input_ids: ints([1, end - done], IDS.slice(done, end)),
      attention_mask: ints([1, length], Array(length).fill(1)),
    };
    const results = await session.run(feeds);
    out.push(...(results.logits!.data as Float32Array));
    const presents = new Map(report?.state.map((s) => [s.past, s.present]));
    carried = Object.fromEntries(
      Object.keys(carried).map((past) => [
        past,
        results[presents.get(past) ?? past.replace('past_key_values', 'present')]!,
      ]),
    );
    done = end;
  }
  return out;
}

const WHOLE = [TOKENS];
const STEPS = Array.from({ length: TOKENS }, (_, i) => i + 1);
const CHUNKS = [5, 6, 12];

describe('tinylm', () => {
  it.each([
    { file: TINYLM.model, cache: false },
    { file: TINYLM.modelKv, cache: true },
  ])('is understood, cache: $cache', async ({ file, cache }) => {
    const { sites } = await inspectModel(loadModel(file));
    expect(sites).toEqual(
      [0, 1, 2, 3].map((layer) => ({
        node: `/m/layers.${layer}/self_attn/Softmax`,
        layer,
        pattern: 'decomposed',
        q_num_heads: 4,
        kv_num_heads: 2,
        head_dim: 64,
        mask: 'causal+padding',
        cache,
        rewritable: true,
        reason: null,
        notes: [],
      })),
    );
  });

  it('is the same after a round trip, padded rows too', async () => {
    const { file } = await rewritten(TINYLM.model, { variant: 'none' });
    const { ids, mask, width } = batch([
      { ids: IDS, pad: 0 },
      { ids: IDS.slice(0, 8), pad: 4 },
    ]);
    const feeds = { input_ids: ints([2, width], ids), attention_mask: ints([2, width], mask) };
    expect(distance(await logits(TINYLM.model, feeds), await logits(file, feeds))).toBeLessThan(
      1e-4,
    );
  });

  it('is the same after a round trip with its cache, in every split', async () => {
    const copy = await rewritten(TINYLM.modelKv, { variant: 'none' });
    for (const ends of [WHOLE, CHUNKS]) {
      const expected = await stream({ file: TINYLM.modelKv }, ends, 'total');
      expect(distance(expected, await stream(copy, ends, 'total'))).toBeLessThan(1e-4);
    }
  });

  const variants: RewriteOptions[] = [
    { variant: 'linear' },
    { variant: 'linear', featureMap: 'relu', body: 'standard' },
    { variant: 'retention' },
    { variant: 'gla', gates: { default: { decay: { constant: [-0.02, -0.3] } } } },
    { variant: 'linear', layers: [1, 3] },
    { variant: 'linear', keepSoftmax: [0] },
  ];
  it.each(variants)('carries fixed states instead of its cache: %j', async (options) => {
    const cached = await rewritten(TINYLM.modelKv, options);
    const plain = await rewritten(TINYLM.model, options);
    const expected = await logits(plain.file, whole(IDS));
    const mixed = options.layers !== undefined || options.keepSoftmax !== undefined;
    expect(cached.report.attentionMask).toBe(mixed ? 'total' : 'current');
    for (const ends of [WHOLE, CHUNKS, STEPS]) {
      expect(distance(expected, await stream(cached, ends, 'total'))).toBeLessThan(1e-4);
      if (!mixed)
        expect(distance(expected, await stream(cached, ends, 'current'))).toBeLessThan(1e-4);
    }
  });

  it('does not see left padding', async () => {
    for (const source of [TINYLM.model, TINYLM.modelKv]) {
      const { file, report } = await rewritten(source, { variant: 'linear' });
      const rows = batch([
        { ids: IDS, pad: 0 },
        { ids: IDS.slice(0, 8), pad: 4 },
      ]);
      const start = Object.fromEntries(
        report.state.map((s) => [s.past, zeros(s.dtype, s.shape, 2)]),
      );
      const feeds = {
        ...start,
        input_ids: ints([2, rows.width], rows.ids),
        attention_mask: ints([2, rows.width], rows.mask),
      };
      const together = await logits(file, feeds);
      const alone = await logits(
        (await rewritten(TINYLM.model, { variant: 'linear' })).file,
        whole(IDS.slice(0, 8)),
      );
      expect(distance(together.subarray((TOKENS + 4) * VOCABULARY), alone)).toBeLessThan(1e-4);
    }
  });

  it('may be rewritten in two steps', async () => {
    const once = await rewritten(TINYLM.modelKv, { variant: 'linear' });
    const half = await rewritten(TINYLM.modelKv, { variant: 'linear', layers: [0, 2] });
    const twice = await rewritten(half.file, { variant: 'linear' });
    expect(twice.report.sites).toHaveLength(2);
    expect(twice.report.state).toEqual(once.report.state);
    expect(JSON.parse(loadModel(twice.file).metadata('onnx_fla.state')!)).toEqual(
      once.report.state,
    );
    const records = ({ file }: { file: string }) =>
      JSON.parse(loadModel(file).metadata('onnx_fla.sites')!);
    expect(records(twice)).toEqual(records(once));
    expect(records(half)).toMatchObject([
      { layer: 0, variant: 'linear', reason: null },
      { layer: 1, variant: 'none', reason: expect.stringContaining('not among the layers') },
      { layer: 2, variant: 'linear', reason: null },
      { layer: 3, variant: 'none', reason: expect.stringContaining('not among the layers') },
    ]);
    const expected = await stream(once, CHUNKS, 'current');
    expect(distance(expected, await stream(twice, CHUNKS, 'current'))).toBeLessThan(1e-5);
  });

  it('keeps nothing of the softmax it replaced', async () => {
    const { file, report } = await rewritten(TINYLM.modelKv, { variant: 'linear' });
    const { graph } = loadModel(file);
    expect(
      graph.nodes.filter((n) => /^(Softmax|Expand|Range|LessOrEqual)$/.test(n.opType)),
    ).toEqual([]);
    expect(graph.inputs.map((i) => i.name)).toEqual([
      'input_ids',
      'attention_mask',
      ...report.state.map((s) => s.past),
    ]);
    expect(report.state).toHaveLength(5);
    expect(report.state[4]).toEqual({
      past: 'past_key_values.length',
      present: 'present.length',
      shape: ['batch'],
      dtype: 'int64',
      in_place: false,
    });
  });
});

describe.each(['basic', 'extended'] as const)(
  "tinylm as ONNX Runtime's optimizer writes it, level %s",
  (level) => {
    const optimized = async (source: string) => {
      const file = path.join(folder, `${path.basename(source, '.onnx')}.${level}.onnx`);
      if (!fs.existsSync(file)) {
        const options = {
          graphOptimizationLevel: level,
          optimizedModelFilePath: file,
          logSeverityLevel: 3,
        } as const;
        await (await ort.InferenceSession.create(source, options)).release();
      }
      return file;
    };

    it('is the same after a round trip', async () => {
      const source = await optimized(TINYLM.model);
      const { file, report } = await rewritten(source, { variant: 'none' });
      expect(report.sites.map((s) => s.rewritten)).toEqual([true, true, true, true]);
      expect(
        distance(await logits(source, whole(IDS)), await logits(file, whole(IDS))),
      ).toBeLessThan(1e-4);
    });

    it('becomes the same linear attention as the plain file', async () => {
      const plain = await rewritten(TINYLM.model, { variant: 'linear' });
      const expected = await logits(plain.file, whole(IDS));
      const cached = await rewritten(await optimized(TINYLM.modelKv), { variant: 'linear' });
      expect(cached.report.attentionMask).toBe('current');
      expect(distance(expected, await stream(cached, CHUNKS, 'current'))).toBeLessThan(1e-4);
    });
  },
);

describe('the text recogniser of PP-OCRv4', () => {
  const image = () => floats([1, 3, 48, 200], (i) => Math.sin(i / 7) * Math.cos(i / 311));
  const read = async (file: string) =>
    (await (await open(file)).run({ x: image() }))['softmax_11.tmp_0']!.data as Float32Array;

  it('has two attention blocks and a CTC head', async () => {
    const { sites } = await inspectModel(loadModel(OCR_RECOGNISER));
    const block = (layer: number) => ({
      node: `p2o.Softmax.${layer}`,
      layer,
      pattern: 'decomposed',
      q_num_heads: 8,
      kv_num_heads: 8,
      head_dim: 15,
      mask: 'bidirectional',
      cache: false,
      rewritable: true,
      reason: null,
      notes: [],
    });
    expect(sites.slice(0, 2)).toEqual([block(0), block(1)]);
    expect(sites.slice(2)).toMatchObject([
      {
        node: 'p2o.Softmax.2',
        layer: null,
        pattern: null,
        rewritable: false,
        reason: expect.stringContaining('CTC'),
      },
    ]);
  });

  it('is the same after a round trip', async () => {
    const { file } = await rewritten(OCR_RECOGNISER, { variant: 'none' });
    expect(distance(await read(OCR_RECOGNISER), await read(file))).toBeLessThan(1e-5);
  });

  it.each(['standard', 'auto'] as const)('runs with linear attention, body %s', async (body) => {
    const options: RewriteOptions = { variant: 'linear', body };
    const { file, report } = await rewritten(OCR_RECOGNISER, options);
    expect(report.sites.map((s) => s.rewritten)).toEqual([true, true, false]);
    const { graph } = loadModel(file);
    expect(graph.nodes.filter((n) => n.is('Softmax')).map((n) => n.name)).toEqual([
      'p2o.Softmax.2',
    ]);
    const [a, b] = [await read(OCR_RECOGNISER), await read(file)];
    expect(b).toHaveLength(a.length);
    // Probabilities: finite, and different from the original's.
    expect(b.every((p) => p >= 0 && p <= 1)).toBe(true);
    expect(distance(a, b)).toBeGreaterThan(1e-4);
  });

  it('stays as it is where attention runs both ways and the variant does not', async () => {
    const { report } = await rewritten(OCR_RECOGNISER, { variant: 'retention' });
    expect(report.sites.map((s) => s.rewritten)).toEqual([false, false, false]);
    expect(report.sites[0]!.kept).toMatch(/bidirectional/);
  });
});

it('finds nothing in a model without attention', async () => {
  expect((await inspectModel(loadModel(OCR_DETECTOR))).sites).toEqual([]);
});
