import type { FloatDType } from '../function/define.js';
import type { BodyEmitter } from '../function/emitter.js';
import { type WindowAttentionAttributes, windowAttention } from './schema.js';

const BASE = windowAttention.constants.count_base.value;
const LIMIT = BASE ** 4;
/** The number of a token that is not there: later than any, so that nothing sees it. Exact in float32, which counts up to 2^24. */
const NEVER = 2 ** 30;
/** The score of a token that is not seen; finite, so that a row without any stays a number. */
const UNSEEN = -3e38;
/** Tokens per step: so many for windows up to twice their number, as the ring is written anew in every step. */
const CHUNKS = [64, 128, 256];

/** What the bodies of WindowAttention and HybridAttention depend on alike. */
export interface RingCall {
  attributes: WindowAttentionAttributes;
  present: {
    mask: boolean;
    alibi_slopes: boolean;
    distance_bias: boolean;
    past_window: boolean;
    key_mean?: boolean;
    query_features?: boolean;
  };
  dtype: FloatDType;
  windowDtype: FloatDType;
  headDimK?: number;
  headDimV?: number;
}

/** Sizes as int64 vectors of one element. W = V, or V + 1 with a last column of ones for HybridAttention. */
export interface Sizes {
  B: string;
  T: string;
  K: string;
  V: string;
  W: string;
  /** Of the vectors that features are made of, where they are inputs. */
  D?: string;
}

/**
 * One step: c queries, and the N = sinks + window + c tokens that they may see exactly. Tokens are numbered from the first of the call
 * on, which is 0; those before it have negative numbers, those that are not there NEVER.
 */
export interface Step {
  q: string; // [B,HV,G,c,K]
  keys: string; // [B,HV,1,N,K]
  values: string; // [B,HV,1,N,W]
  queryFeatures?: string; // [B,HV,G,c,D]
  keyFeatures?: string; // [B,HV,1,N,D]
  ago: string; // [B,1,1,c,N], the distance from query to token
  between: string; // [B,1,1,c,N] bool: neither sinks nor in the window
  gone: string; // [B,1,1,c,1], tokens since the last one before this step
  count: string; // [B,1,1,1,1], tokens of this step
  age: string; // [B,1,1,N,1], the distance from the last token of this step
  leaving: string; // [B,1,1,N,1], 1 for tokens that are between for the next step's first query, else 0
}

/** A far part that shares the denominator. Its weights and its sums are to be multiplied by exp(logFactor). */
export interface FarPart {
  /** The state before the first token, [B,HV,1,F,W]. */
  first(e: BodyEmitter, sizes: Sizes): string;
  step(
    e: BodyEmitter,
    step: Step,
    S: string,
  ): {
    weights: string; // [B,HV,G,c,N], 0 for tokens that are not between
    sums: string; // [B,HV,G,c,W], of what the state holds
    logFactor?: string; // [B,HV,G,c,1] or broadcast to it
    next: string; // the state after the step
  };
  finish(e: BodyEmitter, S: string): void;
}

/**
 * WindowAttention in ai.onnx operators, with a far part HybridAttention: one step of a Scan per chunk of tokens. The ring is carried
 * between them token by token first, [B,R,HV,1,...] with R = sinks + window, and what a query sees is decided by the numbers of the
 * tokens alone; so a mask needs no sorting, and batch rows may be of different lengths.
 */
export function ringBody(e: BodyEmitter, call: RingCall, far?: FarPart): void {
  new RingBody(e, call, far).write();
}

class RingBody {
  private readonly sizes: Sizes;
  private readonly c: string;
  private readonly n: string;
  private readonly group: number;
  private readonly R: number;
  private readonly names: string[];

