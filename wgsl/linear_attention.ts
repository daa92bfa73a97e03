/**
 * The plan of a LinearAttention call. Many tokens are worked off in chunks of 64, parallel over the sequence:
 *
 *   linear, gated    features?  gates?/keyed?          states  scan  scores  output
 *   delta rules      features?  gates   keyed?  scores (M)  solve  scan (start)  walk  scores  output  scan (end)
 *                    and before the walk, when heads alone do not fill the device: walk (maps of segments)  chain
 *
 * each a shader of that name; few tokens in one dispatch of `decode`. Sequences whose scratch memory or bindings would be too large are cut
 * into pieces, one after the other, with the state carried in float32.
 */
import { type CheckedCall, type DType, outputShape } from '../ops/define.js';
import { linearAttention } from '../ops/linear_attention/schema.js';
import type { Params } from './params.js';
import {
  type Binding,
  type Copy,
  ceilDiv,
  type Dispatch,
  type Plan,
  type Range,
  roundUp,
  Scratch,
  spread,
  type Traits,
  view,
} from './plan.js';

/** A checked call and where its tensors are. */
export interface LinearAttentionCall extends CheckedCall<typeof linearAttention> {
  /** The shapes of the inputs that are given. */
  readonly shapes: Readonly<Record<string, readonly number[] | undefined>>;
  /** Byte offset of every given tensor in its buffer. */
  readonly offsets: Readonly<Record<string, number>>;
  /** Whether past_state and present_state are the same memory. */
  readonly inPlace: boolean;
  readonly outputs: { readonly output: boolean; readonly present_state: boolean };
}

const CHUNK = 64;
/** Of the delta rules on a device that is a processor: less work, and more steps one after the other. */
const SMALL_CHUNK = 32;
/** Up to this many tokens go token by token. */
const DECODE_TOKENS = 8;
const DECODE_KEYS = 256;
/** Columns of the state of a workgroup of `decode`. */
const DECODE_COLUMNS = 32;
const QUAD = 16; // bytes of a quad of float32

const maps = ['identity', 'elu1', 'relu', 'exp', 'silu', 'l2norm', 'softmax'];
const sizeOf = (dtype: DType | undefined) => (dtype === 'float16' ? 2 : dtype === 'bool' ? 1 : 4);
const isHalf = (dtype: DType | undefined) => Number(dtype === 'float16');

export function planLinearAttention(call: LinearAttentionCall, traits: Traits): Plan {
  return new Planner(call, traits).plan();
}

/** Why `planLinearAttention` cannot plan the call on this device, or undefined. */
export function unplannable(call: LinearAttentionCall, traits: Traits): string | undefined {
  const planner = new Planner(call, traits);
  const { B, T } = call.dims;
  return B > 0 && T > 0 && !planner.decodes() ? planner.tooLarge() : undefined;
}

/** An operand of the matrix steps: rows of quads per token and head. */
interface Operand {
  readonly binding: Range;
  readonly half: number;
  /** Quads. */
  readonly base: number;
  /** Quads per token. */
  readonly row: number;
}

/** A piece of the call: tokens t0.. of batch rows b0.. (several rows only when they are whole). */
interface Piece {
  readonly b0: number;
  readonly rows: number;
  readonly t0: number;
  readonly tokens: number;
  readonly chunks: number;
  readonly isFirst: boolean;
  readonly isLast: boolean;
}

class Planner {
  private readonly steps: (Dispatch | Copy)[] = [];
  private readonly scratch = new Scratch();
  private readonly attributes: LinearAttentionCall['attributes'];
  private readonly types: LinearAttentionCall['types'];

  private readonly B: number;
  private readonly T: number;
  private readonly HQ: number;
  private readonly HK: number;
  private readonly HV: number;
  private readonly HO: number;
  private readonly K: number;
  private readonly V: number;
  private readonly W: number;
  /** Quads of a key head, a state row, an output head. */
  private readonly KQ: number;
  private readonly VQ: number;
  private readonly OQ: number;

  private readonly delta: boolean;
  private readonly normalize: boolean;
  private readonly decayKind: 'none' | 'head' | 'key';
  /** Decays are multiplied into queries and keys (step "keyed") rather than into the scores. */
  private readonly keyed: boolean;
  private readonly gated: boolean;
  private readonly before: boolean;
  private readonly masked: boolean;
  private readonly maps: { q: boolean; k: boolean; v: boolean; o: boolean };
  /** Quads of a value head as the matrix steps read it. */
  private readonly VI: number;
  /** Tokens of a chunk. */
  private readonly chunk: number;
  private readonly chunkConstants: { readonly BLOCKS: number; readonly CHUNK: number };

