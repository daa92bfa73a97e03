import fs from 'node:fs';
import path from 'node:path';
import { FlaError } from '../../ops/error.js';
import { byteLength } from './dtype.js';
import { Model } from './graph.js';
import {
  type AttributeProto,
  decodeModel,
  encodeModel,
  type GraphProto,
  type TensorProto,
} from './proto.js';
import { kindOf, readRegularFile } from './read_file.js';
import {
  type ExternalReader,
  elementCount,
  externalLocation,
  setExternalLocation,
  tensorBytes,
  tensorDims,
  tensorDtype,
} from './tensor.js';
import { replaceFiles, unfinished, writeAll } from './write_files.js';

const CHUNK = 1 << 26; // bytes copied at a time
const ALIGN = 4096; // offset alignment that lets a runtime map tensors from the file
const SMALL = 1024; // bytes of a tensor that is better read with the graph
const INLINE_LIMIT = 1.9 * 2 ** 30; // protobuf messages end at 2 GiB

/** Reads external tensor data from files beside a model; nothing outside its folder is opened. */
export class FolderReader implements ExternalReader {
  private readonly open = new Map<string, { fd: number; size: number }>();

  /** @param folder the folder that the model file lies in */
  constructor(readonly folder: string) {}

  read(location: string, offset: number, length: number | undefined): Uint8Array {
    const { fd, size } = this.file(location);
    const count = length ?? size - offset;
    this.check(location, offset, count);
    const out = allocate(count, location);
    for (let done = 0; done < count; ) {
      const n = fs.readSync(fd, out, done, Math.min(CHUNK, count - done), offset + done);
      if (n === 0) throw new FlaError('io', `external data '${location}': unexpected end of file`);
      done += n;
    }
    return out;
  }

  /** @throws FlaError `invalid_model` when the file ends before these bytes do */
  check(location: string, offset: number, count: number): void {
    const { size } = this.file(location);
    if (offset + count <= size) return;
    throw new FlaError(
      'invalid_model',
      `external data '${location}': bytes ${offset}..${offset + count} needed, the file has ${size}`,
    );
  }

  close(): void {
    for (const { fd } of this.open.values()) fs.closeSync(fd);
    this.open.clear();
  }

  private file(location: string): { fd: number; size: number } {
    const known = this.open.get(location);
    if (known) return known;
    const full = insideFolder(this.folder, location);
    let fd: number;
    let stat: fs.Stats;
    try {
      stat = fs.statSync(full);
      const what = kindOf(stat);
      if (what) {
        throw new FlaError(
          'invalid_model',
          `external data '${location}': must be a regular file, received ${what}`,
        );
      }
      fd = fs.openSync(full, 'r');
    } catch (error) {
      if (error instanceof FlaError) throw error;
      throw new FlaError('io', `external data '${location}': cannot be read: expected ${full}`, {
        cause: error,
      });
    }
    const entry = { fd, size: stat.size };
    this.open.set(location, entry);
    return entry;
  }
}

function allocate(count: number, location: string): Uint8Array {
  try {
    return new Uint8Array(count);
  } catch (cause) {
    throw new FlaError(
      'unsupported',
      `external data '${location}': ${count} bytes are too many to hold in memory`,
      { cause },
    );
  }
}

/** The path of `location` in `folder`, symbolic links resolved. @throws FlaError if it leads outside */
function insideFolder(folder: string, location: string): string {
  const base = fs.realpathSync(folder);
  const full = path.resolve(base, location);
  const within = (p: string) => p.startsWith(base.endsWith(path.sep) ? base : base + path.sep);
  const real = path.isAbsolute(location) || !within(full) ? undefined : followed(full);
  if (real === undefined || !within(real)) {
    throw new FlaError(
      'invalid_model',
      `external data '${location}': must be a relative path inside the model's folder`,
    );
  }
  return real;
}

function followed(file: string): string {
  return fs.existsSync(file) ? fs.realpathSync(file) : file;
}

/**
 * Opens an ONNX file. Tensor data stays where it is: inline bytes are views of the file's content,
 * external data is read when asked for.
 *
 * @throws FlaError `io` when the file cannot be read, `invalid_model` when it is no ONNX model
 */
export function loadModel(file: string): Model {
  return new Model(
    decodeModel(readRegularFile(file), file),
    new FolderReader(path.dirname(path.resolve(file))),
  );
}

/**
 * Where the data of tensors goes:
 *
 * - `keep`: what lay outside of the model file goes to `<file>.data`, and all else where the file would pass 2 GB
 * - `separate`: every tensor of 1024 bytes or more goes to `<file>.data`
 * - `inline`: everything goes into the model file, which ends at 2 GB
 * - `share`: what lay outside stays there and is not copied; the new file must be in the folder of the old one
 */
