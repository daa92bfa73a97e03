/** Models as the visitor gives them. */

import { decodeModel, Model } from '../../../../exporter/browser.js';
import type { ExternalReader } from '../../../../exporter/ir/index.js';
import { makeTokenizer, parseJson, type Tokenizer } from '../../../../exporter/text/tokens.js';
import { FlaError } from '../../../../ops/error.js';
import { readModel } from '../../../../runtime/web/onnx/model.js';
import modelUrl from '../../../../test/fixtures/tinylm/model_kv.onnx?url';
import tokenizerUrl from '../../../../test/fixtures/tinylm/tokenizer.json?url';
import weightsUrl from '../../../../test/fixtures/tinylm/weights.fp16.bin?url';
import type { GivenFile, Progress } from '../protocol.js';

/** A model with what belongs to it. */
export interface Opened {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** Files of external data, by the names that the model gives them. */
  readonly external: ReadonlyMap<string, Uint8Array>;
  readonly tokenizer: Tokenizer | undefined;
}

function text(file: GivenFile): string {
  return new TextDecoder().decode(file.bytes);
}

function readTokenizer(files: readonly GivenFile[]): Tokenizer | undefined {
  const file = files.find(({ name }) => name === 'tokenizer.json');
  if (!file) return undefined;
  const config = files.find(({ name }) => name === 'tokenizer_config.json');
  return makeTokenizer(
    parseJson(text(file), file.name),
    config ? parseJson(text(config), config.name) : {},
    file.name,
  );
}

/** Where the model's tensors lie, other than in it. */
function locations(bytes: Uint8Array): string[] {
  const { initializers } = readModel(bytes);
  const all = [...initializers.values()].flatMap(({ external }) => external?.location ?? []);
  return [...new Set(all)];
}

/** Tells the model from its company. @throws FlaError in words for the visitor */
export function openFiles(files: readonly GivenFile[]): Opened {
  const models = files.filter(({ name }) => name.toLowerCase().endsWith('.onnx'));
  if (models.length !== 1) {
    const names = files.map(({ name }) => name).join(', ');
    throw new FlaError(
      'invalid_argument',
      models.length === 0
        ? `None of these is an .onnx file: ${names}. Choose a model, together with its tokenizer.json if it has one.`
        : `These are ${models.length} models: ${models.map(({ name }) => name).join(', ')}. Choose one.`,
    );
  }
  const [{ name, bytes }] = models;
  const external = new Map<string, Uint8Array>();
  for (const location of locations(bytes)) {
    const base = location.split('/').at(-1);
    const file = files.find((given) => given.name === base);
    if (!file) {
      throw new FlaError(
        'not_found',
        `${name} keeps weights in the file ${base}. Choose both together.`,
      );
    }
    external.set(location, file.bytes);
  }
  return { name, bytes, external, tokenizer: readTokenizer(files) };
}

/** A file of the page, with progress in bytes. */
async function download(
  url: string,
  onBytes: (done: number, total: number) => void,
): Promise<Uint8Array> {
  const response = await fetch(url);
  if (!response.ok || !response.body)
    throw new FlaError(
      'not_found',
      `The sample could not be fetched: the server answers ${response.status}.`,
    );
  const total = Number(response.headers.get('Content-Length') ?? 0);
  const chunks: Uint8Array[] = [];
  let done = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    done += part.value.length;
    onBytes(done, total);
  }
  const bytes = new Uint8Array(done);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

/** Fetches the sample. */
export async function fetchSample(tell: (progress: Progress) => void): Promise<GivenFile[]> {
  const parts = [
    { name: 'tinylm.onnx', url: modelUrl },
    { name: 'weights.fp16.bin', url: weightsUrl },
    { name: 'tokenizer.json', url: tokenizerUrl },
  ].map((part) => ({ ...part, done: 0, total: -1 }));
  const sum = (size: (part: (typeof parts)[number]) => number) =>
    parts.reduce((total, part) => total + size(part), 0);
  return Promise.all(
    parts.map(async (part) => ({
      name: part.name,
      bytes: await download(part.url, (done, total) => {
        Object.assign(part, { done, total });
        const here = sum((p) => p.done);
        const isKnown = parts.every((p) => p.total >= 0);
        // What is compressed on its way does not tell its size: what is here of it then stands for the whole.
        tell({
          label: `Fetching the sample, ${(here / 1e6).toFixed(1)} MB`,
          part: isKnown ? here / sum((p) => Math.max(p.total, p.done)) : undefined,
        });
      }),
    })),
  );
}

/** External data out of memory, for the rewriter. */
class Files implements ExternalReader {
  constructor(readonly files: ReadonlyMap<string, Uint8Array>) {}

  read(location: string, offset: number, length: number | undefined): Uint8Array {
    const file = this.files.get(location);
    if (!file) throw new FlaError('not_found', `The file ${location} is missing.`);
    return file.subarray(offset, length === undefined ? undefined : offset + length);
  }
}

/** The model for the rewriter, which changes it: a new one every time. */
export function parse({ bytes, name, external }: Opened): Model {
  return new Model(decodeModel(bytes, name), new Files(external));
}
