import type { BodyEmitter } from '../../ops/function/emitter.js';
import { type GateForm, projectedGates } from './gate_parameters.js';

/** Sizes of a call of one layer. */
export interface CallSizes {
  readonly batch: number;
  readonly tokens: number;
  readonly HQ: number;
  readonly HV: number;
  readonly K: number;
  readonly V: number;
}

/** Values of a call. */
export interface RecurrenceInputs {
  readonly query: string; // [B,HQ,T,K]
  readonly key: string; // [B,HV,T,K]
  readonly value: string; // [B,HV,T,V]
  /** The layer's input, where gates are projections of it. */
  readonly hidden?: string; // [B,T,hidden]
}

const LONGEST_CHUNK = 64;
const L2NORM_EPS = 1e-6;

/**
 * The recurrences of gla, mamba2, delta and gated-delta in operators that have gradients, a chunk of C tokens at a time
 * (Yang et al. 2024, https://arxiv.org/abs/2406.06484, with the decays of https://arxiv.org/abs/2412.06464). Within a chunk,
 * G_i being the sum of log decays up to token i and S the state before the chunk:
 *
 *     L_ij = exp(G_i - G_j) for j <= i, else 0
 *     U    = V, or by the delta rule U = X (beta V - beta exp(G) K S),  X = (I + strictly lower part of beta K K' L)^-1
 *     O    = scale (exp(G) Q S + (Q K' L) U)
 *     S'   = exp(G_C) S + (exp(G_C - G) K)' U
 *
 * @returns [B,HQ,T,V]
 */
export function emitRecurrence(
  e: BodyEmitter,
  form: GateForm,
  sizes: CallSizes,
  scale: number,
  inputs: RecurrenceInputs,
  parameters: (name: string) => string,
): string {
  const { batch: B, tokens: T, HQ, HV, K, V } = sizes;
  const G = HQ / HV;
  const C = Math.min(LONGEST_CHUNK, 2 ** Math.ceil(Math.log2(Math.max(T, 2))));
  const N = Math.ceil(T / C);
  const at = { e, B, HV, T, N, C };
  const unit = form.variant === 'delta' || form.variant === 'gated-delta';
  const length = (x: string) => (unit ? unitLength(e, x, 3) : x);
  const gates = emitGateValues(e, form, sizes, inputs.hidden, parameters);

  const k = chunks(at, length(inputs.key), [K]); // [B,HV,N,C,K]
  const stepped = gates.dt ? e.mul(inputs.value, e.unsqueeze(gates.dt, 3)) : inputs.value;
  const v = chunks(at, stepped, [V]); // [B,HV,N,C,V]
  const grouped = e.op('Reshape', [length(inputs.query), e.ints(B, HV, G, T, K)]);
  const padded = padTo(e, grouped, 3, [B, HV, G, T, K], N * C);
  const q = e.transpose(e.op('Reshape', [padded, e.ints(B, HV, G, N, C, K)]), [0, 1, 3, 2, 4, 5]); // [B,HV,N,G,C,K]

  const triangle = (keep: (i: number, j: number) => boolean) =>
    Array.from({ length: C * C }, (_, n) => +keep(Math.floor(n / C), n % C));
  const lower = e.constant(
    'bool',
    triangle((i, j) => j <= i),
    [C, C],
  );
  let grown: string | undefined; // exp(G) [B,HV,N,C,1]
  let left: string | undefined; // exp(G_C - G) [B,HV,N,C,1]
  let whole: string | undefined; // exp(G_C) [B,HV,N,1,1]
  let L: string; // [C,C] or [B,HV,N,C,C]
  if (gates.decay) {
    const decay = chunks(at, gates.decay, []); // [B,HV,N,C]
    const sums = e.matmul(
      decay,
      e.constant(
        'float32',
        triangle((i, j) => i <= j),
        [C, C],
      ),
    );
    const column = e.unsqueeze(sums, 4);
    const total = e.unsqueeze(e.sum(decay, 3), 4);
    const between = e.sub(column, e.unsqueeze(sums, 3));
    L = e.op('Exp', [e.op('Where', [lower, between, e.scalar(-1e9)])]);
    grown = e.op('Exp', [column]);
    left = e.op('Exp', [e.sub(total, column)]);
    whole = e.op('Exp', [total]);
  } else L = e.cast(lower, 'float32');
  const times = (x: string, factor: string | undefined) => (factor ? e.mul(x, factor) : x);

  const keys = e.transpose(k, [0, 1, 2, 4, 3]);
  let U = v;
  let W: string | undefined; // U = U0 - W S
  if (gates.beta) {
    const beta = e.unsqueeze(chunks(at, gates.beta, []), 4); // [B,HV,N,C,1]
    const A = e.mul(e.mul(e.matmul(k, keys), beta), L);
    const X = inverseOfUnitLower(e, A, C);
    U = e.matmul(X, e.mul(v, beta));
    W = e.matmul(X, times(e.mul(k, beta), grown));
  }
  const P = e.mul(e.matmul(q, e.unsqueeze(keys, 3)), gates.decay ? e.unsqueeze(L, 3) : L);
  const rows = (x: string, width: number) => e.op('Reshape', [x, e.ints(B, HV, N, G * C, width)]);
  const [inner, outer] = [rows(P, C), rows(times(q, grown && e.unsqueeze(grown, 3)), K)];
  const kept = e.transpose(times(k, left), [0, 1, 2, 4, 3]); // [B,HV,N,K,C]

  const parts = (x: string) => (N === 1 ? [x] : e.ops('Split', [x], N, { axis: 2 }));
  const [Us, Ps, Qs, Ks] = [U, inner, outer, kept].map(parts) as string[][];
  const Ws = W ? parts(W) : undefined;
  const factors = whole ? parts(whole) : undefined;
  const outputs: string[] = [];
  let S: string | undefined; // [B,HV,1,K,V]
  for (let c = 0; c < N; c++) {
    const u = Ws && S ? e.sub(Us![c]!, e.matmul(Ws[c]!, S)) : Us![c]!;
    const own = e.matmul(Ps![c]!, u);
    outputs.push(S ? e.add(own, e.matmul(Qs![c]!, S)) : own);
    const written = e.matmul(Ks![c]!, u);
    S = S ? e.add(times(S, factors?.[c]), written) : written;
  }
  const all = N === 1 ? outputs[0]! : e.op('Concat', outputs, { axis: 2 }); // [B,HV,N,G*C,V]
  const apart = e.op('Reshape', [all, e.ints(B, HV, N, G, C, V)]);
  const byHead = e.op('Reshape', [e.transpose(apart, [0, 1, 3, 2, 4, 5]), e.ints(B, HQ, N * C, V)]);
  const cut = N * C === T ? byHead : e.slice(byHead, 2, 0, T);
  return e.mul(cut, e.scalar(scale));
}

