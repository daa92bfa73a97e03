/**
 * How onnxruntime-genai makes, feeds and hands on what a decoder carries, on the CPU, written again from its source (commit
 * a0c04eb, version 0.16.0-dev): src/models/recurrent_state.cpp, kv_cache.cpp (DefaultKeyValueCache), position_inputs.cpp
 * (DefaultPositionInputs), decoder_only.cpp and model.cpp (PadInputs). Names of functions and fields are theirs.
 */
import * as ort from 'onnxruntime-node';

type Tensor = ort.Tensor;
type Data = Float32Array | BigInt64Array | Int32Array | Uint16Array;

export interface Decoder {
  num_hidden_layers: number;
  num_key_value_heads: number;
  head_size: number;
  inputs: { past_key_names: string; past_value_names: string };
  outputs: { present_key_names: string; present_value_names: string };
}
export interface GenaiSettings {
  model: { pad_token_id: number; decoder: Decoder };
  search: { max_length: number; past_present_share_buffer: boolean; num_beams?: number };
}

const ARRAYS = {
  float32: Float32Array,
  float16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
} as const;
type Kind = keyof typeof ARRAYS;

function createTensor(type: string, dims: readonly number[]): Tensor {
  const count = dims.reduce((a, b) => a * b, 1);
  return new ort.Tensor(type as 'float32', new ARRAYS[type as Kind](count) as Float32Array, [
    ...dims,
  ]);
}

/** ComposeKeyValueName */
const compose = (template: string, index: number) => template.replace('%d', `${index}`);

/** Layers whose names follow a template. */
function discover(names: readonly string[], template: string): number[] {
  const at = template.indexOf('%');
  const [prefix, suffix] = [template.slice(0, at), template.slice(at + 2)];
  return names
    .filter(
      (n) => n.length > prefix.length + suffix.length && n.startsWith(prefix) && n.endsWith(suffix),
    )
    .map((n) => Number.parseInt(n.slice(prefix.length, n.length - suffix.length), 10))
    .sort((a, b) => a - b);
}

/** The inputs and outputs of the next run. */
interface State {
  readonly inputs: Map<string, Tensor>;
  readonly outputs: Map<string, Tensor>;
}

type Session = ort.InferenceSession;
const infoOf = (session: Session, name: string) =>
  session.inputMetadata.find((i) => i.name === name) as unknown as {
    type: string;
    shape: (number | string)[];
  };

class RecurrentState {
  readonly presents: Tensor[] = [];
  private readonly names: (readonly [input: string, output: string])[] = [];

  constructor(session: Session, { decoder }: GenaiSettings['model'], batch: number) {
    const derive = (template: string, suffix: string) => {
      const dot = template.lastIndexOf('.');
      return dot < 0 ? '' : template.slice(0, dot + 1) + suffix;
    };
    const [pastKey, presentKey] = [
      decoder.inputs.past_key_names,
      decoder.outputs.present_key_names,
    ];
    const pastConv = derive(pastKey, 'conv_state');
    if (pastConv === '') return;
    const layers = discover(session.inputNames, pastConv);
    if (layers.length === 0) return;
    for (const index of layers) {
      for (const what of ['conv_state', 'recurrent_state']) {
        this.names.push([
          compose(derive(pastKey, what), index),
          compose(derive(presentKey, what), index),
        ]);
      }
    }
    // Types and shapes are those of the first layer.
    const made = [0, 1].map((i) => {
      const { type, shape } = infoOf(session, this.names[i]![0]);
      const batchAxis = shape.length > 3 + i ? 1 : 0;
      const dims = shape.map((d, axis) =>
        axis === batchAxis && typeof d === 'string' ? batch : Number(d),
      );
      if (dims.some((d) => !(d > 0))) {
        throw new Error(`RecurrentState: ${this.names[i]![0]} has unsupported dynamic dim`);
      }
      return { type, dims };
    });
    if ((made[0]!.dims.length === 4) !== (made[1]!.dims.length === 5)) {
      throw new Error('conv_state and recurrent_state must both be windowed or neither');
    }
    for (const [i] of this.names.entries()) {
      const { type, dims } = made[i % 2]!;
      this.presents.push(createTensor(type, dims));
    }
  }

  /** On the CPU, share_buffers_ is set: past and present are the same memory. */
  add(state: State): void {
    for (const [i, [input, output]] of this.names.entries()) {
      state.inputs.set(input, this.presents[i]!);
      state.outputs.set(output, this.presents[i]!);
    }
  }

  rewindTo(index: number): void {
    if (index !== 0 && this.names.length > 0) {
      throw new Error('Recurrent states cannot be partially rewound');
    }
    for (const t of this.presents) (t.data as Data).fill(0 as never);
  }
}

class DefaultKeyValueCache {
  private readonly names: (readonly [input: string, output: string])[] = [];
  private pasts: Tensor[];
  private presents: Tensor[];
  private readonly type: string;
  private shape: number[];

