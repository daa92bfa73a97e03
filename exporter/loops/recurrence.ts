import type { UpdateRule } from '../../ops/linear_attention/schema.js';

/** How a loop, one token a step, is a LinearAttention. Inputs are those of a step, by index. */
export interface Recurrence {
  readonly rule: UpdateRule;
  readonly query: number;
  readonly key: number;
  readonly value: number;
  readonly decay?: Decay;
  readonly beta?: number;
  readonly read: 'after' | 'before';
  readonly scale: number;
  /** The state is kept as [..., V, K]. */
  readonly transposed: boolean;
  /** Query heads to a head of the state. */
  readonly group: number;
  readonly K: number;
  readonly V: number;
}

export type Decay = {
  readonly perKey: boolean;
} & (
  | { readonly input: number; readonly logarithmic: boolean }
  /** The same for all tokens: factors of the state, [H] or [H,K]. */
  | { readonly factors: Float64Array }
);

/** Numbers of one step. */
export interface Step {
  /** [B,H,a,b], or [B,a,b] with one head. */
  readonly state: readonly number[];
  readonly before: Float32Array;
  readonly after: Float32Array;
  /** Row-major, the batch first. */
  readonly inputs: readonly Float32Array[];
  readonly output: Float32Array;
}

const TOLERANCE = 1e-4;

/** Looks for the rule, and the roles of the inputs, that give what the step gave. Every input has to have a role. */
export function recurrenceOf(step: Step): Recurrence | undefined {
  const [a, b] = step.state.slice(-2) as [number, number];
  for (const transposed of [false, true]) {
    const [K, V] = transposed ? [b, a] : [a, b];
    const trial = new Trial(step, transposed, K, V);
    for (const [key, value, query] of permutations(
      step.inputs.map((_, i) => i),
      3,
    )) {
      const group = step.inputs[query!]!.length / (trial.N * K);
      if (!trial.has(key!, K) || !trial.has(value!, V) || !Number.isInteger(group)) continue;
      if (step.output.length !== group * trial.N * V) continue;
      const rest = step.inputs.map((_, i) => i).filter((i) => ![key, value, query].includes(i));
      for (const gates of trial.gates(rest)) {
        const found = trial.write(key!, value!, gates);
        const seen = found && trial.read(query!, group, found.next);
        if (!seen) continue;
        const { decay, beta } = { ...gates, ...found };
        const rule =
          beta === undefined ? (decay ? 'gated' : 'linear') : decay ? 'gated_delta' : 'delta';
        return {
          ...{ rule, query: query!, key: key!, value: value!, ...seen, transposed, group, K, V },
          ...(decay && { decay }),
          ...(beta !== undefined && { beta }),
        };
      }
    }
  }
  return undefined;
}

interface Gates {
  readonly decay?: Extract<Decay, { input: number }>;
  readonly beta?: number;
}

class Trial {
  readonly N: number;
  private readonly B: number;

  constructor(
    private readonly step: Step,
    private readonly transposed: boolean,
    private readonly K: number,
    private readonly V: number,
  ) {
    this.N = step.before.length / (K * V);
    this.B = step.state[0]!;
  }

  has(input: number, width: number): boolean {
    return this.step.inputs[input]!.length === this.N * width;
  }
  private at(n: number, i: number, j: number): number {
    const { K, V } = this;
    return n * K * V + (this.transposed ? j * K + i : i * V + j);
  }

  /** What the inputs left over may be. */
  *gates(rest: readonly number[]): Iterable<Gates> {
    const decays = (input: number) =>
      [true, false].flatMap((logarithmic) => [
        ...(this.has(input, 1) ? [{ input, logarithmic, perKey: false }] : []),
        ...(this.has(input, this.K) ? [{ input, logarithmic, perKey: true }] : []),
      ]);
    const isBeta = (i: number) => this.has(i, 1) || this.step.inputs[i]!.length === this.B;
    if (rest.length === 0) yield {};
    if (rest.length === 1) {
      for (const decay of decays(rest[0]!)) yield { decay };
      if (isBeta(rest[0]!)) yield { beta: rest[0]! };
    }
    if (rest.length === 2) {
      for (const [d, beta] of permutations(rest, 2)) {
        if (isBeta(beta!)) for (const decay of decays(d!)) yield { decay, beta };
      }
    }
  }

