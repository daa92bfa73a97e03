import { FlaError } from '../../ops/error.js';
import { type DTypeName, makeTensor } from '../ir/index.js';
import type { Sdpa } from '../match/sdpa.js';
import { sourcesOf } from '../match/sources.js';
import { keySlopes } from './alibi.js';
import type { SiteEmitter } from './emit.js';
import type {
  ConstantGate,
  Gate,
  LayerGates,
  ProjectedGate,
  RewriteOptions,
  Variant,
} from './options.js';

/** A gate as input of the op: its value and how many columns it has. */
export interface EmittedGate {
  readonly value: string;
  readonly columns: number;
}

type GateName = Exclude<keyof LayerGates, 'temperature'>;

/** The gates that a variant needs, in one of these combinations; all may have `gain`. */
export const GATES: Readonly<Partial<Record<Variant, readonly (readonly GateName[])[]>>> = {
  gla: [['decay']],
  mamba2: [['a', 'dt']],
  delta: [['beta'], []],
  'gated-delta': [
    ['decay', 'beta'],
    ['a', 'dt', 'beta'],
  ],
};

/** @throws FlaError `invalid_argument` when a layer is not given the gates that the variant has */
export function checkGates(variant: Variant, layer: number, gates: LayerGates = {}): void {
  const { temperature, gain, ...named } = gates;
  const given = Object.keys(named).filter((g) => named[g as keyof typeof named] !== undefined);
  const wanted = GATES[variant] ?? [];
  const fits = (set: readonly string[]) => set.every((g) => given.includes(g));
  const foreign = given.filter((g) => !wanted.some((set) => set.includes(g as GateName)));
  const exact = wanted.some((set) => fits(set) && set.length === given.length);
  if (exact) return;
  const missing = wanted[0]!.find((g) => !given.includes(g));
  const sets = wanted.filter((set) => set.length > 0).map((set) => set.join(' and '));
  const what =
    foreign.length === 0 && missing && !wanted.some(fits)
      ? `needs gates.${missing} for layer ${layer}`
      : `takes ${sets.join(', or ')} for layer ${layer}`;
  const received = given.length > 0 ? given.join(' and ') : 'none';
  throw new FlaError('invalid_argument', `variant ${variant} ${what}, received ${received}`);
}

/** What is known of a site, as far as gates depend on it. */
interface GatedSite {
  readonly sdpa: Sdpa;
  readonly layer: number;
  readonly gates?: LayerGates;
  /** ALiBi of the original. */
  readonly slopes?: readonly number[];
}

/** The gates of a site; `dt` is what its values are to be multiplied with. */
export function emitGates(
  e: SiteEmitter,
  { sdpa, layer, gates = {}, slopes }: GatedSite,
  options: RewriteOptions,
  query: string,
): { decay?: EmittedGate; beta?: EmittedGate; dt?: EmittedGate } {
  const { heads } = sdpa.v;
  const at: Place = { e, sdpa, layer, query };
  switch (options.variant) {
    case 'retention':
      return { decay: constantGate(at, options.decay ?? retentionDecay(heads), 'decay') };
    case 'gla':
      return { decay: emitDecay(at, gates.decay!, gates.temperature ?? 16) };
    case 'mamba2': {
      const dt = emitStep(at, gates.dt!);
      return { decay: decayOfStep(at, gates.a!, dt), dt };
    }
    case 'delta':
      return { beta: emitBeta(at, gates.beta ?? { constant: 1 }) };
    case 'gated-delta': {
      const decay = gates.decay
        ? emitDecay(at, gates.decay, gates.temperature ?? 1)
        : decayOfStep(at, gates.a!, emitStep(at, gates.dt!));
      return { decay, beta: emitBeta(at, gates.beta!) };
    }
    default: {
      // exp(-slope (i - j)) is what is left of j's weight after i - j tokens.
      const decay = slopes && keySlopes(slopes, sdpa)!.map((s) => -s);
      return decay ? { decay: constantGate(at, decay, 'decay') } : {};
    }
  }
}

