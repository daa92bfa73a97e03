import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import onnxProto from 'onnx-proto';
import { afterAll, describe, expect, it } from 'vitest';
import {
  buildModel,
  loadModel,
  makeNode,
  makeTensor,
  modelBytes,
  parseModel,
  saveModel,
  saveModelAsync,
  tensorNumbers,
} from '../../../exporter/index.js';
import { OCR_RECOGNISER } from '../../support/models.js';

const { onnx } = onnxProto;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'onnx-fla-ir-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

/** Appends a length-delimited field to serialized bytes. */
function withField(bytes: Uint8Array, field: number, payload: string): Uint8Array {
  const body = new TextEncoder().encode(payload);
  const tag = (field << 3) | 2;
  const varint = (n: number) => (n < 128 ? [n] : [(n & 127) | 128, n >> 7]);
  return Uint8Array.from([...bytes, ...varint(tag), ...varint(body.length), ...body]);
}

const small = () =>
  buildModel({
    inputs: { x: ['float32', ['B', 2]] },
    outputs: { y: ['float32', ['B', 2]] },
    nodes: [makeNode('Add', ['x', 'w'], ['y'])],
    initializers: [makeTensor('w', 'float32', [2], [1, -2.5])],
    metadata: { author: 'someone' },
  });

describe('reader and writer', () => {
  it('gives back the bytes of a real model', () => {
    const bytes = fs.readFileSync(OCR_RECOGNISER);
    expect(Buffer.compare(modelBytes(parseModel(bytes)), bytes)).toBe(0);
  });

  it('keeps fields that its schema does not know', () => {
    const bytes = withField(modelBytes(small()), 99, 'from the future');
    const again = modelBytes(parseModel(bytes));
    expect(Buffer.from(again).toString('latin1')).toContain('from the future');
    expect(again.length).toBe(bytes.length);
  });

  it('is read alike by an independent reader', () => {
    const m = onnx.ModelProto.decode(modelBytes(small()));
    expect(m.graph!.node![0]!.opType).toBe('Add');
    expect(m.metadataProps![0]!.key).toBe('author');
    const raw = Uint8Array.from(m.graph!.initializer![0]!.rawData!);
    expect([...new Float32Array(raw.buffer)]).toEqual([1, -2.5]);
  });

  it('moves tensors to external data and reads them back', () => {
    const file = path.join(folder, 'external.onnx');
    saveModel(small(), file, { externalThreshold: 1 });
    expect(fs.readdirSync(folder).sort()).toEqual(['external.onnx', 'external.onnx.data']);
    const model = loadModel(file);
    const w = model.graph.initializer('w')!;
    expect(w.rawData?.length ?? 0).toBe(0);
    expect([...tensorNumbers(w, model.external)]).toEqual([1, -2.5]);
    const copy = path.join(folder, 'copy.onnx');
    saveModel(model, copy);
    fs.rmSync(`${file}.data`);
    const second = loadModel(copy);
    expect([...tensorNumbers(second.graph.initializer('w')!, second.external)]).toEqual([1, -2.5]);
  });

  it('names the byte where a broken file stops making sense', () => {
    const bytes = modelBytes(small());
    expect(() => parseModel(bytes.subarray(0, bytes.length - 5), 'cut.onnx')).toThrow(
      /cut\.onnx: not a readable ONNX model: decoding stopped at byte \d+/,
    );
    expect(() => parseModel(new TextEncoder().encode('hello'), 'text')).toThrow(/^text: /);
    expect(() => parseModel(new Uint8Array(0), 'empty')).toThrow(/it has no graph/);
  });

  it('refuses external data outside the folder of the model', () => {
    const file = path.join(folder, 'escape.onnx');
    const model = small();
    const w = model.graph.initializer('w')!;
    delete w.rawData;
    w.dataLocation = 1;
    w.externalData = [{ key: 'location', value: '../../etc/passwd' }];
    fs.writeFileSync(file, modelBytes(model));
    const read = loadModel(file);
    expect(() => tensorNumbers(read.graph.initializer('w')!, read.external)).toThrow(
      /must be a relative path inside the model's folder/,
    );
  });

  it.each([
    [
      'than its file has',
      [2 ** 20, 2 ** 20],
      'claims.bin',
      /'claims.bin': bytes 0\.\.4398046511104 needed, the file has 8$/,
    ],
    [
      'than the disk has',
      [2 ** 20, 2 ** 21],
      'sparse.bin',
      /full\.onnx: cannot be written: its external data needs 8796093022208 bytes, .* has \d+ free$/,
    ],
  ])('copies nothing of a tensor that claims more bytes %s', (_, dims, location, message) => {
    const source = fs.mkdtempSync(path.join(folder, 'claims-'));
    fs.writeFileSync(path.join(source, 'claims.bin'), new Uint8Array(8));
    fs.writeFileSync(path.join(source, 'sparse.bin'), '');
    fs.truncateSync(path.join(source, 'sparse.bin'), 2 ** 43);
    const model = small();
    const w = model.graph.initializer('w')!;
    delete w.rawData;
    Object.assign(w, {
      dims,
      dataLocation: 1,
      externalData: [{ key: 'location', value: location }],
    });
    fs.writeFileSync(path.join(source, 'in.onnx'), modelBytes(model));
    const before = fs.readdirSync(source);
    const read = loadModel(path.join(source, 'in.onnx'));
    expect(() => saveModel(read, path.join(source, 'full.onnx'))).toThrow(message);
    expect(fs.readdirSync(source)).toEqual(before);
  });

  it('leaves nothing behind when writing is interrupted', async () => {
    const before = fs.readdirSync(folder);
    const stop = new AbortController();
    const target = path.join(folder, 'interrupted.onnx');
    const saving = saveModelAsync(small(), target, {
      externalThreshold: 1,
      signal: stop.signal,
      onProgress: () => {
        expect(fs.readdirSync(folder).length).toBe(before.length + 1);
        stop.abort();
      },
    });
    await expect(saving).rejects.toMatchObject({ code: 'aborted' });
    expect(fs.readdirSync(folder)).toEqual(before);
  });

  it('leaves nothing behind when writing fails', () => {
    const target = path.join(folder, 'no-such-folder', 'x.onnx');
    expect(() => saveModel(small(), target)).toThrow(/cannot be written/);
    expect(fs.existsSync(path.dirname(target))).toBe(false);
  });
});