  constructor(
    private readonly e: BodyEmitter,
    private readonly call: RingCall,
    private readonly far?: FarPart,
  ) {
    const { q_num_heads: HQ, kv_num_heads: HV, window, sinks } = call.attributes;
    this.group = HQ / HV;
    this.R = sinks + window;
    const size = (name: string, heads: number, known?: number) =>
      known ? e.ints(known) : e.div(e.dim(name, 2), e.ints(heads));
    const V = size('value', HV, call.headDimV);
    this.sizes = {
      B: e.dim('query', 0),
      T: e.dim('query', 1),
      K: size('query', HQ, call.headDimK),
      V,
      W: far ? e.add(V, e.ints(1)) : V,
      D: call.present.query_features ? size('query_features', HQ) : undefined,
    };
    this.names = this.sizes.D ? ['key', 'value', 'key_features'] : ['key', 'value'];
    const one = e.ints(1);
    const most = CHUNKS.find((size) => size * 2 > window) ?? CHUNKS[CHUNKS.length - 1];
    const tokens = e.larger(this.sizes.T, one);
    this.c = e.smaller(tokens, e.ints(most));
    this.n = e.div(e.sub(e.add(tokens, this.c), one), this.c);
  }

  write(): void {
    const { e, far, sizes } = this;
    const before = this.countBefore(); // [B] int64
    const slots = this.slots(before);
    const parameters = this.parameters();
    const queries = [this.queries('query', sizes.K)];
    if (sizes.D) queries.push(this.queries('query_features', sizes.D));
    const rows = this.names.map((name) => this.rows(name));
    const visible = this.visible(); // [n,B,1,1,c,1]
    const ring = this.firstRing(before);
    const start = e.zeros([sizes.B, 1, 1, 1, 1]);
    const upTo = this.upTo(); // [c,c]
    const { states, outputs } = e.scan(
      [start, ring.numbers, ...ring.rows, ...(far ? [far.first(e, sizes)] : [])],
      [visible, ...queries, ...rows],
      5,
      (inner, [base, numbers, ...carried], [isVisible, ...tokens]) => {
        const step = new RingStep(inner, this.call, sizes, this.R, far);
        const q = tokens.slice(0, queries.length);
        const own = tokens.slice(queries.length);
        const past = carried.slice(0, own.length);
        const S = carried[own.length];
        return step.run({
          ...{ base, numbers, isVisible, q, own, past, S, upTo },
          ...{ slots, parameters, isSink: ring.isSink },
        });
      },
    );
    const [total, , ...carried] = states;
    this.writeWindow(carried.slice(0, this.names.length), before, total);
    if (far) far.finish(e, carried[this.names.length]);
    e.cast(this.join(outputs[0], sizes.V), this.call.dtype, 'output');
    if (!far) e.cast(this.join(outputs[1], e.ints(1)), 'float32', 'lse');
  }

  /** Tokens before the call in every batch row. All heads have counted the same. */
  private countBefore(): string {
    const { e, call, R, sizes } = this;
    if (!call.present.past_window) return e.cast(e.zeros([sizes.B]), 'int64');
    const head = e.slice(e.slice('past_window', 1, 0, 1), 2, R); // [B,1,1,K+V+E]
    const digits = e.cast(e.cast(e.slice(head, 3, 0, 4), 'float32'), 'int64');
    const values = e.mul(digits, e.ints(1, BASE, BASE ** 2, BASE ** 3));
    return e.reshape(e.sum(values, 3), [sizes.B]);
  }

  /**
   * Where the tokens of the call go: token number m of it (from 0) to row sinks + i of the ring, i = m - missing, if that is negative, and
   * to row sinks + (phase + i) mod window otherwise. [B,1,1,1,1] float32 and int64.
   */
  private slots(before: string): Slots {
    const { e, call, sizes } = this;
    const { window, sinks } = call.attributes;
    const past = e.sub(before, e.ints(sinks));
    const missing = e.larger(e.sub(e.ints(0), past), e.ints(0));
    const phase = remainder(e, e.larger(past, e.ints(0)), window);
    const offsets = e.positions(sizes.B); // [B]
    const spread = (x: string) => e.reshape(x, [sizes.B, 1, 1, 1, 1]);
    return {
      missing: spread(missing),
      phase: spread(phase),
      rows: e.reshape(offsets, [sizes.B, 1]),
    };
  }

  private parameters(): Parameters {
    const { e, call, group } = this;
    const { kv_num_heads: HV, window } = call.attributes;
    const perHead = (name: string) => e.reshape(e.cast(name, 'float32'), [HV, group, 1, 1]);
    return {
      slopes: call.present.alibi_slopes ? perHead('alibi_slopes') : undefined,
      bias: call.present.distance_bias
        ? e.reshape(e.cast('distance_bias', 'float32'), [HV, group, window + 1])
        : undefined,
      mean: call.present.key_mean
        ? e.reshape(e.cast('key_mean', 'float32'), [HV, 1, 1, this.sizes.K])
        : undefined,
    };
  }