/** RetNet's log decay per head: log(1 - 2^(-5-h)). */
function retentionDecay(heads: number): number[] {
  return Array.from({ length: heads }, (_, h) => Math.log1p(-(2 ** (-5 - h))));
}

/** Where gates are written. */
interface Place {
  readonly e: SiteEmitter;
  readonly sdpa: Sdpa;
  readonly layer: number;
  /** A value [B,T,*]. */
  readonly query: string;
}

/** log-sigmoid(x W + b) / temperature, or a constant: [B,T,H] or [B,T,H*K], <= 0. */
function emitDecay(at: Place, gate: Gate, temperature: number): EmittedGate {
  const { e, sdpa } = at;
  if ('constant' in gate) return constantGate(at, gate.constant, 'decay');
  const projected = project(at, gate, 'decay', [sdpa.v.heads, sdpa.v.heads * sdpa.k.dim]);
  // log sigmoid(z) = -softplus(-z)
  const softplus = e.op('Softplus', [e.op('Neg', [projected.value])]);
  const value = e.mul(softplus, e.scalar(-1 / temperature, sdpa.dtype));
  return { value, columns: projected.columns };
}

/** sigmoid(x W + b), or a constant: [B,T,H] or [B,T,1]. */
function emitBeta(at: Place, gate: Gate): EmittedGate {
  if ('constant' in gate) return constantGate(at, gate.constant, 'beta');
  const projected = project(at, gate, 'beta', [at.sdpa.v.heads, 1]);
  return { value: at.e.op('Sigmoid', [projected.value]), columns: projected.columns };
}

/** softplus(x W + b), or a constant: [B,T,H], > 0. */
function emitStep(at: Place, gate: Gate): EmittedGate {
  if ('constant' in gate) return constantGate(at, gate.constant, 'dt');
  const projected = project(at, gate, 'dt', [at.sdpa.v.heads]);
  return { value: at.e.op('Softplus', [projected.value]), columns: projected.columns };
}

/** a dt, float32 [B,T,H] (Mamba-2, Gated DeltaNet). */
function decayOfStep(at: Place, a: ConstantGate, dt: EmittedGate): EmittedGate {
  const { e } = at;
  const row = e.constant('float32', constantsOf(at.layer, 'a', dt.columns, a), [1, 1, dt.columns]);
  return { value: e.mul(e.cast(dt.value, 'float32'), row), columns: dt.columns };
}

/** Values [B,T,H*V] of a type times the step of their head. */
export function scaledByStep(
  e: SiteEmitter,
  sdpa: Sdpa,
  value: string,
  dt: EmittedGate,
  dtype: DTypeName,
): string {
  const { heads, dim } = sdpa.v;
  const step = e.unsqueeze(e.cast(dt.value, dtype), 3);
  return e.reshape(e.mul(e.reshape(value, [0, 0, heads, dim]), step), [0, 0, heads * dim]);
}

/** An output [B,T,H*V] times the gain of its query head. */
export function emitGain(
  e: SiteEmitter,
  sdpa: Sdpa,
  layer: number,
  gain: ConstantGate,
  packed: string,
  output?: string,
): string {
  const wide = constantsOf(layer, 'gain', sdpa.q.heads, gain).flatMap((g) =>
    Array<number>(sdpa.v.dim).fill(g),
  );
  const row = e.constant(sdpa.dtype, wide, [1, 1, wide.length]);
  return e.op('Mul', [packed, row], {}, { output });
}

const RANGES: Record<GateName, { allowed: (v: number) => boolean; range: string }> = {
  decay: { allowed: (v) => v <= 0, range: '<= 0 (log decay)' },
  a: { allowed: (v) => v <= 0, range: '<= 0 (log decay of a whole step)' },
  beta: { allowed: (v) => v > 0 && v <= 2, range: 'in (0, 2]' },
  dt: { allowed: (v) => v > 0, range: '> 0' },
  gain: { allowed: () => true, range: '' },
};

/**
 * One number per head.
 *
 * @throws FlaError `invalid_argument` for another count, or numbers that the gate cannot have
 */
