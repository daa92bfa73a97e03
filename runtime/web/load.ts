import type { InferenceSession } from 'onnxruntime-web';
import { FlaError } from '../../ops/error.js';
import { type OnnxModel, readModel } from './onnx/model.js';

type ExternalData = NonNullable<InferenceSession.SessionOptions['externalData']>;

/** Files of external data by the location that the model gives them. */
export type Files = ReadonlyMap<string, Uint8Array>;

/** Node's file access; not by an import, which bundlers for browsers would follow. */
const files: typeof import('node:fs/promises') | undefined =
  typeof process === 'undefined' ? undefined : process.getBuiltinModule?.('node:fs/promises');

function unreadable(url: string, why: string, cause?: unknown): FlaError {
  return new FlaError('not_found', `Session: ${url} cannot be read: ${why}`, { cause });
}

/** A file by its URL; in Node by its path, too. */
async function read(url: string): Promise<Uint8Array> {
  if (files && !/^(https?|data|blob):/.test(url)) {
    const place = url.startsWith('file:') ? new URL(url) : url;
    return files.readFile(place).catch((cause) => {
      throw unreadable(url, cause.message, cause);
    });
  }
  const response = await fetch(url).catch((cause) => {
    throw unreadable(url, cause.message, cause);
  });
  if (!response.ok) throw unreadable(url, `the server answers ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function readGiven(data: Exclude<ExternalData[number], string>['data']): Promise<Uint8Array> {
  if (typeof data === 'string') return read(data);
  if (data instanceof Blob) return new Uint8Array(await data.arrayBuffer());
  return data instanceof Uint8Array ? data : new Uint8Array(data);
}

/** `./a` and `a` are the same place. */
function plain(location: string): string {
  return location.replace(/^\.\//, '');
}

/** A file beside the model. Nothing outside of its folder is read. */
function beside(model: string, location: string): string {
  if (/^([a-z]+:|\/|\\)|(^|[/\\])\.\.([/\\]|$)/i.test(location)) {
    throw new FlaError(
      'invalid_model',
      `external data '${location}': must be a relative path inside the model's folder`,
    );
  }
  const path = location.split('/').map(encodeURIComponent).join('/');
  if (/^[a-z]+:/i.test(model)) return new URL(path, model).href;
  return model.replace(/[^/]*$/, '') + (files ? location : path);
}

/**
 * The files that the model's tensors lie in: those that the caller gives, and the others from beside a model that was given by its URL.
 *
 * @throws FlaError `not_found` for what cannot be had
 */
async function readExternalData(
  locations: Iterable<string>,
  given: ExternalData | undefined,
  model: unknown,
): Promise<Files> {
  const found = new Map<string, Uint8Array>();
  for (const file of given ?? []) {
    const { path, data } = typeof file === 'string' ? { path: file, data: file } : file;
    found.set(plain(path), await readGiven(data));
  }
  for (const location of new Set([...locations].map(plain))) {
    if (found.has(location)) continue;
    if (typeof model !== 'string') {
      throw new FlaError(
        'not_found',
        `external data '${location}': must be given in the option externalData, as the model is given as bytes; received ${[...found.keys()].join(' ') || 'none'}`,
      );
    }
    found.set(location, await read(beside(model, location)));
  }
  return found;
}

/** A range of a file of external data; shorter when the file ends before. */
export function fileRange(
  files: Files,
  location: string,
  offset: number,
  bytes: number,
): Uint8Array {
  return files.get(plain(location))!.subarray(offset, offset + bytes);
}

/** A model that was read, with its files. */
export interface LoadedFile {
  readonly model: OnnxModel;
  readonly files: Files;
}

/** Where a model is read from, and may be read again. */
export class ModelSource {
  /** @param model A URL, or the bytes themselves, which then must be left as they are. */
  constructor(
    readonly model: string | Uint8Array | ArrayBuffer,
    readonly externalData: ExternalData | undefined,
  ) {}

  /**
   * Reads the model and its external data: from the files that the caller gives, and from beside the model's URL.
   *
   * @throws FlaError `not_found`, `invalid_model`
   */
  async read(): Promise<LoadedFile> {
    const { model: given } = this;
    const bytes =
      typeof given === 'string'
        ? await read(given)
        : given instanceof Uint8Array
          ? given
          : new Uint8Array(given);
    if (bytes.length === 0) throw new FlaError('invalid_model', 'Session: the model is empty');
    const model = readModel(bytes);
    const locations = [...model.initializers.values()].flatMap(({ external }) =>
      external ? [external.location] : [],
    );
    return { model, files: await readExternalData(locations, this.externalData, given) };
  }
}