  constructor(
    private readonly call: LinearAttentionCall,
    private readonly traits: Traits,
  ) {
    const { attributes, dims, types, shapes } = call;
    this.attributes = attributes;
    this.types = types;
    ({ B: this.B, T: this.T, HQ: this.HQ, HK: this.HK, HV: this.HV, HO: this.HO } = dims);
    ({ K: this.K, V: this.V } = dims);
    this.normalize = attributes.normalize === 1;
    this.W = this.V + attributes.normalize;
    this.KQ = ceilDiv(this.K, 4);
    this.VQ = ceilDiv(this.W, 4);
    this.OQ = ceilDiv(this.V, 4);
    this.delta = attributes.update_rule.endsWith('delta');
    const decay = shapes.decay;
    this.decayKind = !decay ? 'none' : decay[2] === this.HV ? 'head' : 'key';
    this.keyed = this.decayKind === 'key' || attributes.read === 'bonus';
    this.gated = this.decayKind === 'head' && !this.keyed;
    this.before = attributes.read !== 'after';
    this.masked = shapes.mask !== undefined;

    const mapped = attributes.feature_map !== 'identity' || attributes.qk_l2norm === 1;
    const direct = (name: string, width: number) =>
      width % 4 === 0 && (call.offsets[name] ?? 0) % (4 * sizeOf(types.T)) === 0;
    this.maps = {
      q: mapped || !direct('query', this.K),
      k: mapped || this.masked || !direct('key', this.K),
      v: !direct('value', this.V) || (this.normalize && this.delta),
      o: !direct('output', this.V),
    };
    this.VI = this.maps.v ? this.VQ : this.OQ;
    this.chunk = this.delta && traits.parallel === 1 ? SMALL_CHUNK : CHUNK;
    this.chunkConstants = { BLOCKS: this.chunk / 8, CHUNK: this.chunk };
  }

  plan(): Plan {
    if (this.B === 0) return { steps: [], scratch: {} };
    if (this.T === 0) {
      if (this.call.outputs.present_state) this.planEmpty();
    } else if (this.decodes()) {
      this.planDecode();
    } else {
      this.planChunks();
    }
    return { steps: this.steps, scratch: this.scratch.sizes };
  }

  /** Whether the call goes token by token. */
  decodes(): boolean {
    const { attributes, types, outputs, inPlace, shapes, offsets } = this.call;
    if (this.T === 0 || this.T > DECODE_TOKENS || this.K > DECODE_KEYS || !attributes.causal)
      return false;
    // The entry point for masks reads the past in place only.
    const copies = this.normalize && this.W > DECODE_COLUMNS;
    if (this.masked && shapes.past_state && !(inPlace && outputs.present_state && !copies))
      return false;
    // A word of float16 must have one writer.
    if (isHalf(types.T) && (this.V % 2 || (offsets.output ?? 0) % 4)) return false;
    if (isHalf(this.stateType) && (this.W % 2 || (offsets.present_state ?? 0) % 4)) return false;
    return this.largestTensor() <= this.traits.maxBinding - this.traits.alignment;
  }

  private get stateType(): DType {
    return this.types.S ?? this.types.T;
  }

  private largestTensor(): number {
    const { B, T, HQ, HK, HV, HO, K, V, W } = this;
    const element = sizeOf(this.types.T);
    const tokens = B * T * Math.max(HQ * K, HK * K, HV * V, HO * V) * element;
    const decays = this.decayKind === 'key' ? B * T * HV * K * sizeOf(this.types.TD) : 0;
    return Math.max(tokens, decays, B * HV * K * W * sizeOf(this.stateType));
  }

  private planEmpty(): void {
    for (const piece of this.emptyPieces()) this.scan(piece, 0);
  }

  private emptyPieces(): Piece[] {
    const rows = this.stateRows();
    return Array.from({ length: ceilDiv(this.B, rows) }, (_, i) => ({
      b0: i * rows,
      rows: Math.min(rows, this.B - i * rows),
      t0: 0,
      tokens: 0,
      chunks: 0,
      isFirst: true,
      isLast: true,
    }));
  }

  // --- Few tokens ---