export function constantsOf(
  layer: number,
  what: GateName,
  heads: number,
  { constant }: ConstantGate,
): number[] {
  const values = typeof constant === 'number' ? Array(heads).fill(constant) : [...constant];
  const { allowed, range } = RANGES[what];
  if (values.length !== heads || !values.every((v) => Number.isFinite(v) && allowed(v))) {
    throw new FlaError(
      'invalid_argument',
      `layer ${layer}: ${what} must be ${heads} ${`numbers ${range}`.trim()}, received ${values}`,
    );
  }
  return values;
}

/** One number per head for every token: float32 [B,T,H]. */
function constantGate(
  at: Place,
  constant: number | readonly number[],
  what: 'decay' | 'beta' | 'dt',
): EmittedGate {
  const { e, sdpa, layer, query } = at;
  const { heads } = sdpa.v;
  const values = constantsOf(layer, what, heads, { constant });
  const shape = e.shape([e.dim(query, 0), e.dim(query, 1), heads]);
  const row = e.constant('float32', values, [1, 1, heads]);
  return { value: e.op('Expand', [row, shape]), columns: heads };
}

function project(
  { e, sdpa, layer }: Place,
  gate: ProjectedGate,
  what: string,
  columns: readonly number[],
): EmittedGate {
  const x = layerInput(e, sdpa, layer);
  const hidden = e.facts.dims(x)?.at(-1);
  const rows = typeof hidden === 'number' ? hidden : 0;
  const n = columns.find((c) => c * rows === gate.weight.length);
  const turned = n && gate.dims && `${gate.dims}` !== `${[rows, n]}`;
  if (!n || turned || (gate.bias && gate.bias.length !== n)) {
    const received = gate.dims ? `[${gate.dims.join(', ')}]` : `${gate.weight.length} weights`;
    throw new FlaError(
      'invalid_argument',
      `layer ${layer}: ${what} weight must be [${hidden ?? '?'}, ${columns.join(' or ')}] with a bias of as many columns, ` +
        `received ${received} and ${gate.bias?.length ?? 'no'} biases`,
    );
  }
  const { graph } = e;
  const weight = graph.addInitializer(
    makeTensor(graph.fresh(`${what}.${layer}.weight`), sdpa.dtype, [rows, n], gate.weight),
  );
  const product = e.matmul(batchFirst(e, sdpa, x), weight);
  if (!gate.bias) return { value: product, columns: n };
  const bias = graph.addInitializer(
    makeTensor(graph.fresh(`${what}.${layer}.bias`), sdpa.dtype, [n], gate.bias),
  );
  return { value: e.add(product, bias), columns: n };
}

/** Hidden states as [B,T,hidden]. */
export function batchFirst(e: SiteEmitter, sdpa: Sdpa, x: string): string {
  return sdpa.q.layout === 'time-first' ? e.transpose(x, [1, 0, 2]) : x;
}

/**
 * The hidden states that queries and values are projected from, [B,T,hidden] or, with tokens first, [T,B,hidden].
 *
 * @throws FlaError `unsupported` when there are none in sight
 */
export function layerInput(e: SiteEmitter, sdpa: Sdpa, layer: number): string {
  const ofQuery = sourcesOf(sdpa.q, e.facts);
  const shared = [...sourcesOf(sdpa.v, e.facts)]
    .filter((x) => ofQuery.has(x))
    .map((x) => beforeFlattening(x, e));
  const [x] = shared.filter((s) => e.facts.rank(s) === 3);
  if (x === undefined) {
    throw new FlaError(
      'unsupported',
      `layer ${layer}: gates need the hidden states [B,T,hidden] that query and value are projected from, found ${shared.join(', ') || 'none'}`,
    );
  }
  return x;
}

/** Gemm takes rows [B*T,hidden]: the value that they were reshaped from. */
function beforeFlattening(x: string, e: SiteEmitter): string {
  const node = e.facts.rank(x) === 2 ? e.graph.producer(x) : undefined;
  return node?.is('Reshape') ? node.inputs[0]! : x;
}
