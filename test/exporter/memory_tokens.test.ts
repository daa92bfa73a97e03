import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import { loadMatrix } from '../../exporter/cli/safetensors.js';
import {
  addMemoryTokens,
  DATA_TYPE,
  loadModel,
  type Model,
  makeTensor,
  makeValueInfo,
  saveModel,
  segmentOf,
  tensorNumbers,
} from '../../exporter/index.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { BodyEmitter } from '../../ops/function/emitter.js';
import { TINYLM } from '../support/models.js';
import { runJson } from './cli/run_cli.js';
import { FAMILIES, Writer } from './support/families.js';
import { evaluate, type Layer, makeLayer } from './support/layer.js';
import { distance, ints, random, run } from './support/run.js';
import { loadTransformers } from './support/transformers.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-memory-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

describe('tinylm', () => {
  it.each([
    [2, 16],
    [5, 32],
  ])('with %d memory tokens and segments of %d is the published recurrence', async (m, segment) => {
    const ids = loadTokenizer(TINYLM.tokenizer)
      .encode(fs.readFileSync(TINYLM.text, 'utf8').slice(0, 2000))
      .slice(0, 3 * segment + 5);
    const vectors = {
      dims: [m, 256],
      data: Float32Array.from({ length: m * 256 }, (_, i) => Math.sin(i) / 20),
    };
    const model = loadModel(TINYLM.model);
    const report = addMemoryTokens(model, { tokens: m, segment, vectors });
    expect(report).toMatchObject({ tokens: m, segment, hidden: 256 });
    const file = path.join(folder, `rmt-${m}-${segment}.onnx`);
    saveModel(model, file);
    expect(segmentOf(loadModel(file))).toEqual({ tokens: m, segment });

    const expected = await recurrence(TINYLM.model, ids, segment, vectors);
    const lm = await LanguageModel.open(file, { backend: 'stock' });
    const { data } = await lm.advance(ids);
    expect(distance(data, expected)).toBeLessThan(1e-4); // logits reach 30
    // Memory matters, and pieces of any size give the same.
    const plain = await LanguageModel.open(TINYLM.model, { backend: 'stock' });
    expect(distance((await plain.advance(ids)).data, expected)).toBeGreaterThan(0.1);
    for (const chunk of [1, 7, segment, 1000]) {
      await lm.reset();
      const pieces: number[] = [];
      for (let at = 0; at < ids.length; at += chunk) {
        for (const x of (await lm.advance(ids.slice(at, at + chunk))).data) pieces.push(x);
      }
      expect(distance(pieces, expected)).toBeLessThan(1e-4);
    }
    expect(lm.stateBytes).toBe(m * 256 * 4);
    await plain.release();
    await lm.release();
  });

  it('starts from embeddings unless it is given vectors, and zeros stand for the start', async () => {
    const model = loadModel(TINYLM.model);
    addMemoryTokens(model, { tokens: 3, segment: 8 });
    const initial = model.graph.initializer('memory/initial')!;
    const table = embeddingTable(loadModel(TINYLM.model));
    expect(distance(tensorNumbers(initial), table.subarray(0, 3 * 256))).toBe(0);
  });

  it('refuses what does not fit', () => {
    const attempt = (file: string, options: Parameters<typeof addMemoryTokens>[1]) => () =>
      addMemoryTokens(loadModel(file), options);
    expect(attempt(TINYLM.model, { tokens: 0, segment: 8 })).toThrow(
      'tokens must be an integer >= 1, received 0',
    );
    expect(attempt(TINYLM.model, { tokens: 2, segment: 1.5 })).toThrow(
      'segment must be an integer >= 1, received 1.5',
    );
    expect(
      attempt(TINYLM.model, {
        tokens: 2,
        segment: 8,
        vectors: { dims: [3, 256], data: new Float32Array(768) },
      }),
    ).toThrow('memory must be [2,256], received [3,256]');
    expect(attempt(TINYLM.modelKv, { tokens: 2, segment: 8 })).toThrow(
      /it has a KV cache, 'past_key_values/,
    );
  });
});

/** A language model of one layer, and what the published recurrence is made of. */
interface Small {
  readonly model: Model;
  readonly layer: Layer;
  readonly embeddings: readonly number[];
  /** Learned positions. */
  readonly places?: readonly number[];
  readonly head: readonly number[];
}

const WORDS = 31;