  private planDecode(): void {
    const { attributes, types, shapes, inPlace, outputs } = this.call;
    const { B, T, HQ, HK, HV, HO, K, V, W } = this;
    const all = (name: string, size: number, elements: number) =>
      shapes[name] || name === 'output' || name === 'present_state'
        ? view(name, this.call.offsets[name] ?? 0, elements * size, size, this.traits)
        : undefined;
    const element = sizeOf(types.T);
    const q = all('query', element, B * T * HQ * K)!;
    const k = all('key', element, B * T * HK * K)!;
    const v = all('value', element, B * T * HV * V)!;
    const decayRow = this.decayKind === 'key' ? HV * K : HV;
    const decay = all('decay', sizeOf(types.TD), B * T * decayRow);
    const betaRow = shapes.beta?.[2] ?? 1;
    const extra = this.delta
      ? all('beta', sizeOf(types.TB), B * T * betaRow)
      : all('bonus', sizeOf(types.TU), HV * K);
    const mask = all('mask', sizeOf(types.M), B * T);
    const state = sizeOf(this.stateType);
    let past = all('past_state', state, B * HV * K * W);
    const output = all('output', element, B * T * HO * V)!;
    const present = all('present_state', state, B * HV * K * W)!;
    const used = (part: { range: Range } | undefined, is = true): Binding =>
      part && is ? part.range : 'none';
    let shared = inPlace && outputs.present_state;
    if (past && shared && this.normalize && W > DECODE_COLUMNS) {
      // Every workgroup reads the normalizer's column, one writes it.
      const target = this.scratch.take('past', past.range.bytes);
      this.steps.push({ source: past.range, target: { ...target, bytes: past.range.bytes } });
      past = { range: target, base: past.base };
      shared = false;
    }
    const start = !past ? 0 : shared ? 2 : 1;
    const parts = K > 128 ? 16 : 8;
    this.steps.push({
      shader: 'linear_attention_decode',
      entry: mask ? 'masked' : 'main',
      constants: {
        PARTS: parts,
        LANES: 16 * parts,
        K_SIZE: K,
        LOOPS: ceilDiv(K, parts),
        HALF: isHalf(types.T),
        STATE_HALF: isHalf(this.stateType),
        START: start,
        MAP: maps.indexOf(attributes.feature_map),
        L2NORM: attributes.qk_l2norm,
        DECAY: ['none', 'head', 'key'].indexOf(this.decayKind),
        DECAY_HALF: isHalf(types.TD),
        EXTRA_HALF: isHalf(this.delta ? types.TB : types.TU),
        DELTA: Number(this.delta),
        READ: ['after', 'before', 'bonus'].indexOf(attributes.read),
        NORMALIZE: attributes.normalize,
        PRESENT: Number(outputs.present_state),
        MASK_BOOL: Number(types.M !== 'float32'),
      },
      params: {
        ...this.heads(),
        tokens: T,
        q_row: HQ * K,
        k_row: HK * K,
        v_row: HV * V,
        q_base: q.base,
        k_base: k.base,
        v_base: v.base,
        o_base: output.base,
        decay_row: decayRow,
        decay_base: decay?.base,
        beta_row: betaRow,
        beta_base: extra?.base,
        bonus_base: extra?.base,
        mask_base: mask?.base,
        past_base: past?.base,
        present_base: present.base,
      },
      bindings: [
        q.range,
        k.range,
        v.range,
        mask ? undefined : used(past, start === 1),
        used(decay),
        used(extra),
        mask?.range,
        used(output, outputs.output),
        used(present, outputs.present_state),
      ],
      groups: [ceilDiv(W, DECODE_COLUMNS), HV, B],
    });
  }

  // --- Many tokens ---

  private planChunks(): void {
    const pieces = this.pieces();
    for (const piece of pieces) {
      if (this.attributes.causal) {
        this.planPiece(piece);
        continue;
      }
      // Bidirectional: the states of all pieces of a batch row first, then everyone reads the last.
      this.features(piece);
      this.states(piece);
      this.scan(piece, 0);
      if (!piece.isLast || !this.call.outputs.output) continue;
      for (const read of pieces.filter(({ b0 }) => b0 === piece.b0)) {
        this.features(read);
        this.output(read);
      }
    }
  }

  private planPiece(piece: Piece): void {
    this.features(piece);
    if (this.gated || this.delta) this.gates(piece);
    if (this.keyed) this.keyedOperands(piece);
    if (this.delta) {
      this.scores(piece, true);
      this.solve(piece);
      this.scan(piece, 1);
      this.walk(piece);
    } else {
      this.states(piece);
      this.scan(piece, 0);
    }
    if (this.call.outputs.output) {
      this.scores(piece, false);
      this.output(piece);
    }
    if (this.delta) this.scan(piece, 2);
  }

  /** Bytes of scratch memory for each chunk of one batch row, by name; `states` has one slot more per head. */
  private chunkBytes(): Record<string, number> {
    const { HQ, HK, HV, HO, KQ, VQ, VI, OQ, chunk } = this;
    const state = 4 * KQ * VQ;
    const quads: Record<string, number> = {
      q: this.maps.q ? chunk * HQ * KQ : 0,
      k: this.maps.k ? chunk * HK * KQ : 0,
      v: this.maps.v ? chunk * HV * VI : 0,
      o: this.maps.o ? chunk * HO * OQ : 0,
      gates: this.gated || this.delta ? chunk * HV : 0,
      totals: this.gated ? (chunk / 32) * HV : 0,
      qs: this.keyed ? chunk * HO * KQ : 0,
      kp: this.keyed && this.delta ? chunk * HV * KQ : 0,
      ks: this.keyed ? chunk * HV * KQ : 0,
      blocks: this.keyed ? (3 * chunk * HV * KQ) / 8 : 0,
      scores: this.attributes.causal ? (chunk * chunk * Math.max(HO, this.delta ? HV : 0)) / 4 : 0,
      wu: this.delta ? chunk * HV * (KQ + VQ) : 0,
      states: HV * state,
    };
    return Object.fromEntries(Object.entries(quads).map(([name, n]) => [name, n * QUAD]));
  }

