import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import {
  addMemoryTokens,
  DATA_TYPE,
  loadModel,
  type Model,
  makeTensor,
  makeValueInfo,
  modelBytes,
  saveModel,
  segmentOf,
  tensorNumbers,
} from '../../exporter/index.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { BodyEmitter } from '../../ops/function/emitter.js';
import { TINYLM } from '../support/models.js';
import { FAMILIES, Writer } from './support/families.js';
import { makeLayer } from './support/layer.js';
import { distance, ints, random } from './support/run.js';

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

describe('GPT-2, whose table of positions ends at 24', () => {
  it('reads a text of any length', async () => {
    const file = path.join(folder, 'gpt2.onnx');
    fs.writeFileSync(file, modelBytes(gpt2(24)));
    const plain = await LanguageModel.open(file, { backend: 'stock' });
    const ids = Array.from({ length: 100 }, (_, i) => (i * 7) % 31);
    await expect(plain.advance(ids)).rejects.toThrow();
    const model = loadModel(file);
    addMemoryTokens(model, { tokens: 2, segment: 20 });
    const long = path.join(folder, 'gpt2-memory.onnx');
    saveModel(model, long);
    const lm = await LanguageModel.open(long, { backend: 'stock' });
    const { rows, data } = await lm.advance(ids);
    expect(rows).toBe(100);
    expect(data.every(Number.isFinite)).toBe(true);
    // The first segment sees no other, the second one does.
    await lm.reset();
    const second = await lm.advance(ids.slice(20, 40));
    expect(distance(second.data, data.subarray(20 * 31, 40 * 31))).toBeGreaterThan(1e-4);
    await plain.release();
    await lm.release();
  });
});

/** One layer of GPT-2 with token and position embeddings before it and a head after it; 31 tokens. */
function gpt2(positions: number): Model {
  const family = FAMILIES.find((f) => f.name.startsWith('GPT-2: packed'))!;
  const layer = family.layer?.() ?? makeLayer();
  const model = family.build(new Writer(layer));
  const { graph } = model;
  const next = random(11);
  const weight = (name: string, dims: number[]) =>
    graph.addInitializer(
      makeTensor(
        name,
        'float32',
        dims,
        Array.from({ length: dims[0]! * dims[1]! }, () => next()),
      ),
    );
  const e = new BodyEmitter(model.opset()!, (stem) => model.fresh(`lm/${stem}`));
  const count = e.squeeze(e.dim('input_ids', 1), 0);
  const range = e.op('Range', [e.constant('int64', [0], []), count, e.constant('int64', [1], [])]);
  const sum = e.add(
    e.op('Gather', [weight('wte', [31, layer.hidden]), 'input_ids']),
    e.op('Gather', [weight('wpe', [positions, layer.hidden]), range]),
  );
  graph.replaceUses('x', sum);
  e.op('MatMul', ['y', weight('head', [layer.hidden, 31])], {}, { output: 'logits' });
  graph.insert(e.nodes);
  graph.removeInput('x');
  graph.removeOutput('y');
  graph.addInput(makeValueInfo('input_ids', DATA_TYPE.int64, ['batch', 'tokens']));
  graph.addOutput(makeValueInfo('logits', DATA_TYPE.float32, ['batch', 'tokens', 31]));
  graph.sort();
  return model;
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
  const { session, states } = await cut(model);
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
    });
    const vocabulary = result.logits!.dims[2]!;
    const all = result.logits!.data as Float32Array;
    for (const l of all.subarray(m * vocabulary, (m + piece.length) * vocabulary)) logits.push(l);
    memory = (result[states]!.data as Float32Array).slice((T - m) * hidden);
  }
  await session.release();
  return Float32Array.from(logits);
}

/** tinylm from `inputs_embeds` on, its last hidden states an output. */
async function cut(model: Model) {
  const { graph } = model;
  const lookup = graph.nodes.find((n) => n.is('Gather') && n.inputs[1] === 'input_ids')!;
  graph.addInput(makeValueInfo('inputs_embeds', 1, ['batch', 'T', 256]));
  graph.replaceUses(lookup.outputs[0]!, 'inputs_embeds');
  const states = graph.producer('logits')!.inputs[0]!;
  graph.addOutput(makeValueInfo(states, 1, ['batch', 'T', 256]));
  const file = path.join(folder, 'cut.onnx');
  saveModel(model, file);
  const session = await ort.InferenceSession.create(file, { logSeverityLevel: 4 });
  return { session, states };
}

function embeddingTable(model: Model): Float64Array {
  const { graph } = model;
  const lookup = graph.nodes.find((n) => n.is('Gather') && n.inputs[1] === 'input_ids')!;
  const weight = graph.producer(lookup.inputs[0]!)?.inputs[0] ?? lookup.inputs[0]!;
  return tensorNumbers(graph.constant(weight)!, model.external);
}