/** A family's layer with an embedding table and a head; a table of positions, or rotary embedding in the layer. */
function small(family: string, positions?: number): Small {
  const found = FAMILIES.find((f) => f.name.startsWith(family))!;
  const made = found.layer?.() ?? makeLayer();
  // There is no norm: memory would grow from segment to segment, and with it what float32 rounds.
  const layer = { ...made, wo: made.wo.map((w) => Math.fround(w / 2)) };
  const model = found.build(new Writer(layer));
  const { graph } = model;
  const next = random(11);
  const table = (rows: number, columns: number) =>
    Array.from({ length: rows * columns }, () => Math.fround(next()));
  const [embeddings, head] = [table(WORDS, layer.hidden), table(layer.hidden, WORDS)];
  const places = positions ? table(positions, layer.hidden) : undefined;
  const weight = (name: string, dims: number[], values: readonly number[]) =>
    graph.addInitializer(makeTensor(name, 'float32', dims, values));
  const e = new BodyEmitter(model.opset()!, (stem) => model.fresh(`lm/${stem}`));
  const text = e.op('Gather', [weight('wte', [WORDS, layer.hidden], embeddings), 'input_ids']);
  const placed = () => {
    const count = e.squeeze(e.dim('input_ids', 1), 0);
    const [zero, one] = [0, 1].map((n) => e.constant('int64', [n], []));
    const wpe = weight('wpe', [positions!, layer.hidden], places!);
    return e.add(text, e.op('Gather', [wpe, e.op('Range', [zero!, count, one!])]));
  };
  graph.replaceUses('x', places ? placed() : text);
  const logits = weight('head', [layer.hidden, WORDS], head);
  e.op('MatMul', ['y', logits], {}, { output: 'logits' });
  graph.insert(e.nodes);
  graph.removeInput('x');
  graph.removeOutput('y');
  graph.addInput(makeValueInfo('input_ids', DATA_TYPE.int64, ['batch', 'tokens']));
  graph.addOutput(makeValueInfo('logits', DATA_TYPE.float32, ['batch', 'tokens', WORDS]));
  graph.sort();
  return { model, layer, embeddings, places, head };
}

/** Bulatov et al. 2022 in float64, from the definition: a segment between two copies of the memory, the second of which is read after it. */
function published(
  { layer, embeddings, places, head }: Small,
  ids: readonly number[],
  segment: number,
  initial: ArrayLike<number>,
): { logits: number[]; memories: number[][] } {
  const { hidden } = layer;
  const m = initial.length / hidden;
  const row = (table: ArrayLike<number>, i: number) =>
    Array.from({ length: hidden }, (_, c) => table[i * hidden + c]!);
  const logits: number[] = [];
  const memories = [Array.from(initial)];
  for (let at = 0; at < ids.length; at += segment) {
    const piece = ids.slice(at, at + segment);
    const memory = memories.at(-1)!;
    const tokens = piece.length + 2 * m;
    const x = [...memory, ...piece.flatMap((id) => row(embeddings, id)), ...memory].map(
      (value, i) => value + (places ? places[i]! : 0),
    );
    const y = evaluate(layer, { batch: 1, tokens, x, sees: (_, i, j) => j <= i }, 'softmax');
    for (let t = m; t < m + piece.length; t++) {
      const state = row(y, t);
      for (let w = 0; w < WORDS; w++)
        logits.push(state.reduce((sum, v, c) => sum + v * head[c * WORDS + w]!, 0));
    }
    memories.push([...y.subarray((tokens - m) * hidden)]);
  }
  return { logits, memories };
}