  /** Bytes per token of each tensor that is bound piece by piece. */
  private tokenBytes(): number[] {
    const { HQ, HK, HV, HO, K, V } = this;
    const element = sizeOf(this.types.T);
    const heads = [HQ * K, HK * K, HV * V, HO * V].map((n) => n * element);
    const decay = this.decayKind === 'key' ? HV * K * sizeOf(this.types.TD) : 0;
    return [...heads, decay];
  }

  /** Most batch rows whose states fit a binding. */
  private stateRows(): number {
    const { HV, K, W, KQ, VQ } = this;
    const bytes = HV * Math.max(K * W * sizeOf(this.stateType), 4 * KQ * VQ * QUAD);
    const room = this.traits.maxBinding - this.traits.alignment;
    return Math.max(1, Math.min(this.B, Math.floor(room / bytes), this.traits.maxGroups));
  }

  /** Most chunks of one batch row that scratch memory and bindings hold; may be less than 1. */
  private mostChunks(): number {
    const { maxBinding, maxBuffer, alignment, scratchBytes } = this.traits;
    const perChunk = this.chunkBytes();
    const room = Math.min(maxBinding, maxBuffer);
    const spare = perChunk.states; // the slot for the last state
    const total = Object.values(perChunk).reduce((sum, bytes) => sum + bytes, 0);
    const limits = [
      Math.floor(((this.delta ? 3 / 4 : 1) * scratchBytes - spare) / total), // the rest: maps
      Math.floor(room / perChunk.states) - 1,
      ...Object.values(perChunk).map((bytes) => Math.floor(room / Math.max(1, bytes))),
      ...this.tokenBytes().map((bytes) =>
        Math.floor((maxBinding - alignment) / (bytes * this.chunk)),
      ),
    ];
    // Scratch memory beyond `scratchBytes` rather than no result: a chunk of very large heads.
    if (limits[0] < 1) limits[0] = 1;
    return Math.min(...limits.filter((limit) => !Number.isNaN(limit)));
  }

  tooLarge(): string | undefined {
    const { maxBinding } = this.traits;
    if (this.mostChunks() >= 1) return undefined;
    return `${this.HV} states of ${this.K} x ${this.W} need bindings larger than the device's ${maxBinding} bytes`;
  }

  private pieces(): Piece[] {
    const { B, T } = this;
    const chunks = ceilDiv(T, this.chunk);
    const most = Math.max(1, this.mostChunks());
    const pieces: Piece[] = [];
    if (chunks <= most) {
      const rows = Math.min(this.stateRows(), Math.max(1, Math.floor(most / (chunks + 1))));
      for (let b0 = 0; b0 < B; b0 += rows) {
        const part = Math.min(rows, B - b0);
        pieces.push({ b0, rows: part, t0: 0, tokens: T, chunks, isFirst: true, isLast: true });
      }
      return pieces;
    }
    const each = ceilDiv(chunks, ceilDiv(chunks, most));
    for (let b0 = 0; b0 < B; b0 += 1) {
      for (let c0 = 0; c0 < chunks; c0 += each) {
        const tokens = Math.min(T, (c0 + each) * this.chunk) - c0 * this.chunk;
        pieces.push({
          b0,
          rows: 1,
          t0: c0 * this.chunk,
          tokens,
          chunks: ceilDiv(tokens, this.chunk),
          isFirst: c0 === 0,
          isLast: c0 + each >= chunks,
        });
      }
    }
    return pieces;
  }

  private heads(): Params {
    const { HQ, HK, HV, HO, K, V, W, KQ, VQ, VI, OQ } = this;
    return {
      ...{ HV, HO, K, V, W, KQ, VQ, VI, OQ },
      q_div: this.keyed && !this.decodes() ? 1 : HO / HQ,
      k_div: HV / HK,
      v_div: HO / HV,
      scale: this.attributes.scale || 1 / Math.sqrt(K),
    };
  }

  private base({ tokens, chunks }: Piece): Params {
    return { ...this.heads(), tokens, chunks, slots: chunks + 1, slot_step: 1 };
  }

