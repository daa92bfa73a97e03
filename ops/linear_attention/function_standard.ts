import type { BodyEmitter } from '../function/emitter.js';
import type { LinearAttentionCall } from './function.js';
import { finish, type Prepared, prepare } from './function_features.js';

/**
 * Tokens per step. The delta rules invert a c x c matrix per chunk, and a decay per key dimension needs a weight for every pair of
 * tokens and key dimension, so their chunks are shorter.
 */
const CHUNK = { plain: 64, delta: 32, perKey: 16 } as const;

/**
 * Log decays below this are raised to it: exp(-200) is 0 in float32 too, and a decay of -Infinity would turn into NaN where it is
 * multiplied by the 0 of a mask.
 */
const LEAST_DECAY = -200;

/** One chunk of tokens, or its whole sequence; G = query heads per state, W = columns of the state. */
interface Chunk {
  q: string; // [B,HV,G,c,K], already scaled
  k: string; // [B,HV,1,c,K]
  v: string; // [B,HV,1,c,W]
  g?: string; // [B,HV,1,c,1 or K]
  beta?: string; // [B,HV or 1,1,c,1]
  bonus?: string; // [HV,1,1,K], for every token
}

/** Constant c x c matrices of zeros and ones over the tokens r (rows) and s (columns) of a chunk. */
interface Masks {
  upTo: string; // s <= r
  before: string; // s < r
  after: string; // s > r
  /** Blocks (odd, even) of each level of the inverse, sizes 1, 2, 4, ... */
  merges: string[];
}

/**
 * LinearAttention in ai.onnx operators: one step of a Scan per chunk of tokens, the state carried between them.
 *
 * Inside a chunk, with g the log decays, w_rs = exp(sum of g over s < t <= r) and L the lower triangle:
 *
 *     o   = (q . exp(sum of g up to r)) S + (q k' . w . L) u
 *     S_1 = exp(sum of g) S + (k . exp(sum of g after s))' u
 *
 * where u = v for linear and gated, and for the delta rules (M = beta k k' . w below the diagonal)
 *
 *     u = (I + M)^-1 beta (v - (k . exp(sum of g up to r)) S)
 *
 * Every exponent is a plain sum of decays, never a difference of two sums: nothing overflows and nothing cancels.
 * Yang et al. 2024 (https://arxiv.org/abs/2406.06484, https://arxiv.org/abs/2412.06464).
 */
export function standardBody(e: BodyEmitter, call: LinearAttentionCall): void {
  const input = prepare(e, call);
  const layout = chunkLayout(e, call, input.T);
  const chunk = cut(e, call, input, layout);
  const { o, state } = call.attributes.causal
    ? scanChunks(e, call, input, layout, chunk)
    : readFinalState(e, chunk);
  e.cast(e.reshape(state, [0, 0, input.K, input.W]), call.stateDtype, 'present_state');
  finish(e, call, join(e, call, input, layout, o));
}

interface Layout {
  n: string; // number of chunks, at least 1
  c: string; // tokens per chunk, at least 1
  padded: string; // n c
  most: number; // the largest c, when it is bounded
}

/** Chunks of min(T, CHUNK) tokens: a decode step does not pay for a whole chunk. Without causality all tokens are one chunk. */
function chunkLayout(e: BodyEmitter, call: LinearAttentionCall, T: string): Layout {
  const one = e.ints(1);
  const tokens = e.larger(T, one);
  if (!call.attributes.causal) return { n: one, c: tokens, padded: tokens, most: 0 };
  const isPerKey = call.present.decay && call.decayKind === 'key';
  const most = CHUNK[isPerKey ? 'perKey' : call.present.beta ? 'delta' : 'plain'];
  const c = e.smaller(tokens, e.ints(most));
  const n = e.div(e.sub(e.add(tokens, c), one), c);
  return { n, c, padded: e.mul(n, c), most };
}