  /** [B,T,HQ*size] to [n,B,HV,G,c,size]. */
  private queries(name: string, size: string): string {
    const { e, call, c, n, group } = this;
    const HV = call.attributes.kv_num_heads;
    const x = e.cast(name, 'float32');
    const padded = e.padTokens(x, 3, this.missing());
    return e.transpose(e.reshape(padded, [0, n, c, HV, group, size]), [1, 0, 3, 4, 2, 5]);
  }

  /** [B,T,HV*size] to [n,B,c,HV,1,size], 0 where the mask hides a token; values of HybridAttention with ones. */
  private rows(name: string): string {
    const { e, call, c, n, sizes } = this;
    const HV = call.attributes.kv_num_heads;
    let x = e.cast(name, 'float32');
    if (call.present.mask) {
      x = e.op('Where', [e.unsqueeze(e.cast('mask', 'bool'), 2), x, e.scalar(0)]);
    }
    const isValue = name === 'value';
    if (isValue && this.far) x = this.withOnes(e.reshape(x, [0, 0, HV, sizes.V]));
    const size = isValue ? sizes.W : name === 'key' ? sizes.K : sizes.D!;
    const padded = e.padTokens(x, isValue && this.far ? 4 : 3, this.missing());
    return e.transpose(e.reshape(padded, [0, n, c, HV, 1, size]), [1, 0, 2, 3, 4, 5]);
  }

  /** [B,T,HV,V] with a column of ones. */
  private withOnes(x: string): string {
    const { e, call, sizes } = this;
    const shape = [sizes.B, sizes.T, call.attributes.kv_num_heads, 1];
    return e.op('Concat', [x, e.add(e.zeros(shape), e.scalar(1))], { axis: 3 });
  }

  /** 1 for a token that is there, 0 for padding and what the mask hides: [n,B,1,1,c,1]. */
  private visible(): string {
    const { e, call, c, n, sizes } = this;
    const given = call.present.mask
      ? e.cast(e.cast('mask', 'bool'), 'float32')
      : e.add(e.zeros([sizes.B, sizes.T]), e.scalar(1));
    const padded = e.padTokens(given, 2, this.missing());
    return e.transpose(e.reshape(padded, [0, n, 1, 1, c, 1]), [1, 0, 2, 3, 4, 5]);
  }

  private missing(): string {
    return this.e.sub(this.e.mul(this.n, this.c), this.sizes.T);
  }

  /** 1 where s <= r, [c,c]. */
  private upTo(): string {
    const { e, c } = this;
    const p = e.positions(c);
    const later = e.op('Less', [e.unsqueeze(p, 1), e.unsqueeze(p, 0)]);
    return e.cast(e.op('Not', [later]), 'float32');
  }