describe.each<[string, () => Small, number]>([
  ['a learned table of 24 positions', () => small('GPT-2: packed', 24), 24],
  ['rotary embedding, its table of 32 positions', () => small('GPT-NeoX'), 32],
])('%s', (_, build, limit) => {
  const [m, segment] = [3, 16];
  const rows = [
    Array.from({ length: 7 * segment + 5 }, (_, i) => (i * i + 3 * i) % WORDS),
    Array.from({ length: 7 * segment + 5 }, (_, i) => (i * 5 + 2) % WORDS),
  ];
  const { hidden } = build().layer;
  const next = random(23);
  const initial = Float32Array.from({ length: m * hidden }, () => 2 * next());
  const name = `small-${limit}`;

  it('streams a text of eight segments as the published recurrence, in float64, has it', async () => {
    const lm = build();
    const plainFile = path.join(folder, `${name}.onnx`);
    saveModel(lm.model, plainFile);
    const plain = await LanguageModel.open(plainFile, { backend: 'stock' });
    await expect(plain.advance(rows[0]!)).rejects.toThrow();
    await plain.release();
    const memory = path.join(folder, `${name}.safetensors`);
    fs.writeFileSync(memory, safetensors('memory', [m, hidden], initial));
    const vectors = loadMatrix(memory, 'memory');
    const model = loadModel(plainFile);
    addMemoryTokens(model, { tokens: m, segment, vectors });
    const file = path.join(folder, `${name}-memory.onnx`);
    saveModel(model, file);
    const expected = rows.map((ids) => published(lm, ids, segment, initial));

    // The memory is no fixed point, and it is what logits of later segments depend on.
    const { memories, logits } = expected[0]!;
    expect(memories).toHaveLength(9);
    for (let i = 1; i < 8; i++)
      expect(distance(memories[i]!, memories[i + 1]!)).toBeGreaterThan(1e-3);
    const second = published(lm, rows[0]!.slice(segment), segment, initial).logits;
    expect(distance(second, logits.slice(segment * WORDS))).toBeGreaterThan(1e-2);

    // Whole segments of both texts in one run, memory handed on by the caller.
    let past: ort.Tensor = new ort.Tensor('float32', new Float32Array(2 * m * hidden), [
      2,
      m,
      hidden,
    ]);
    for (let at = 0, s = 1; at < rows[0]!.length; at += segment, s++) {
      const pieces = rows.map((ids) => ids.slice(at, at + segment));
      const count = pieces[0]!.length;
      const masked = model.graph.inputs.some((i) => i.name === 'attention_mask');
      const out = await run(model, {
        input_ids: ints([2, count], pieces.flat()),
        ...(masked && { attention_mask: ints([2, count], Array(2 * count).fill(1)) }),
        past_memory: past,
      });
      past = out.present_memory!;
      const wanted = (of: (e: (typeof expected)[0]) => readonly number[]) => expected.flatMap(of);
      const all = wanted((e) => e.logits.slice(at * WORDS, (at + count) * WORDS));
      expect(distance(out.logits!.data as Float32Array, all)).toBeLessThan(2e-5);
      const carried = wanted((e) => e.memories[s]!);
      expect(distance(past.data as Float32Array, carried)).toBeLessThan(2e-5);
    }

    // The segment runner: alone in pieces of any size, and several texts side by side, of different length too.
    const single = await LanguageModel.open(file, { backend: 'stock' });
    for (const chunk of [5, segment, 1000]) {
      await single.reset();
      const pieces: number[] = [];
      for (let at = 0; at < rows[0]!.length; at += chunk) {
        for (const x of (await single.advance(rows[0]!.slice(at, at + chunk))).data) pieces.push(x);
      }
      expect(distance(pieces, logits)).toBeLessThan(2e-5);
    }
    await single.release();
    const batch = await LanguageModel.open(file, { backend: 'stock', batch: 2 });
    let [from, to] = [
      [0, 0],
      [segment + 4, 7],
    ];
    while (from[0]! < rows[0]!.length) {
      const { data } = await batch.advanceRows(rows.map((ids, b) => ids.slice(from[b], to[b])));
      const wanted = expected.flatMap((e, b) => {
        const end = Math.min(to[b]!, rows[b]!.length) * WORDS;
        return e.logits.slice(end - WORDS, end);
      });
      expect(distance(data, wanted)).toBeLessThan(2e-5);
      from = to;
      to = to.map((end) => end + 9);
    }
    expect(batch.stateBytes).toBe(2 * m * hidden * 4);
    await batch.release();
  });
});

describe('GPT-2 as torch exports it, whose table of positions ends at 64', () => {
  it('streams six times that by --variant rmt, as the published recurrence has it', async () => {
    const [m, segment, hidden] = [4, 48, 16];
    const source = path.join(folder, 'gpt2.onnx');
    saveModel(loadTransformers('gpt2.torchscript'), source);
    const next = random(3);
    const data = Float32Array.from({ length: m * hidden }, () => next());
    const memory = path.join(folder, 'gpt2.safetensors');
    fs.writeFileSync(memory, safetensors('memory', [m, hidden], data));
    const file = path.join(folder, 'gpt2-memory.onnx');
    await runJson(
      ...['rewrite', source, '-o', file, '--variant', 'rmt', '--memory-tokens', `${m}`],
      ...['--segment', `${segment}`, '--memory', memory],
    );
    const ids = Array.from({ length: 6 * 64 }, (_, i) => 3 + ((i * i + i) % 61));
    const plain = await LanguageModel.open(source, { backend: 'stock' });
    await expect(plain.advance(ids)).rejects.toThrow();
    await plain.release();
    const expected = await recurrence(source, ids, segment, { dims: [m, hidden], data });
    const lm = await LanguageModel.open(file, { backend: 'stock' });
    for (const chunk of [1000, 31]) {
      await lm.reset();
      const pieces: number[] = [];
      for (let at = 0; at < ids.length; at += chunk) {
        for (const x of (await lm.advance(ids.slice(at, at + chunk))).data) pieces.push(x);
      }
      expect(distance(pieces, expected)).toBeLessThan(1e-4);
    }
    const fresh = await recurrence(source, ids.slice(segment), segment, {
      dims: [m, hidden],
      data,
    });
    expect(distance(fresh, expected.subarray(segment * 64))).toBeGreaterThan(1e-2);
    await lm.release();
  });

  it('takes no encoder and no decoder with past', async () => {
    const model = loadTransformers('gpt2.torchscript');
    const first = path.join(folder, 'first.onnx');
    saveModel(model, first);
    addMemoryTokens(model, { tokens: 4, segment: 48 });
    const file = path.join(folder, 'alone.onnx');
    saveModel(model, file);
    const encoder = path.join(folder, 'encoder.onnx');
    saveModel(loadTransformers('bart_encoder.torchscript'), encoder);
    await expect(LanguageModel.open(file, { encoder })).rejects.toThrow(
      /alone\.onnx: a model with memory tokens must be one file, received an encoder beside it$/,
    );
    await expect(LanguageModel.open(first, { withPast: file })).rejects.toThrow(
      /alone\.onnx: .* must be one file, received \S+first\.onnx for the first call$/,
    );
  });
});