  /** A given tensor's part with the tokens of a piece; `width` elements per token. */
  private part(name: string, width: number, dtype: DType | undefined, piece: Piece) {
    const size = sizeOf(dtype);
    const from = (this.call.offsets[name] ?? 0) + (piece.b0 * this.T + piece.t0) * width * size;
    return view(name, from, piece.rows * piece.tokens * width * size, size, this.traits);
  }

  /** Scratch memory of a piece, for `perChunk` bytes of `chunkBytes`. */
  private take(name: string, piece: Piece, extraSlots = 0): Range {
    return this.scratch.take(
      name,
      this.chunkBytes()[name] * piece.rows * (piece.chunks + extraSlots),
    );
  }

  private states_(piece: Piece): Range {
    return this.take('states', piece, 1);
  }

  private operand(which: 'q' | 'k' | 'v', piece: Piece): Operand {
    const { HQ, HK, HV, K, V } = this;
    const { name, heads, width, quads } = {
      q: { name: 'query', heads: HQ, width: K, quads: this.KQ },
      k: { name: 'key', heads: HK, width: K, quads: this.KQ },
      v: { name: 'value', heads: HV, width: V, quads: this.VI },
    }[which];
    const row = heads * quads;
    if (this.maps[which]) return { binding: this.take(which, piece), half: 0, base: 0, row };
    const { range, base } = this.part(name, heads * width, this.types.T, piece);
    return { binding: range, half: isHalf(this.types.T), base: base / 4, row };
  }

  /** Queries and keys with decays in them, where there are such; else plain. */
  private decayed(which: 'qs' | 'kp' | 'ks', piece: Piece): Operand {
    if (!this.keyed) return this.operand(which === 'qs' ? 'q' : 'k', piece);
    const heads = which === 'qs' ? this.HO : this.HV;
    return { binding: this.take(which, piece), half: 0, base: 0, row: heads * this.KQ };
  }

  private mask(piece: Piece) {
    const { M } = this.types;
    const part = this.masked ? this.part('mask', 1, M, piece) : undefined;
    return {
      binding: part?.range ?? ('none' as const),
      base: part?.base ?? 0,
      constants: { MASKED: Number(this.masked), MASK_BOOL: Number(M !== 'float32') },
    };
  }

  private decay(piece: Piece) {
    const { TD } = this.types;
    const width = this.decayKind === 'key' ? this.HV * this.K : this.HV;
    const part = this.decayKind === 'none' ? undefined : this.part('decay', width, TD, piece);
    return {
      binding: part?.range ?? ('none' as const),
      params: { decay_base: part?.base ?? 0, decay_row: width },
      constants: {
        DECAY: ['none', 'head', 'key'].indexOf(this.decayKind),
        DECAY_HALF: isHalf(TD),
      },
    };
  }

  private push(
    shader: Dispatch['shader'],
    constants: Record<string, number>,
    params: Params,
    bindings: Binding[],
    groups: [number, number, number],
  ): void {
    this.steps.push({ shader, constants, params, bindings, groups });
  }

  private features(piece: Piece): void {
    const { attributes, types } = this.call;
    const map = maps.indexOf(attributes.feature_map);
    const mask = this.mask(piece);
    const step = (which: 'q' | 'k' | 'v', name: string, heads: number, width: number) => {
      if (!this.maps[which]) return;
      const { range, base } = this.part(name, heads * width, types.T, piece);
      const isValue = which === 'v';
      const quads = isValue ? this.VI : this.KQ;
      const rows = piece.rows * piece.tokens * heads;
      const rowwise =
        !isValue && (attributes.qk_l2norm === 1 || ['l2norm', 'softmax'].includes(maps[map]));
      const masks = which === 'k';
      this.push(
        'linear_attention_features',
        {
          HALF: isHalf(types.T),
          MAP: isValue ? 0 : map,
          L2NORM: isValue ? 0 : attributes.qk_l2norm,
          ROWWISE: Number(rowwise),
          ONES: Number(isValue && this.normalize),
          MASKED: masks ? mask.constants.MASKED : 0,
          MASK_BOOL: mask.constants.MASK_BOOL,
        },
        {
          count: rows,
          x_size: width,
          x_quads: quads,
          x_heads: heads,
          x_base: base,
          mask_base: mask.base,
        },
        [range, masks ? mask.binding : 'none', this.take(which, piece)],
        spread(rowwise ? rows : rows * quads, this.traits),
      );
    };
    step('q', 'query', this.HQ, this.K);
    step('k', 'key', this.HK, this.K);
    step('v', 'value', this.HV, this.V);
  }