  /** The ring before the call, each part of its rows by itself and token first; and the numbers of the tokens in it. */
  private firstRing(before: string): { rows: string[]; numbers: string; isSink: string } {
    const { e, call, R, sizes, far } = this;
    const { kv_num_heads: HV, window, sinks } = call.attributes;
    const row = range(R);
    const wide = (x: string) => e.reshape(x, [sizes.B, R, 1, 1, 1]);
    const isSink = e.op('Less', [
      e.add(
        e.cast(e.zeros([sizes.B, R, 1, 1, 1]), 'int64'),
        e.constant('int64', row, [R, 1, 1, 1]),
      ),
      e.ints(sinks),
    ]);
    const floats = e.cast(isSink, 'float32');
    if (!call.present.past_window) {
      const rows = this.names.map((name) => {
        const size = name === 'value' ? sizes.W : name === 'key' ? sizes.K : sizes.D!;
        return e.zeros([sizes.B, R, HV, 1, size]);
      });
      const numbers = e.add(e.zeros([sizes.B, R, 1, 1, 1]), e.scalar(NEVER));
      return { rows, numbers, isSink: floats };
    }
    // Token j < sinks is row j. Of the ring's rows i, the last one written is that of `last`; going back from it, the others follow.
    const n = e.unsqueeze(before, 1); // [B,1]
    const last = e.sub(n, e.ints(sinks + 1));
    const i = e.ints(...row.map((r) => Math.max(r - sinks, 0)));
    const back = remainder(e, e.add(e.sub(e.larger(last, e.ints(-1)), i), e.ints(window)), window);
    const inRing = e.sub(e.ints(-1), back);
    const asSink = e.sub(e.ints(...row), n); // [B,R]
    const isRing = e.constant(
      'bool',
      row.map((r) => Number(r >= sinks)),
      [R],
    );
    const isHeld = e.op('Or', [
      e.op('And', [isRing, e.op('Not', [e.op('Less', [last, back])])]),
      e.op('Less', [e.ints(...row.map((r) => (r < sinks ? r : LIMIT))), n]),
    ]);
    const number = e.cast(e.op('Where', [isRing, inRing, asSink]), 'float32');
    const numbers = wide(e.op('Where', [isHeld, number, e.scalar(NEVER)]));
    const tokens = e.transpose(e.slice('past_window', 2, 0, R), [0, 2, 1, 3]);
    const all = e.op('Where', [
      wide(isHeld),
      e.unsqueeze(e.cast(tokens, 'float32'), 3),
      e.scalar(0),
    ]); // [B,R,HV,1,K+V+E]
    const { K, V, D } = sizes;
    const values = e.window(all, 4, K, V);
    const ones = () => e.add(e.zeros([sizes.B, R, HV, 1, 1]), e.scalar(1));
    const rows = [
      e.window(all, 4, 0, K),
      far ? e.op('Concat', [values, ones()], { axis: 4 }) : values,
    ];
    if (D) rows.push(e.window(all, 4, e.add(K, V), D));
    return { rows, numbers, isSink: floats };
  }

  /** Rows and count after the call as present_window. */
  private writeWindow(rows: readonly string[], before: string, total: string): void {
    const { e, call, sizes, far } = this;
    const { kv_num_heads: HV, window } = call.attributes;
    const parts = rows.map((x, i) => (i === 1 && far ? e.slice(x, 4, 0, -1) : x));
    const joined = e.squeeze(e.op('Concat', parts, { axis: 4 }), 3); // [B,R,HV,K+V+E]
    const all = e.transpose(joined, [0, 2, 1, 3]);
    const after = e.add(before, e.cast(e.reshape(total, [sizes.B]), 'int64'));
    const lowered = e.sub(after, e.ints(window * Math.floor(LIMIT / 2 / window)));
    const count = e.op('Where', [e.op('Less', [after, e.ints(LIMIT)]), after, lowered]);
    const shifted = e.div(
      e.reshape(count, [sizes.B, 1, 1, 1]),
      e.ints(1, BASE, BASE ** 2, BASE ** 3),
    );
    const digits = e.cast(remainder(e, shifted, BASE), 'float32'); // [B,1,1,4]
    const rest = e.sub(e.dim(all, 3), e.ints(4));
    const row = e.op('Concat', [digits, e.zeros([sizes.B, 1, 1, rest])], { axis: 3 });
    const counts = e.op('Expand', [row, e.shape([1, HV, 1, 1])]);
    const present = e.op('Concat', [all, counts], { axis: 2 });
    e.cast(present, call.windowDtype, 'present_window');
  }

  /** [n,B,HV,G,c,size] to [B,T,HQ*size]. */
  private join(x: string, size: string): string {
    const { e, call, c, n, sizes } = this;
    const tokensFirst = e.transpose(x, [1, 0, 4, 2, 3, 5]);
    const width = e.mul(size, e.ints(call.attributes.q_num_heads));
    return e.window(e.reshape(tokensFirst, [sizes.B, e.mul(n, c), width]), 1, 0, sizes.T);
  }
}

interface Slots {
  missing: string;
  phase: string;
  rows: string; // [B,1]: 0, 1, ..., B - 1
}

interface Parameters {
  slopes?: string; // [HV,G,1,1]
  bias?: string; // [HV,G,window+1]
  mean?: string; // [HV,1,1,K]
}

