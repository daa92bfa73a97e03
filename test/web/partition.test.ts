/** The cut without a GPU: pieces run in onnxruntime-web on wasm, com.fla calls by their function bodies, the whole against the whole. */
import fs from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-web';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  loadModel,
  modelBytes,
  parseModel,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { type LoadedFile, ModelSource } from '../../runtime/web/load.js';
import { readModel } from '../../runtime/web/onnx/model.js';
import { MODEL_FILE } from '../../runtime/web/onnx/write.js';
import { setOrt } from '../../runtime/web/ort.js';
import { type Call, compile, type Part, type Program } from '../../runtime/web/program.js';
import { schedule } from '../../runtime/web/schedule.js';
import { findTypes } from '../../runtime/web/types.js';
import { Random } from '../cases/tensors.js';
import { OCR_RECOGNISER } from '../support/models.js';
import { hardModel, TIED_WIDTH, tiedModel, WIDTH } from './support/calls.js';
import { rewriteTinylm, temporaryFolder, tokens } from './support/models.js';

const folder = temporaryFolder();
afterAll(() => fs.rmSync(folder, { recursive: true }));
beforeAll(() => {
  ort.env.wasm.numThreads = 1;
  setOrt(ort);
});

type Feeds = Record<string, ort.Tensor>;
const options = { executionProviders: ['wasm'], logSeverityLevel: 3 } as const;

/** Every call is taken, as far as its node tells. */
const takesAll = () => undefined;

class Cut {
  private constructor(
    readonly file: LoadedFile,
    readonly program: Program,
  ) {}

  static async of(path: string, supports: () => string | undefined = takesAll): Promise<Cut> {
    const file = await new ModelSource(path, undefined).read();
    return new Cut(file, await compile(file.model, supports));
  }

  get outputs(): string[] {
    return this.file.model.outputs.map(({ name }) => name);
  }

  get parts(): Part[] {
    return this.program.steps.flatMap((step) => (step.kind === 'piece' ? [step.part] : []));
  }

  get calls(): Call[] {
    return this.program.steps.flatMap((step) => (step.kind === 'calls' ? step.calls : []));
  }

  async runPart(part: Part, values: Map<string, ort.Tensor>): Promise<void> {
    const { files, model } = this.file;
    const externalData = [...files, [MODEL_FILE, model.bytes] as const].map(([path, data]) => ({
      path,
      data,
    }));
    const session = await ort.InferenceSession.create(part.bytes, { ...options, externalData });
    expect(session.inputNames).toEqual(part.inputs);
    const feeds = Object.fromEntries(part.inputs.map((name) => [name, values.get(name)!]));
    const results = await session.run(feeds);
    for (const [name, tensor] of Object.entries(results)) values.set(name, tensor);
    await session.release();
  }

  /** As the engine runs it, calls by their bodies, values being dropped when they are done with. */
  async run(feeds: Feeds, outputs: readonly string[] = this.outputs): Promise<Feeds> {
    const values = new Map(Object.entries(feeds));
    if (this.program.constants) await this.runPart(this.program.constants, values);
    for (const name of this.program.uploads) {
      const { data, dims } = this.file.model.initializers.get(name)!;
      const floats = new Float32Array(Uint8Array.from(data!).buffer);
      values.set(name, new ort.Tensor('float32', floats, dims));
    }
    const { steps, inputs } = schedule(this.program, outputs);
    for (const name of inputs) expect(values.has(name)).toBe(true);
    for (const step of steps) {
      if (step.kind === 'piece') await this.runPart(step.part, values);
      else for (const call of step.calls) await this.runPart(call.body!, values);
      for (const name of step.done) if (!outputs.includes(name)) values.delete(name);
    }
    return Object.fromEntries(outputs.map((name) => [name, values.get(name)!]));
  }
}

async function whole(file: string, feeds: Feeds, cut: Cut): Promise<Feeds> {
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(file)), {
    ...options,
    externalData: [...cut.file.files].map(([name, data]) => ({ path: name, data })),
  });
  const results = await session.run(feeds);
  await session.release();
  return results;
}

function expectSame(ours: Feeds, theirs: Feeds): void {
  for (const [name, tensor] of Object.entries(ours)) {
    expect(tensor.dims, name).toEqual(theirs[name].dims);
    const [a, b] = [tensor, theirs[name]].map((t) => Array.from(t.data as Float32Array, Number));
    const size = Math.max(...b.map(Math.abs), 1e-30);
    const worst = Math.max(0, ...a.map((value, i) => Math.abs(value - b[i])));
    // The same kernels compute the same; fusions across cuts may differ in the last digits.
    expect(worst / size, name).toBeLessThan(2e-6);
  }
}