/** Brings the inputs into chunks along a new first axis: [n,B,HV,G,c,size]. Padding has k = 0, g = 0 and beta = 0. */
function cut(
  e: BodyEmitter,
  call: LinearAttentionCall,
  input: Prepared,
  { n, c, padded }: Layout,
): Chunk {
  const { q_num_heads: HQ, kv_num_heads: HV, scale } = call.attributes;
  const missing = e.sub(padded, input.T);
  const chunks = (x: string, rank: number, heads: number, group: number, size: number | string) =>
    e.transpose(
      e.reshape(e.padTokens(x, rank, missing), [0, n, c, heads, group, size]),
      [1, 0, 3, 4, 2, 5],
    );
  const factor = scale
    ? e.scalar(scale)
    : e.div(e.scalar(1), e.op('Sqrt', [e.cast(input.K, 'float32')]));
  const group = Math.max(1, HQ / HV);
  const q = HQ < HV ? repeatHeads(e, input.q, e.ints(HV / HQ), HV, input.K) : input.q;
  const k = repeatHeads(e, input.k, e.div(e.ints(HV), input.HK), HV, input.K);
  const perKey = call.decayKind === 'key';
  const g = input.decay && e.op('Max', [input.decay, e.scalar(LEAST_DECAY)]);
  return {
    q: chunks(e.mul(q, factor), 4, HV, group, input.K),
    k: chunks(k, 4, HV, 1, input.K),
    v: chunks(input.v, 4, HV, 1, input.W),
    g: g && chunks(g, 3, HV, 1, perKey ? input.K : 1),
    beta: input.beta && chunks(input.beta, 3, call.betaKind === 'shared' ? 1 : HV, 1, 1),
    bonus:
      call.attributes.read === 'bonus'
        ? e.reshape(e.cast('bonus', 'float32'), [HV, 1, 1, input.K])
        : undefined,
  };
}

/** [B,T,h,K] to [B,T,heads,K], each head `times` times in a row. */
function repeatHeads(e: BodyEmitter, x: string, times: string, heads: number, K: string): string {
  const expanded = e.op('Expand', [e.unsqueeze(x, 3), e.shape([1, 1, 1, times, 1])]);
  return e.reshape(expanded, [0, 0, heads, K]);
}

/** The inverse of `cut` for o [n,B,HV,G,c,W]: [B,T,HO,W]. */
function join(
  e: BodyEmitter,
  call: LinearAttentionCall,
  input: Prepared,
  { padded }: Layout,
  o: string,
): string {
  const { q_num_heads: HQ, kv_num_heads: HV } = call.attributes;
  const tokensFirst = e.transpose(o, [1, 0, 4, 2, 3, 5]);
  const heads = e.reshape(tokensFirst, [input.B, padded, Math.max(HQ, HV), input.W]);
  return e.window(heads, 1, 0, input.T);
}

function readFinalState(e: BodyEmitter, { q, k, v }: Chunk): { o: string; state: string } {
  const states = e.matmul(e.transpose(k, [0, 1, 2, 3, 5, 4]), v); // [1,B,HV,1,K,W]
  return { o: e.matmul(q, states), state: e.squeeze(states, 0) };
}

function scanChunks(
  e: BodyEmitter,
  call: LinearAttentionCall,
  input: Prepared,
  layout: Layout,
  chunk: Chunk,
): { o: string; state: string } {
  const first = call.present.past_state
    ? e.unsqueeze(e.cast('past_state', 'float32'), 2)
    : e.zeros([input.B, call.attributes.kv_num_heads, 1, input.K, input.W]);
  const masks = chunkMasks(e, layout, Boolean(chunk.beta));
  const names = (['q', 'k', 'v', 'g', 'beta'] as const).filter((name) => chunk[name]);
  const { states, outputs } = e.scan(
    [first],
    names.map((name) => chunk[name]!),
    5,
    (inner, [S], slices) => {
      const entries = names.map((name, i) => [name, slices[i]]);
      const values = Object.fromEntries(entries) as Chunk;
      const step = new ChunkStep(inner, call, layout, masks, { ...chunk, ...values });
      const { o, next } = step.run(S);
      return { states: [next], outputs: [o] };
    },
  );
  return { o: outputs[0], state: states[0] };
}

function chunkMasks(e: BodyEmitter, { c, most }: Layout, merging: boolean): Masks {
  const mask = (holds: (r: number, s: number) => boolean) => {
    const values = Array.from({ length: most * most }, (_, i) =>
      holds(Math.floor(i / most), i % most) ? 1 : 0,
    );
    return e.window(e.window(e.constant('float32', values, [most, most]), 0, 0, c), 1, 0, c);
  };
  const merges: string[] = [];
  for (let size = 1; merging && size < most; size *= 2) {
    const block = (i: number) => Math.floor(i / size);
    merges.push(mask((r, s) => block(r) % 2 === 1 && block(s) === block(r) - 1));
  }
  return {
    upTo: mask((r, s) => s <= r),
    before: mask((r, s) => s < r),
    after: mask((r, s) => s > r),
    merges,
  };
}

/** The nodes of one Scan step. Trailing comments are shapes; D is 1 or K, whatever decay is per. */
class ChunkStep {
  private readonly perKey: boolean;

  constructor(
    private readonly e: BodyEmitter,
    private readonly call: LinearAttentionCall,
    private readonly layout: Layout,
    private readonly masks: Masks,
    private readonly chunk: Chunk,
  ) {
    this.perKey = call.decayKind === 'key';
  }