/** A safetensors file of one tensor. */
function safetensors(name: string, shape: readonly number[], data: Float32Array): Buffer {
  const entry = { dtype: 'F32', shape, data_offsets: [0, data.byteLength] };
  const header = Buffer.from(JSON.stringify({ [name]: entry }));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([size, header, Buffer.from(data.buffer)]);
}

/** Bulatov et al. 2022, by hand: the model from its embeddings to its last hidden states, run on [memory | tokens | memory]. */
async function recurrence(
  file: string,
  ids: readonly number[],
  segment: number,
  vectors: { dims: readonly number[]; data: Float32Array },
): Promise<Float32Array> {
  const [m, hidden] = vectors.dims as [number, number];
  const model = loadModel(file);
  const table = embeddingTable(model);
  const placed = model.graph.inputs.some((i) => i.name === 'position_ids');
  const { session, states } = await cut(model, hidden);
  let memory = vectors.data;
  const logits: number[] = [];
  for (let at = 0; at < ids.length; at += segment) {
    const piece = ids.slice(at, at + segment);
    const T = piece.length + 2 * m;
    const x = new Float32Array(T * hidden);
    x.set(memory, 0);
    for (const [i, id] of piece.entries()) {
      x.set(table.subarray(id * hidden, (id + 1) * hidden), (m + i) * hidden);
    }
    x.set(memory, (m + piece.length) * hidden);
    const result = await session.run({
      inputs_embeds: new ort.Tensor('float32', x, [1, T, hidden]),
      input_ids: ints([1, T], new Array(T).fill(9)),
      attention_mask: ints([1, T], new Array(T).fill(1)),
      ...(placed && { position_ids: ints([1, T], [...Array(T).keys()]) }),
    });
    const vocabulary = result.logits!.dims[2]!;
    const all = result.logits!.data as Float32Array;
    for (const l of all.subarray(m * vocabulary, (m + piece.length) * vocabulary)) logits.push(l);
    memory = (result[states]!.data as Float32Array).slice((T - m) * hidden);
  }
  await session.release();
  return Float32Array.from(logits);
}

/** A model from `inputs_embeds` on, its last hidden states an output. */
async function cut(model: Model, hidden: number) {
  const { graph } = model;
  graph.addInput(makeValueInfo('inputs_embeds', 1, ['batch', 'T', hidden]));
  graph.replaceUses(lookupOf(model).outputs[0]!, 'inputs_embeds');
  const states = graph.producer('logits')!.inputs[0]!;
  graph.addOutput(makeValueInfo(states, 1, ['batch', 'T', hidden]));
  const file = path.join(folder, 'cut.onnx');
  saveModel(model, file);
  const session = await ort.InferenceSession.create(file, { logSeverityLevel: 4 });
  return { session, states };
}

/** The Gather that looks up embeddings of `input_ids`, which torch reshapes in GPT-2. */
function lookupOf({ graph }: Model) {
  const reads = (id: string): boolean =>
    id === 'input_ids' ||
    (graph.producer(id)?.is('Reshape') === true && reads(graph.producer(id)!.inputs[0]!));
  return graph.nodes.find((n) => n.is('Gather') && reads(n.inputs[1]!))!;
}

function embeddingTable(model: Model): Float64Array {
  const { graph } = model;
  const lookup = lookupOf(model);
  const weight = graph.producer(lookup.inputs[0]!)?.inputs[0] ?? lookup.inputs[0]!;
  return tensorNumbers(graph.constant(weight)!, model.external);
}