const zeros = (...dims: number[]) =>
  new ort.Tensor('float32', new Float32Array(dims.reduce((a, b) => a * b, 1)), dims);

function randomTensor(seed: string, ...dims: number[]): ort.Tensor {
  const random = new Random(seed);
  const size = dims.reduce((a, b) => a * b, 1);
  return new ort.Tensor(
    'float32',
    Float32Array.from({ length: size }, () => random.normal()),
    dims,
  );
}

function hardFeeds(wide: boolean, B: number, T: number): Feeds {
  return {
    x: randomTensor('x', B, T, WIDTH),
    wide: new ort.Tensor('bool', [wide], []),
    past_conv: randomTensor('conv', B, WIDTH, 3),
    'past.0': randomTensor('p0', B, 2, 8, 8),
    'past.1': randomTensor('p1', B, 2, 8, 8),
  };
}

describe('a model with everything awkward', () => {
  const file = path.join(folder, 'hard.onnx');
  let cut: Cut;
  beforeAll(async () => {
    const model = hardModel();
    fs.writeFileSync(file, modelBytes(model));
    cut = await Cut.of(file);
  });

  it('is cut at the calls of the main graph, and nowhere else', () => {
    expect(cut.program.steps.map((step) => step.kind)).toEqual([
      'piece',
      'calls',
      'piece',
      'calls',
      'piece',
      'calls',
      'piece',
    ]);
    expect(cut.calls.map(({ name }) => name)).toEqual(['conv', 'first', 'second']);
  });

  it('has its weights in every piece that reads them, as references', () => {
    const { data } = cut.file.model.initializers.get('weight')!;
    expect(data!.buffer).toBe(cut.file.model.bytes.buffer);
    const latin = new TextDecoder('latin1');
    const texts = cut.parts.map(({ bytes }) => latin.decode(bytes));
    expect(texts.filter((text) => text.includes('weight')).length).toBe(3);
    for (const text of texts) expect(text).not.toContain(latin.decode(data!.subarray(0, 64)));
    expect(cut.parts.map(({ hasData }) => hasData)).toEqual([false, true, true, true]);
  });

  it('computes constants of the calls once', () => {
    expect([...cut.program.constants!.outputs].sort()).toEqual(['fixed', 'taps32']);
    expect(cut.program.uploads).toEqual(['weight']);
  });

  it.each([
    [true, 1, 5],
    [false, 2, 7],
    [true, 2, 1],
  ])('gives what the whole gives: wide %s, B %i, T %i', async (wide, B, T) => {
    const feeds = hardFeeds(wide, B, T);
    expectSame(await cut.run(feeds), await whole(file, feeds, cut));
  });

  it('does only what the wanted outputs need', async () => {
    const { steps, inputs } = schedule(cut.program, ['present_conv']);
    expect(steps.map((step) => step.kind)).toEqual(['piece', 'calls']);
    expect(inputs).toEqual(['x', 'past_conv']);
    const feeds = hardFeeds(true, 1, 4);
    const { x, past_conv } = feeds;
    expectSame(await cut.run({ x, past_conv }, ['present_conv']), await whole(file, feeds, cut));
  });

  it('finds types and shapes by asking', async () => {
    const types = await findTypes(cut.file.model, ['q1', 'mask', 'present.0', 'x']);
    expect(types.get('q1')).toMatchObject({ type: 1, shape: ['', '', WIDTH] });
    expect(types.get('mask')).toMatchObject({ type: 9 });
    expect(types.get('present.0')).toMatchObject({ type: 1 });
    expect(types.get('x')).toMatchObject({ type: 1, shape: ['B', 'T', WIDTH] });
  });

  it('leaves calls that the kernels do not take in their pieces', async () => {
    const none = await Cut.of(file, () => 'no kernels');
    // Whether the kernels take the other two shows only when there are tensors: their sizes come out of a call before.
    expect(none.calls.map(({ name }) => name)).toEqual(['first', 'second']);
    const feeds = hardFeeds(true, 1, 3);
    expectSame(await none.run(feeds), await whole(file, feeds, none));

    const seen: string[] = [];
    const model = readModel(new Uint8Array(fs.readFileSync(file)));
    const program = await compile(model, ({ op, inputs }) => {
      seen.push(`${op} ${inputs.query?.shape ?? inputs.input?.shape}`);
      return op === 'LinearAttention' ? 'not this one' : undefined;
    });
    // What is known of its sizes is put before the kernels.
    expect(seen).toContain('CausalConvWithState 2,16,2');
    const calls = program.steps.flatMap((step) => (step.kind === 'calls' ? step.calls : []));
    expect(calls.map(({ name }) => name)).toEqual(['conv', 'first', 'second']);
  });

  it('refuses a call that nothing can run', async () => {
    const model = hardModel();
    model.proto.functions = model.proto.functions.filter(
      ({ name }) => name !== 'CausalConvWithState',
    );
    await expect(compile(readModel(modelBytes(model)), () => 'not this one')).rejects.toThrow();
  });

  it('is read whatever the order of its nodes', async () => {
    const model = parseModel(new Uint8Array(fs.readFileSync(file)));
    model.proto.graph.node.reverse();
    const mixed = readModel(modelBytes(model));
    const made = new Set([
      ...mixed.initializers.keys(),
      ...mixed.inputs.map(({ name }) => name),
      '',
    ]);
    for (const node of mixed.nodes) {
      for (const value of [...node.inputs, ...node.captured]) expect(made).toContain(value);
      for (const value of node.outputs) made.add(value);
    }
    expect(mixed.nodes.length).toBe(cut.file.model.nodes.length);
  });
});