interface StepInputs {
  base: string; // [B,1,1,1,1], tokens of the call before this step
  numbers: string; // [B,R,1,1,1]
  isVisible: string; // [B,1,1,c,1]
  q: string[]; // [B,HV,G,c,size]
  own: string[]; // [B,c,HV,1,size], tokens of this step
  past: string[]; // [B,R,HV,1,size], tokens of the ring
  S?: string;
  upTo: string;
  slots: Slots;
  parameters: Parameters;
  isSink: string; // [B,R,1,1,1]
}

/** The nodes of one Scan step. */
class RingStep {
  constructor(
    private readonly e: BodyEmitter,
    private readonly call: RingCall,
    private readonly sizes: Sizes,
    private readonly R: number,
    private readonly far?: FarPart,
  ) {}

  run(x: StepInputs): { states: string[]; outputs: string[] } {
    const { e, far } = this;
    const { window } = this.call.attributes;
    const isThere = e.cast(x.isVisible, 'bool');
    const counted = e.matmul(x.upTo, x.isVisible); // [B,1,1,c,1]
    const order = e.sub(e.add(x.base, counted), e.scalar(1));
    const number = e.op('Where', [isThere, order, e.scalar(NEVER)]);
    const count = e.sum(x.isVisible, 3);
    const base = e.add(x.base, count);

    const ownNumbers = e.transpose(number, [0, 3, 1, 2, 4]); // [B,c,1,1,1]
    const numbers = e.op('Concat', [x.numbers, ownNumbers], { axis: 1 }); // [B,N,1,1,1]
    const sinkUpTo = e.cast(x.slots.missing, 'float32');
    const ownSinks = e.cast(e.op('Less', [ownNumbers, sinkUpTo]), 'float32');
    const sinks = e.op('Concat', [x.isSink, ownSinks], { axis: 1 });
    const rows = x.own.map((own, i) => e.op('Concat', [x.past[i], own], { axis: 1 }));

    const [keys, values, keyFeatures] = rows.map((row) => e.transpose(row, [0, 2, 3, 1, 4]));
    const along = (y: string) => e.transpose(y, [0, 2, 3, 4, 1]); // [B,1,1,1,N]
    const ago = e.sub(number, along(numbers)); // [B,1,1,c,N]
    const isSink = e.cast(along(sinks), 'bool');
    const isPast = e.op('Not', [e.op('Less', [ago, e.scalar(0)])]);
    const isClose = e.op('Less', [ago, e.scalar(window)]);
    const near = e.op('And', [isPast, e.op('Or', [isClose, isSink])]);
    const outside = (distance: string, sink: string) =>
      e.op('Not', [e.op('Or', [e.op('Less', [distance, e.scalar(window)]), sink])]);

    const scores = this.scores(x, keys, ago, near); // [B,HV,G,c,N]
    const nearTop = e.max(scores, 4);
    const states = [base, ...this.nextRing(x, number, isThere, [numbers, ...rows])];
    const hidden = (y: string, value: number) => e.op('Where', [isThere, y, e.scalar(value)]);
    if (!far) {
      const weights = e.op('Exp', [e.sub(scores, nearTop)]);
      const total = e.sum(weights, 4);
      const output = e.div(e.matmul(weights, values), total);
      const lse = e.add(nearTop, e.op('Log', [total]));
      return { states, outputs: [hidden(output, 0), hidden(lse, Number.NEGATIVE_INFINITY)] };
    }
    const down = (y: string) => e.transpose(y, [0, 2, 3, 1, 4]); // [B,1,1,N,1]
    const age = e.sub(e.sub(base, e.scalar(1)), down(numbers));
    const part = far.step(
      e,
      {
        ...{ q: x.q[0], keys, values, queryFeatures: x.q[1], keyFeatures },
        ...{ ago, count, age },
        between: outside(ago, isSink),
        gone: e.sub(e.add(number, e.scalar(1)), x.base),
        leaving: e.cast(outside(age, e.cast(down(sinks), 'bool')), 'float32'),
      },
      x.S!,
    );
    // The sum of far weights, relative to exp(logFactor).
    const size = e.add(e.slice(part.sums, 4, -1), e.sum(part.weights, 4));
    const magnitude = e.op('Abs', [size]);
    const logFactor = part.logFactor ?? e.scalar(0);
    const top = e.op('Max', [nearTop, e.add(logFactor, e.op('Log', [magnitude]))]);
    const isFar = e.op('Less', [e.scalar(0), magnitude]);
    const factor = e.op('Where', [isFar, e.op('Exp', [e.sub(logFactor, top)]), e.scalar(0)]);
    const weights = e.add(e.op('Exp', [e.sub(scores, top)]), e.mul(factor, part.weights));
    const sums = e.add(e.matmul(weights, values), e.mul(factor, part.sums)); // [B,HV,G,c,V+1]
    const output = e.div(e.slice(sums, 4, 0, -1), e.slice(sums, 4, -1));
    return { states: [...states, part.next], outputs: [hidden(output, 0)] };
  }