  private gates(piece: Piece): void {
    const { types, shapes } = this.call;
    const mask = this.mask(piece);
    const decay = this.decay(piece);
    const width = shapes.beta?.[2] ?? 1;
    const beta = this.delta ? this.part('beta', width, types.TB, piece) : undefined;
    this.push(
      'linear_attention_gates',
      {
        GATED: Number(this.gated),
        DECAY_HALF: decay.constants.DECAY_HALF,
        BETA: Number(this.delta),
        BETA_HALF: isHalf(types.TB),
        ...this.chunkConstants,
        ...mask.constants,
      },
      {
        ...this.base(piece),
        ...decay.params,
        beta_row: width,
        beta_base: beta?.base ?? 0,
        mask_base: mask.base,
      },
      [
        this.gated ? decay.binding : 'none',
        beta?.range ?? 'none',
        mask.binding,
        this.take('gates', piece),
        this.gated ? this.take('totals', piece) : 'none',
      ],
      [ceilDiv(piece.tokens, 64), this.HV, piece.rows],
    );
  }

  private keyedOperands(piece: Piece): void {
    const mask = this.mask(piece);
    const decay = this.decay(piece);
    const q = this.operand('q', piece);
    const k = this.operand('k', piece);
    this.push(
      'linear_attention_keyed',
      {
        Q_HALF: q.half,
        K_HALF: k.half,
        ...decay.constants,
        BEFORE: Number(this.before),
        DELTA: Number(this.delta),
        ...this.chunkConstants,
        ...mask.constants,
      },
      {
        ...this.base(piece),
        ...decay.params,
        mask_base: mask.base,
        q_div: this.HO / this.HQ,
        q_row: q.row,
        q_base: q.base,
        k_row: k.row,
        k_base: k.base,
      },
      [
        q.binding,
        k.binding,
        decay.binding,
        mask.binding,
        this.take('qs', piece),
        this.delta ? this.take('kp', piece) : 'none',
        this.take('ks', piece),
        this.take('blocks', piece),
      ],
      [ceilDiv(piece.chunks * this.KQ, 64), this.HV, piece.rows],
    );
  }

  /** The scores of queries and keys, or the delta rules' matrix M of keys and keys. */
  private scores(piece: Piece, isMatrix: boolean): void {
    const heads = isMatrix ? this.HV : this.HO;
    const { BLOCKS } = this.chunkConstants;
    const tiles = (BLOCKS * (BLOCKS + 1)) / 2; // of 8 x 8 pairs, at or below the diagonal
    const scores = this.take('scores', piece);
    if (this.keyed) this.diagonal(piece, isMatrix, scores);
    const q = this.decayed(isMatrix ? 'kp' : 'qs', piece);
    const k = this.decayed('ks', piece);
    this.push(
      'linear_attention_scores',
      {
        Q_HALF: q.half,
        K_HALF: k.half,
        GATED: Number(this.gated),
        KEYED: Number(this.keyed),
        BEFORE: Number(this.before && !isMatrix),
        MATRIX: Number(isMatrix),
        ...this.chunkConstants,
      },
      {
        ...this.base(piece),
        q_row: q.row,
        q_base: q.base,
        k_row: k.row,
        k_base: k.base,
        ...(this.keyed && { k_div: 1 }),
      },
      [
        q.binding,
        k.binding,
        this.gated || isMatrix ? this.take('gates', piece) : 'none',
        this.keyed ? this.take('blocks', piece) : this.gated ? this.take('totals', piece) : 'none',
        scores,
      ],
      [ceilDiv(piece.chunks * tiles, 64), heads, piece.rows],
    );
  }

  private diagonal(piece: Piece, isMatrix: boolean, scores: Range): void {
    const { types, shapes } = this.call;
    const mask = this.mask(piece);
    const decay = this.decay(piece);
    const q = this.operand('q', piece);
    const k = this.operand('k', piece);
    const { HV, K } = this;
    const size = sizeOf(types.TU);
    const bonus = shapes.bonus
      ? view('bonus', this.call.offsets.bonus ?? 0, HV * K * size, size, this.traits)
      : undefined;
    this.push(
      'linear_attention_diagonal',
      {
        Q_HALF: q.half,
        K_HALF: k.half,
        ...decay.constants,
        BEFORE: Number(this.before && !isMatrix),
        BONUS: Number(bonus !== undefined),
        BONUS_HALF: isHalf(types.TU),
        MATRIX: Number(isMatrix),
        ...this.chunkConstants,
        ...mask.constants,
      },
      {
        ...this.base(piece),
        ...decay.params,
        mask_base: mask.base,
        bonus_base: bonus?.base ?? 0,
        q_div: this.HO / this.HQ,
        q_row: q.row,
        q_base: q.base,
        k_row: k.row,
        k_base: k.base,
      },
      [
        q.binding,
        k.binding,
        decay.binding,
        mask.binding,
        bonus?.range ?? 'none',
        isMatrix ? this.take('gates', piece) : 'none',
        scores,
      ],
      [ceilDiv(piece.tokens, 64), isMatrix ? this.HV : this.HO, piece.rows],
    );
  }