/** Log decay, beta and dt of every token, [B,HV,T]. */
function emitGateValues(
  e: BodyEmitter,
  form: GateForm,
  { batch: B, tokens: T }: CallSizes,
  hidden: string | undefined,
  parameters: (name: string) => string,
): { decay?: string; beta?: string; dt?: string } {
  const { heads: H, temperature } = form;
  const column = (x: string) => e.op('Reshape', [x, e.ints(1, H, 1)]);
  const logits = (gate: string) => {
    const bias = column(parameters(`${gate}_bias`));
    if (!hidden) return e.op('Expand', [bias, e.ints(B, H, T)]);
    const product = e.matmul(hidden, parameters(`${gate}_weight`));
    return e.add(e.transpose(product, [0, 2, 1]), bias);
  };
  const gates: { decay?: string; beta?: string; dt?: string } = {};
  for (const gate of projectedGates(form)) {
    const z = logits(gate);
    if (gate === 'decay') {
      const softplus = e.op('Softplus', [e.op('Neg', [z])]);
      gates.decay = e.mul(softplus, e.scalar(-1 / temperature));
    } else gates[gate] = e.op(gate === 'beta' ? 'Sigmoid' : 'Softplus', [z]);
  }
  if (gates.dt) {
    const a = e.op('Neg', [e.op('Exp', [column(parameters('a_log'))])]);
    gates.decay = e.mul(gates.dt, a);
  }
  return gates;
}

/**
 * (I + A)^-1 of the strictly lower part of A [..,C,C], C being a power of two, by halves: with the inverses of both diagonal blocks
 * on the diagonal of X, that of the block twice the size is X - X B X, B being the block below the diagonal.
 */
function inverseOfUnitLower(e: BodyEmitter, A: string, C: number): string {
  const below = (size: number) =>
    e.constant(
      'float32',
      Array.from({ length: C * C }, (_, n) => {
        const [i, j] = [Math.floor(n / C / size), Math.floor((n % C) / size)];
        return +(i === j + 1 && j % 2 === 0);
      }),
      [C, C],
    );
  const identity = Array.from({ length: C * C }, (_, n) => +(n % (C + 1) === 0));
  let X = e.sub(e.constant('float32', identity, [C, C]), e.mul(A, below(1)));
  for (let size = 2; size < C; size *= 2) {
    X = e.sub(X, e.matmul(X, e.matmul(e.mul(A, below(size)), X)));
  }
  return X;
}

function unitLength(e: BodyEmitter, x: string, axis: number): string {
  const square = e.add(e.sum(e.mul(x, x), axis), e.scalar(L2NORM_EPS));
  return e.div(x, e.op('Sqrt', [square]));
}

/** [B,HV,T,..] to [B,HV,N,C,..], zeros behind the last token. */
function chunks(
  { e, B, HV, T, N, C }: { e: BodyEmitter; B: number; HV: number; T: number; N: number; C: number },
  x: string,
  rest: readonly number[],
): string {
  const padded = padTo(e, x, 2, [B, HV, T, ...rest], N * C);
  return e.op('Reshape', [padded, e.ints(B, HV, N, C, ...rest)]);
}

function padTo(
  e: BodyEmitter,
  x: string,
  axis: number,
  dims: readonly number[],
  length: number,
): string {
  const missing = length - dims[axis]!;
  if (missing === 0) return x;
  const zeros = e.zeros(dims.map((d, i) => (i === axis ? missing : d)));
  return e.op('Concat', [x, zeros], { axis });
}