  constructor(
    session: Session,
    { decoder }: GenaiSettings['model'],
    batch: number,
    private readonly search: GenaiSettings['search'],
    layers: readonly number[],
  ) {
    const { inputs, outputs } = decoder;
    for (const i of layers) {
      this.names.push(
        [compose(inputs.past_key_names, i), compose(outputs.present_key_names, i)],
        [compose(inputs.past_value_names, i), compose(outputs.present_value_names, i)],
      );
    }
    this.type = infoOf(session, this.names[0]![0]).type;
    const room = search.past_present_share_buffer ? search.max_length : 0;
    this.shape = [batch, decoder.num_key_value_heads, room, decoder.head_size];
    this.presents = this.names.map(() => createTensor(this.type, this.shape));
    this.pasts = search.past_present_share_buffer
      ? this.presents
      : this.names.map(() => createTensor(this.type, this.shape));
  }

  add(state: State): void {
    for (const [i, [input, output]] of this.names.entries()) {
      state.inputs.set(input, this.pasts[i]!);
      state.outputs.set(output, this.presents[i]!);
    }
  }

  update(state: State, totalLength: number, isFirst: boolean): void {
    if (this.search.past_present_share_buffer) return;
    if (!isFirst) this.pasts = this.presents;
    this.shape[2] = totalLength;
    this.presents = this.names.map(() => createTensor(this.type, this.shape));
    this.add(state);
  }
}

/** attention_mask and position_ids of rows that are padded on the right in the first run. */
class DefaultPositionInputs {
  private mask: number[][] = [];
  private positions: number[][] = [];
  private next: number[] = [];

  constructor(
    private readonly session: Session,
    private readonly padTokenId: number,
  ) {}

  update(
    state: State,
    rows: readonly (readonly number[])[],
    total: number,
    isFirst: boolean,
  ): void {
    const count = rows[0]!.length;
    if (isFirst) this.initialize(rows);
    else if (rows.length === 1) {
      this.mask = [Array(total).fill(1)];
      this.positions = [Array.from({ length: count }, (_, i) => total - count + i)];
    } else {
      if (count !== 1) throw new Error('batch_size must be 1 for continuous decoding.');
      this.mask = this.mask.map((row) => [...row, 1]);
      this.next = this.next.map((p) => p + 1);
      this.positions = this.next.map((p) => [p]);
    }
    this.set(state, 'attention_mask', this.mask);
    this.set(state, 'position_ids', this.positions);
  }

  private initialize(rows: readonly (readonly number[])[]): void {
    const last = rows.map((row) =>
      rows.length === 1 ? row.length - 1 : row.findLastIndex((id) => id !== this.padTokenId),
    );
    this.mask = rows.map((row, b) => row.map((_, i) => (i <= last[b]! ? 1 : 0)));
    this.positions = rows.map((row, b) => row.map((_, i) => (i <= last[b]! ? i : 0)));
    this.next = last;
  }

  private set(state: State, name: string, rows: readonly (readonly number[])[]): void {
    if (!this.session.inputNames.includes(name)) return;
    const tensor = createTensor(infoOf(this.session, name).type, [rows.length, rows[0]!.length]);
    const wide = tensor.data instanceof BigInt64Array;
    rows.flat().forEach((v, i) => {
      (tensor.data as unknown as (number | bigint)[])[i] = wide ? BigInt(v) : v;
    });
    state.inputs.set(name, tensor);
  }
}

/** PadInputs: on the right. */
export function padInputs(sequences: readonly (readonly number[])[], pad: number): number[][] {
  const width = Math.max(...sequences.map((s) => s.length));
  return sequences.map((s) => [...s, ...Array(width - s.length).fill(pad)]);
}

/** DecoderOnly_State */
export class DecoderOnlyState {
  private readonly state: State = { inputs: new Map(), outputs: new Map() };
  private readonly recurrent: RecurrentState;
  private readonly cache: DefaultKeyValueCache | undefined;
  private readonly positions: DefaultPositionInputs;
  private total = 0;

  constructor(
    private readonly session: Session,
    { model, search }: GenaiSettings,
    batch: number,
  ) {
    const layers = discover(session.inputNames, model.decoder.inputs.past_key_names);
    if (layers.length > 0) {
      this.cache = new DefaultKeyValueCache(session, model, batch, search, layers);
      this.cache.add(this.state);
    }
    this.recurrent = new RecurrentState(session, model, batch);
    this.recurrent.add(this.state);
    this.positions = new DefaultPositionInputs(session, model.pad_token_id);
  }

  /** Reads tokens [B,T]; gives all logits [B,T,V]. */
  async run(rows: readonly (readonly number[])[]): Promise<Tensor> {
    const isFirst = this.total === 0;
    const count = rows[0]!.length;
    this.total += count;
    const ids = BigInt64Array.from(rows.flat(), BigInt);
    this.state.inputs.set('input_ids', new ort.Tensor('int64', ids, [rows.length, count]));
    this.positions.update(this.state, rows, this.total, isFirst);
    this.cache?.update(this.state, this.total, isFirst);
    const missing = this.session.inputNames.filter((name) => !this.state.inputs.has(name));
    if (missing.length > 0) throw new Error(`Missing Input: ${missing}`);
    const [logits] = this.session.outputNames.filter((name) => !this.state.outputs.has(name));
    const fetches = { ...Object.fromEntries(this.state.outputs), [logits!]: null };
    const out = await this.session.run(Object.fromEntries(this.state.inputs), fetches);
    return out[logits!] as Tensor;
  }

  rewindTo(index: number): void {
    this.recurrent.rewindTo(index);
    this.total = index;
  }
}