  /** From the state before the chunk, S [B,HV,1,K,W], its outputs [B,HV,G,c,W] and the next state. */
  run(S: string): { o: string; next: string } {
    const { e, masks, chunk } = this;
    // A token that reads before its update sees s < r, and no decay of its own; its bonus comes on top.
    const seen = this.call.attributes.read === 'after' ? masks.upTo : masks.before;
    const u = chunk.beta ? this.deltaValues(S, chunk.beta) : chunk.v;
    const scores = e.mul(this.products(chunk.q, this.pairDecay(seen)), seen); // [B,HV,G,c,c]
    const past = e.add(e.matmul(this.decayed(chunk.q, seen), S), e.matmul(scores, u));
    const o = chunk.bonus ? e.add(past, this.ownShare(chunk.bonus)) : past;
    const keys = e.transpose(this.decayed(chunk.k, masks.after), [0, 1, 2, 4, 3]); // [B,HV,1,K,c]
    const next = e.add(this.decayedState(S), e.matmul(keys, u));
    return { o, next };
  }

  /** What a token adds to its own output: (q . bonus)' k v, [B,HV,G,c,W]. */
  private ownShare(bonus: string): string {
    const { e, chunk } = this;
    const weight = e.sum(e.mul(e.mul(chunk.q, bonus), chunk.k), 4); // [B,HV,G,c,1]
    return e.mul(weight, chunk.v);
  }

  /** x . exp(sum of g over the tokens that `over` picks for each row). */
  private decayed(x: string, over: string): string {
    const { e, chunk } = this;
    return chunk.g ? e.mul(x, e.op('Exp', [e.matmul(over, chunk.g)])) : x;
  }

  private decayedState(S: string): string {
    const { e, chunk } = this;
    if (!chunk.g) return S;
    const total = e.transpose(e.op('Exp', [e.sum(chunk.g, 3)]), [0, 1, 2, 4, 3]); // [B,HV,1,D,1]
    return e.mul(S, total);
  }

  /** w_rs = exp(sum of g over s < t, t in row r of `over`): [B,HV,1,c,c], or [B,HV,1,c,c,K] per key dimension. */
  private pairDecay(over: string): string | undefined {
    const { e, masks, chunk, layout } = this;
    if (!chunk.g) return undefined;
    if (!this.perKey) return e.op('Exp', [e.matmul(over, e.mul(chunk.g, masks.before))]);
    const { c } = layout;
    const picked = e.mul(e.unsqueeze(chunk.g, 4), e.unsqueeze(masks.before, 2)); // [B,HV,1,t,s,K]
    const K = e.dim(chunk.k, 4);
    const sums = e.matmul(over, e.reshape(picked, [0, 0, 0, c, e.mul(c, K)]));
    return e.op('Exp', [e.reshape(sums, [0, 0, 0, c, c, K])]);
  }

  /** sum over key dimensions of x_r k_s w_rs: [B,HV,G or 1,c,c]. */
  private products(x: string, w: string | undefined): string {
    const { e, chunk } = this;
    if (w && this.perKey) {
      const keys = e.mul(e.unsqueeze(chunk.k, 3), w); // [B,HV,1,r,s,K]
      return e.squeeze(e.matmul(keys, e.unsqueeze(x, 5)), 5);
    }
    const scores = e.matmul(x, e.transpose(chunk.k, [0, 1, 2, 4, 3]));
    return w ? e.mul(scores, w) : scores;
  }

  /** u = (I + M)^-1 beta (v - what the state already holds for k): [B,HV,1,c,W]. */
  private deltaValues(S: string, beta: string): string {
    const { e, masks, chunk } = this;
    const held = e.matmul(this.decayed(chunk.k, masks.upTo), S);
    const right = e.mul(beta, e.sub(chunk.v, held));
    const M = e.mul(beta, this.products(chunk.k, this.pairDecay(masks.upTo)));
    return e.matmul(this.inverse(M), right);
  }

  /**
   * (I + M)^-1, M below the diagonal, by merging inverses X of diagonal blocks two by two: the new block is -X M X. As many products
   * as the power series (I - M)(I + M^2)(I + M^4)..., whose terms grow like binomials when keys repeat and then cancel.
   */
  private inverse(M: string): string {
    const { e, masks } = this;
    const [first, ...rest] = masks.merges.map((mask) => e.mul(M, mask));
    const identity = e.sub(masks.upTo, masks.before);
    return rest.reduce(
      (X, block) => e.sub(X, e.matmul(X, e.matmul(block, X))),
      e.sub(identity, first),
    );
  }
}