  /** The next state, when it is what the step gave; a decay that no input is may be constant. */
  write(
    key: number,
    value: number,
    { decay, beta }: Gates,
  ): { next: Float64Array; decay?: Decay } | undefined {
    const { after, inputs } = this.step;
    if (decay) {
      const x = inputs[decay.input]!;
      const factors = Float64Array.from(x, (v) => (decay.logarithmic ? Math.exp(v) : v));
      const next = this.updated(key, value, beta, factors, decay.perKey);
      return close(after, next) ? { next } : undefined;
    }
    const plain = this.updated(key, value, beta, new Float64Array(this.N).fill(1), false);
    if (close(after, plain)) return { next: plain };
    for (const perKey of beta === undefined ? [false, true] : [false]) {
      const factors = this.constantFactors(key, value, beta, perKey);
      if (!factors) continue;
      const all = Float64Array.from(
        { length: this.B * factors.length },
        (_, n) => factors[n % factors.length]!,
      );
      const next = this.updated(key, value, beta, all, perKey);
      if (close(after, next)) return { next, decay: { perKey, factors } };
    }
    return undefined;
  }

  /** One step of the recurrence, `factors` being [N] or [N,K]. */
  private updated(
    key: number,
    value: number,
    beta: number | undefined,
    factors: Float64Array,
    perKey: boolean,
  ): Float64Array {
    const { N, K, V } = this;
    const { before, inputs } = this.step;
    const [k, v] = [inputs[key]!, inputs[value]!];
    const next = new Float64Array(before.length);
    const kept = (n: number, i: number, j: number) =>
      factors[perKey ? n * K + i : n]! * before[this.at(n, i, j)]!;
    for (let n = 0; n < N; n++) {
      for (let j = 0; j < V; j++) {
        let write = v[n * V + j]!;
        if (beta !== undefined) {
          for (let i = 0; i < K; i++) write -= kept(n, i, j) * k[n * K + i]!;
          write *= this.betaOf(beta, n);
        }
        for (let i = 0; i < K; i++) {
          next[this.at(n, i, j)] = kept(n, i, j) + k[n * K + i]! * write;
        }
      }
    }
    return next;
  }
  private betaOf(beta: number, n: number): number {
    const x = this.step.inputs[beta]!;
    return x[x.length === this.N ? n : Math.floor(n / (this.N / this.B))]!;
  }

  /**
   * The factors [H] or [H,K] that would explain what the step gave. The next state is linear in each: without it S' = k b v', and with it
   * a (S - k b k'S) besides; so it is a projection.
   */
  private constantFactors(
    key: number,
    value: number,
    beta: number | undefined,
    perKey: boolean,
  ): Float64Array | undefined {
    const { N, K, V, B } = this;
    const { after } = this.step;
    const none = this.updated(key, value, beta, new Float64Array(N), false);
    const one = this.updated(key, value, beta, new Float64Array(N).fill(1), false);
    const count = (N / B) * (perKey ? K : 1);
    const above = new Float64Array(count);
    const below = new Float64Array(count);
    for (let n = 0; n < N; n++) {
      for (let i = 0; i < K; i++) {
        const f = perKey ? (n * K + i) % count : n % count;
        for (let j = 0; j < V; j++) {
          const at = this.at(n, i, j);
          const slope = one[at]! - none[at]!;
          above[f]! += slope * (after[at]! - none[at]!);
          below[f]! += slope * slope;
        }
      }
    }
    const factors = above.map((x, f) => x / below[f]!);
    return factors.every((x) => x > 0) ? factors : undefined;
  }

  /** What the query reads, when the step's output is a multiple of it. */
  read(
    query: number,
    group: number,
    next: Float64Array,
  ): Pick<Recurrence, 'read' | 'scale'> | undefined {
    const { N, K, V } = this;
    const { before, inputs, output } = this.step;
    const q = inputs[query]!;
    for (const read of ['after', 'before'] as const) {
      const from = read === 'after' ? next : before;
      const y = new Float64Array(group * N * V);
      for (let m = 0; m < group * N; m++) {
        const n = Math.floor(m / group);
        for (let j = 0; j < V; j++) {
          for (let i = 0; i < K; i++) y[m * V + j]! += from[this.at(n, i, j)]! * q[m * K + i]!;
        }
      }
      const scale = dot(output, y) / dot(y, y);
      if (
        close(
          output,
          y.map((x) => x * scale),
        )
      )
        return { read, scale };
    }
    return undefined;
  }
}

/** Whether two results are the same up to rounding. */
export function close(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  let size = 0;
  let difference = 0;
  for (let i = 0; i < a.length; i++) {
    size = Math.max(size, Math.abs(b[i]!));
    difference = Math.max(difference, Math.abs(a[i]! - b[i]!));
  }
  return difference <= TOLERANCE * size;
}

function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

function* permutations(items: readonly number[], count: number): Iterable<number[]> {
  if (count === 0) return yield [];
  for (const item of items) {
    for (const others of permutations(
      items.filter((i) => i !== item),
      count - 1,
    ))
      yield [item, ...others];
  }
}