export const EXTERNAL_LAYOUTS = ['keep', 'separate', 'inline', 'share'] as const;
export type ExternalLayout = (typeof EXTERNAL_LAYOUTS)[number];

export interface SaveOptions {
  /** Default `keep`. */
  externalData?: ExternalLayout;
  /** Bytes from which a tensor moves to `<file>.data`; default 1024 with `separate`, else those that must. */
  externalThreshold?: number;
  /** Other files, by path, whose texts are written and replaced together with the model. */
  beside?: Readonly<Record<string, string>>;
  /** Called while data is copied, with bytes done and in all. */
  onProgress?: (done: number, total: number) => void;
  /** Stops the copy; nothing is left behind. */
  signal?: AbortSignal;
}

/**
 * Writes a model. External data is streamed into one file, `<file>.data`, beside it, so that the
 * result stands alone, unless `externalData` says otherwise. Files are written under temporary names and renamed when complete; a failure
 * leaves what was there before.
 *
 * @throws FlaError `io` naming the path and the system's reason; `invalid_argument` for a layout that is not possible;
 * `aborted` when the signal fired
 */
export function saveModel(model: Model, file: string, options: SaveOptions = {}): void {
  for (const _ of saveSteps(model, file, options));
}

/** `saveModel` that lets other work run between pieces, so that a signal can fire while it copies. */
export async function saveModelAsync(
  model: Model,
  file: string,
  options: SaveOptions = {},
): Promise<void> {
  for (const _ of saveSteps(model, file, options)) await new Promise(setImmediate);
}