  private states(piece: Piece): void {
    const k = this.decayed('ks', piece);
    const v = this.operand('v', piece);
    const tiles = ceilDiv(this.KQ, 16) * ceilDiv(this.VI, 16);
    this.push(
      'linear_attention_states',
      {
        K_HALF: k.half,
        V_HALF: v.half,
        GATED: Number(this.gated),
        KEYED: Number(this.keyed),
        NORMALIZER: Number(this.normalize && !this.maps.v),
      },
      {
        ...this.base(piece),
        k_row: k.row,
        k_base: k.base,
        v_row: v.row,
        v_base: v.base,
        ...(this.keyed && { k_div: 1 }),
      },
      [
        k.binding,
        v.binding,
        this.gated ? this.take('gates', piece) : 'none',
        this.keyed ? this.take('blocks', piece) : 'none',
        this.states_(piece),
      ],
      [piece.chunks, this.HV * tiles, piece.rows],
    );
  }

  private carry(piece: Piece): Range {
    return this.scratch.take('carry', piece.rows * this.HV * 4 * this.KQ * this.VQ * QUAD);
  }

  /** Step "scan"; `steps` 0: all of it, 1: the first state only, 2: the last state only. */
  private scan(piece: Piece, steps: number): void {
    const { outputs, shapes, inPlace, offsets } = this.call;
    const { HV, K, W } = this;
    const dtype = this.stateType;
    const size = sizeOf(dtype);
    const count = piece.rows * HV * K * W;
    const state = (name: string) =>
      view(
        name,
        (offsets[name] ?? 0) + piece.b0 * HV * K * W * size,
        count * size,
        size,
        this.traits,
      );
    const start = !piece.isFirst ? 2 : shapes.past_state ? 1 : 0;
    const hasPast = steps !== 2 && start === 1;
    const shared = inPlace && outputs.present_state;
    const ends = steps !== 1;
    const keepsAll = !this.attributes.causal;
    const carries = ends && (!piece.isLast || keepsAll);
    const presents = ends && piece.isLast && outputs.present_state;
    if (ends && steps === 2 && !carries && !presents) return;
    const past = state('past_state');
    const present = state('present_state');
    const usesCarry = carries || (steps !== 2 && start === 2);
    this.push(
      'linear_attention_scan',
      {
        STEPS: steps,
        START: start,
        IN_PLACE: Number(hasPast && shared),
        STATE_HALF: isHalf(dtype),
        GATED: Number(this.gated),
        KEYED: Number(this.keyed),
        CARRY: Number(carries),
        PRESENT: Number(presents),
      },
      { ...this.base(piece), count, past_base: past.base, present_base: present.base },
      [
        hasPast && !shared ? past.range : 'none',
        steps === 0 && this.gated ? this.take('gates', piece) : 'none',
        steps === 0 && this.keyed ? this.take('blocks', piece) : 'none',
        this.states_(piece),
        usesCarry ? this.carry(piece) : 'none',
        presents || (hasPast && shared) ? present.range : 'none',
      ],
      spread(ceilDiv(count + 1, 2), this.traits),
    );
  }

  private solve(piece: Piece): void {
    const k = this.decayed('kp', piece);
    const v = this.operand('v', piece);
    this.push(
      'linear_attention_solve',
      {
        K_HALF: k.half,
        V_HALF: v.half,
        GATED: Number(this.gated),
        KEYED: Number(this.keyed),
        ...this.chunkConstants,
      },
      {
        ...this.base(piece),
        k_row: k.row,
        k_base: k.base,
        v_row: v.row,
        v_base: v.base,
        ...(this.keyed && { k_div: 1 }),
      },
      [
        k.binding,
        v.binding,
        this.take('gates', piece),
        this.keyed ? this.take('blocks', piece) : 'none',
        this.take('scores', piece),
        this.take('wu', piece),
      ],
      [ceilDiv(piece.chunks * ceilDiv(this.KQ + this.VQ, 2), 64), this.HV, piece.rows],
    );
  }

  /** Segments of a piece: as many as fill the device, few enough that the chain over them stays short. */
  private segmentsOf({ rows, chunks }: Piece): { segments: number; segmentChunks: number } {
    const walkers = rows * this.HV * ceilDiv(this.VQ, 16);
    const bytes = rows * this.HV * (this.VQ + this.KQ) * QUAD * (4 * this.KQ + this.chunk); // maps, rest
    const wanted = Math.min(
      this.traits.parallel / walkers,
      Math.sqrt(2 * chunks),
      Math.min(this.traits.scratchBytes / 4, this.traits.maxBinding) / bytes,
    );
    if (wanted < 3) return { segments: 1, segmentChunks: chunks };
    const segmentChunks = ceilDiv(chunks, Math.floor(wanted));
    return { segments: ceilDiv(chunks, segmentChunks), segmentChunks };
  }