it('a large weight that two pieces read is held once', async () => {
  const file = path.join(folder, 'tied.onnx');
  fs.writeFileSync(file, modelBytes(tiedModel()));
  const cut = await Cut.of(file);
  expect(cut.program.uploads).toEqual(['w']);
  expect(cut.parts.map(({ inputs, hasData }) => [inputs, hasData])).toEqual([
    [['x', 'w'], false],
    [['o', 'w'], false],
  ]);
  const feeds = { x: randomTensor('x', 1, 3, TIED_WIDTH) };
  expectSame(await cut.run(feeds), await whole(file, feeds, cut));
});

describe('rewritten models', () => {
  it('tinylm: a piece more than calls, the same logits and states', async () => {
    const file = await rewriteTinylm(folder, 'tinylm.onnx');
    const cut = await Cut.of(file);
    expect(cut.program.steps.length).toBe(9);
    const T = 9;
    const feeds: Feeds = {
      input_ids: new ort.Tensor('int64', BigInt64Array.from(tokens(T), BigInt), [1, T]),
      attention_mask: new ort.Tensor('int64', new BigInt64Array(T).fill(1n), [1, T]),
      'past_key_values.length': new ort.Tensor('int64', [3n], [1]),
    };
    for (let i = 0; i < 4; i++) feeds[`past_key_values.${i}.state`] = zeros(1, 2, 64, 64);
    expectSame(await cut.run(feeds), await whole(file, feeds, cut));
  });

  it('PP-OCRv4: opset 9, weights in Constant nodes', async () => {
    const model = loadModel(OCR_RECOGNISER);
    await rewriteModel(model, { variant: 'linear' });
    const file = path.join(folder, 'ocr.onnx');
    saveModel(model, file);
    const cut = await Cut.of(file);
    expect(cut.calls.length).toBe(2);
    const total = cut.parts.reduce((sum, { bytes }) => sum + bytes.length, 0);
    expect(total).toBeLessThan(cut.file.model.bytes.length / 10);
    const feeds = { x: randomTensor('image', 1, 3, 48, 96) };
    expectSame(await cut.run(feeds), await whole(file, feeds, cut));
  });
});

describe('what is no model', () => {
  it.each([
    ['nothing but a varint', Uint8Array.of(8, 1), 'has no graph'],
    [
      'a field beyond the end',
      Uint8Array.of(58, 100, 1),
      'decoding stopped at byte 2 of 3: a field reaches beyond the end',
    ],
    ['a number without an end', new Uint8Array(12).fill(255), 'a number of more than 10 bytes'],
    ['text', new TextEncoder().encode('<!doctype html>'), 'not a'],
  ])('%s', (_, bytes, message) => {
    expect(() => readModel(bytes)).toThrow(
      expect.objectContaining({ code: 'invalid_model', message: expect.stringContaining(message) }),
    );
  });

  it('a value that nothing makes', () => {
    const model = hardModel();
    model.proto.graph.node = model.proto.graph.node.filter((node) => !node.output.includes('c'));
    expect(() => readModel(modelBytes(model))).toThrow(
      /input 'c' of node .* must be made by the graph/,
    );
  });
});