  private scores(x: StepInputs, keys: string, ago: string, near: string): string {
    const { e, call, sizes } = this;
    const { softcap, scale, window } = call.attributes;
    const { slopes, bias, mean } = x.parameters;
    const centred = mean ? e.sub(keys, mean) : keys;
    let s = e.matmul(x.q[0], e.transpose(centred, [0, 1, 2, 4, 3]));
    s = scale ? e.mul(s, e.scalar(scale)) : e.div(s, e.op('Sqrt', [e.cast(sizes.K, 'float32')]));
    if (softcap) {
      s = e.mul(e.op('Tanh', [e.mul(s, e.scalar(1 / softcap))]), e.scalar(softcap));
    }
    if (slopes) s = e.sub(s, e.mul(slopes, ago));
    if (bias) {
      const least = e.op('Max', [ago, e.scalar(0)]);
      const distance = e.cast(e.op('Min', [least, e.scalar(window)]), 'int64'); // [B,1,1,c,N]
      const picked = e.op('Gather', [bias, e.squeeze(e.squeeze(distance, 2), 1)], { axis: 2 });
      s = e.add(s, e.transpose(picked, [2, 0, 1, 3, 4])); // of [HV,G,B,c,N]
    }
    return e.op('Where', [near, s, e.scalar(UNSEEN)]);
  }

  /** For every row of the ring, the last token of this step that goes there, or what it had: numbers, then the parts of rows. */
  private nextRing(x: StepInputs, number: string, isThere: string, all: string[]): string[] {
    const { e, R, sizes, call } = this;
    const { sinks, window } = call.attributes;
    const { missing, phase, rows } = x.slots;
    const i = e.sub(e.cast(number, 'int64'), missing); // [B,1,1,c,1]
    const inRing = remainder(e, e.add(phase, e.larger(i, e.ints(0))), window);
    const isSink = e.op('Less', [i, e.ints(0)]);
    const slot = e.add(e.op('Where', [isSink, i, inRing]), e.ints(sinks));
    const own = e.op('Where', [isThere, slot, e.ints(-1)]);
    const slots = e.squeeze(e.squeeze(e.squeeze(own, 4), 2), 1); // [B,c]
    const at = e.constant('int64', range(R), [R, 1]);
    const taken = e.op('Equal', [e.unsqueeze(slots, 1), at]); // [B,R,c]
    const c = e.dim(slots, 1);
    const places = e.cast(e.add(e.positions(c), e.ints(R)), 'float32'); // [c]
    const source = e.op('Where', [taken, places, e.cast(at, 'float32')]);
    const from = e.cast(e.squeeze(e.max(source, 2), 2), 'int64'); // [B,R]
    const N = e.add(c, e.ints(R));
    const index = e.add(e.mul(rows, N), from);
    return all.map((part) => {
      const tail = [2, 3, 4].map((axis) => e.dim(part, axis));
      const flat = e.reshape(part, [e.mul(sizes.B, N), ...tail]);
      return e.op('Gather', [flat, index], { axis: 0 });
    });
  }
}

const range = (n: number) => Array.from({ length: n }, (_, i) => i);

/** x mod n of non-negative int64: there is no Mod before opset 10. */
function remainder(e: BodyEmitter, x: string, n: number): string {
  return e.sub(x, e.mul(e.div(x, e.ints(n)), e.ints(n)));
}