/** Does the work of `saveModel`, and pauses after every piece copied. */
function* saveSteps(model: Model, file: string, options: SaveOptions): Generator<void> {
  const target = path.resolve(file);
  const data = `${target}.data`;
  const layout = options.externalData ?? 'keep';
  const { beside = {} } = options;
  const others = Object.keys(beside);
  if (layout === 'share') checkShared(model, target);
  const moves = place(planExternal(model, layout, options.externalThreshold));
  const inlined = layout === 'inline' ? planInline(model) : [];
  const restore = [...moves.map((m) => m.tensor), ...inlined].map((tensor) => ({
    tensor,
    copy: { ...tensor },
  }));
  try {
    for (const tensor of inlined) {
      tensor.rawData = tensorBytes(tensor, model.external);
      delete tensor.dataLocation;
      delete tensor.externalData;
      yield;
      throwIfAborted(options.signal);
    }
    if (moves.length > 0) {
      checkRoom(model, moves, file);
      yield* writeExternal(model, moves, data, options);
    }
    for (const name of others) fs.writeFileSync(unfinished(name), beside[name]!);
    fs.writeFileSync(unfinished(target), encodeModel(model.proto));
    yield;
    throwIfAborted(options.signal);
    replaceFiles([...(moves.length > 0 ? [data] : []), ...others, target]);
  } catch (error) {
    for (const f of [target, data, ...others]) fs.rmSync(unfinished(f), { force: true });
    if (error instanceof FlaError) throw error;
    throw new FlaError('io', `${file}: cannot be written: ${(error as Error).message}`, {
      cause: error,
    });
  } finally {
    // The model in memory keeps reading from where it was opened.
    for (const { tensor, copy } of restore) {
      for (const key of Object.keys(tensor)) delete tensor[key as keyof TensorProto];
      Object.assign(tensor, copy);
    }
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new FlaError('aborted', 'interrupted');
}

interface Move {
  tensor: TensorProto;
  bytes: number;
}

/** Where in the new file a tensor goes, and whether an earlier one has brought the same bytes there. */
interface Placed extends Move {
  offset: number;
  copied: boolean;
}

/** Data that is shared lies in the folder that the new file goes to. */
function checkShared(model: Model, target: string): void {
  if (externalFiles(model).length === 0) return;
  const { external } = model;
  const folder = fs.realpathSync(path.dirname(target));
  if (external instanceof FolderReader && fs.realpathSync(external.folder) === folder) return;
  const where = external instanceof FolderReader ? external.folder : 'no folder';
  throw new FlaError(
    'invalid_argument',
    `${target}: external data can be shared by files in its own folder only: expected ${where}, received ${folder}`,
  );
}

/** The tensors to load into the model file. */
function planInline(model: Model): TensorProto[] {
  const outside: TensorProto[] = [];
  let total = 0;
  for (const tensor of allTensors(model.proto.graph)) {
    const bytes = byteLength(tensorDtype(tensor), elementCount(tensorDims(tensor))) ?? 0;
    if (externalLocation(tensor)) outside.push(tensor);
    total += bytes;
  }
  if (total > INLINE_LIMIT) {
    throw new FlaError(
      'invalid_argument',
      `externalData inline: a model file ends at 2 GB, received ${total} bytes of weights`,
    );
  }
  return outside;
}

function planExternal(model: Model, layout: ExternalLayout, threshold?: number): Move[] {
  if (layout === 'inline') return [];
  const moves: Move[] = [];
  let inline = 0;
  const inlined: Move[] = [];
  for (const tensor of allTensors(model.proto.graph)) {
    const bytes = byteLength(tensorDtype(tensor), elementCount(tensorDims(tensor))) ?? 0;
    if (externalLocation(tensor)) {
      if (layout !== 'share') moves.push({ tensor, bytes });
    } else if (tensor.rawData?.length) {
      inline += tensor.rawData.length;
      inlined.push({ tensor, bytes: tensor.rawData.length });
    }
  }
  const must = layout === 'separate' || inline > INLINE_LIMIT;
  const limit = threshold ?? (must ? SMALL : Number.POSITIVE_INFINITY);
  return [...moves, ...inlined.filter((m) => m.bytes >= limit)];
}

function* writeExternal(
  model: Model,
  moves: readonly Placed[],
  file: string,
  options: SaveOptions,
): Generator<void> {
  const total = moves.reduce((sum, m) => sum + m.bytes, 0);
  const fd = fs.openSync(unfinished(file), 'w');
  let done = 0;
  try {
    for (const { tensor, bytes, offset, copied } of moves) {
      const from = externalLocation(tensor);
      if (!copied) {
        for (let at = 0; at < bytes; at += CHUNK) {
          const n = Math.min(CHUNK, bytes - at);
          const part = from
            ? model.external!.read(from.location, from.offset + at, n)
            : tensor.rawData!.subarray(at, at + n);
          writeAll(fd, part, offset + at);
          yield;
          throwIfAborted(options.signal);
        }
      }
      setExternalLocation(tensor, { location: path.basename(file), offset, length: bytes });
      done += bytes;
      options.onProgress?.(done, total);
    }
  } finally {
    fs.closeSync(fd);
  }
}

function place(moves: readonly Move[]): Placed[] {
  // Tensors that share one stretch of the old file go on sharing one of the new.
  const shared = new Map<string, number>();
  let end = 0;
  return moves.map((move) => {
    const from = externalLocation(move.tensor);
    const key = from && `${from.location}|${from.offset}|${move.bytes}`;
    const known = key === undefined ? undefined : shared.get(key);
    if (known !== undefined) return { ...move, offset: known, copied: true };
    const offset = Math.ceil(end / ALIGN) * ALIGN;
    end = offset + move.bytes;
    if (key !== undefined) shared.set(key, offset);
    return { ...move, offset, copied: false };
  });
}

/** What cannot be copied to its end is not begun: a malformed file may claim any number of bytes. */
function checkRoom({ external }: Model, moves: readonly Placed[], file: string): void {
  for (const { tensor, bytes } of moves) {
    const from = externalLocation(tensor);
    if (from && external instanceof FolderReader) external.check(from.location, from.offset, bytes);
  }
  const needed = moves.reduce((end, { offset, bytes }) => Math.max(end, offset + bytes), 0);
  const folder = path.dirname(path.resolve(file));
  const { blocks, bavail, bsize } = fs.statfsSync(folder);
  if (blocks === 0 || needed <= bavail * bsize) return; // some file systems do not tell
  throw new FlaError(
    'io',
    `${file}: cannot be written: its external data needs ${needed} bytes, ${folder} has ${bavail * bsize} free`,
  );
}

/** The files that a model's external data lies in, as paths relative to the model's folder. */
export function externalFiles(model: Model): string[] {
  const locations = [...allTensors(model.proto.graph)].map((t) => externalLocation(t)?.location);
  return [...new Set(locations.filter((l) => l !== undefined))];
}

/** Initializers and tensor attributes of a graph and of every graph nested in it. */
function* allTensors(graph: GraphProto): Generator<TensorProto> {
  yield* graph.initializer;
  for (const node of graph.node) {
    for (const a of node.attribute as AttributeProto[]) {
      if (a.t) yield a.t;
      if (a.tensors) yield* a.tensors;
      if (a.g) yield* allTensors(a.g);
      for (const g of a.graphs ?? []) yield* allTensors(g);
    }
  }
}