  private walk(piece: Piece): void {
    const { HV, KQ, VQ } = this;
    const k = this.decayed('ks', piece);
    const { segments, segmentChunks } = this.segmentsOf(piece);
    const params = {
      ...this.base(piece),
      k_row: k.row,
      k_base: k.base,
      segments,
      segment_chunks: segmentChunks,
      ...(this.keyed && { k_div: 1 }),
    };
    // A device that runs many workgroups at a time has few of these: each of them had better be quick.
    const span = this.traits.parallel > 1 ? 16 : 8;
    const constants = {
      K_HALF: k.half,
      GATED: Number(this.gated),
      KEYED: Number(this.keyed),
      SPAN: span,
      LANES: span * span,
      LARGE: Number(span === 8),
      ...this.chunkConstants,
    };
    const inputs = [
      k.binding,
      this.gated ? this.take('gates', piece) : ('none' as const),
      this.keyed ? this.take('blocks', piece) : ('none' as const),
      this.take('wu', piece),
    ];
    if (segments > 1) {
      const columns = VQ + KQ;
      const count = piece.rows * HV * segments * columns * QUAD;
      const segmentMaps = this.scratch.take('maps', count * 4 * KQ);
      const rest = this.scratch.take('rest', count * this.chunk);
      this.push(
        'linear_attention_walk',
        { ...constants, MAPS: 1 },
        params,
        [...inputs, rest, segmentMaps],
        [segments - 1, HV * ceilDiv(columns, 16), piece.rows],
      );
      this.push(
        'linear_attention_chain',
        {},
        params,
        [segmentMaps, this.states_(piece)],
        [1, HV * ceilDiv(VQ, 16), piece.rows],
      );
    }
    this.push(
      'linear_attention_walk',
      { ...constants, MAPS: 0 },
      params,
      [...inputs, 'none', this.states_(piece)],
      [segments, HV * ceilDiv(VQ, 16), piece.rows],
    );
  }

  private output(piece: Piece): void {
    const { HO, V, OQ } = this;
    const { T } = this.types;
    const causal = this.attributes.causal === 1;
    const q = this.decayed('qs', piece);
    const v = this.delta
      ? { binding: this.take('wu', piece), half: 0, base: 0, row: this.KQ + this.VQ }
      : this.operand('v', piece);
    const place = this.part('output', HO * V, T, piece);
    const target = this.maps.o
      ? { binding: this.take('o', piece), base: 0, half: 0 }
      : { binding: place.range, base: place.base / 4, half: isHalf(T) };
    this.push(
      'linear_attention_output',
      {
        Q_HALF: q.half,
        V_HALF: v.half,
        O_HALF: target.half,
        GATED: Number(this.gated),
        KEYED: Number(this.keyed),
        BEFORE: Number(this.before),
        DELTA: Number(this.delta),
        CAUSAL: Number(causal),
        ...this.chunkConstants,
        NORMALIZE: Number(this.normalize),
      },
      {
        ...this.base(piece),
        ...(!causal && { slots: 1, slot_step: 0 }),
        q_row: q.row,
        q_base: q.base,
        v_row: v.row,
        v_base: v.base,
        o_row: HO * OQ,
        o_base: target.base,
      },
      [
        q.binding,
        causal ? this.states_(piece) : this.carry(piece),
        causal ? this.take('scores', piece) : 'none',
        causal ? v.binding : 'none',
        this.gated ? this.take('gates', piece) : 'none',
        this.keyed ? this.take('blocks', piece) : 'none',
        target.binding,
      ],
      [ceilDiv(piece.tokens, 64), HO * ceilDiv(OQ, 16), piece.rows],
    );
    if (!this.maps.o) return;
    const count = piece.rows * piece.tokens * HO * V;
    this.push(
      'linear_attention_pack',
      { HALF: isHalf(T) },
      { count, x_size: V, x_quads: OQ, x_base: place.base },
      [target.binding, place.range],
      spread(ceilDiv(count + 1, 2), this.traits),
    );
  }
}

/** Shapes of the outputs of a checked call. */
export function linearAttentionShapes({ dims }: Pick<LinearAttentionCall, 'dims'>) {
  return {
    output: outputShape(linearAttention, 'output', dims),
    present_state: outputShape(linearAttention, 'present_state', dims),
  };
}

/** Bytes of a tensor, rounded up to a binding's granularity. */
export const tensorBytes = (dtype: DType, shape: readonly number[]): number =>
  roundUp(
    shape.reduce((n, dim) => n * dim, sizeOf(dtype)),
    4,
  );
