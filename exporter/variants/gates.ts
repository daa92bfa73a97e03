import { FlaError } from '../../ops/error.js';
import { makeTensor } from '../ir/index.js';
import type { Sdpa } from '../match/sdpa.js';
import { sourcesOf } from '../match/sources.js';
import type { SiteEmitter } from './emit.js';
import type { Gate, LayerGates, Variant } from './options.js';

/** A gate as input of the op: its value and how many columns it has. */
export interface EmittedGate {
  readonly value: string;
  readonly columns: number;
}

/** log-sigmoid(x W + b) / temperature, or a constant: [B,T,H] or [B,T,H*K], <= 0. */
export function emitDecay(
  e: SiteEmitter,
  sdpa: Sdpa,
  layer: number,
  gates: LayerGates,
  query: string,
  variant: Variant,
): EmittedGate {
  const gate = gates.decay!;
  const { heads } = sdpa.v;
  const perKey = heads * sdpa.k.dim;
  if ('constant' in gate) return constantGate(e, gate.constant, heads, query, layer, 'decay');
  const projected = project(e, sdpa, layer, gate, 'decay', [heads, perKey]);
  const temperature = gates.temperature ?? (variant === 'gla' ? 16 : 1);
  // log sigmoid(z) = -softplus(-z)
  const softplus = e.op('Softplus', [e.op('Neg', [projected.value])]);
  const value = e.op('Mul', [softplus, e.scalar(-1 / temperature, sdpa.dtype)]);
  return { value, columns: projected.columns };
}

/** sigmoid(x W + b), or a constant: [B,T,H] or [B,T,1]. */
export function emitBeta(
  e: SiteEmitter,
  sdpa: Sdpa,
  layer: number,
  gate: Gate,
  query: string,
): EmittedGate {
  const { heads } = sdpa.v;
  if ('constant' in gate) return constantGate(e, gate.constant, heads, query, layer, 'beta');
  const projected = project(e, sdpa, layer, gate, 'beta', [heads, 1]);
  return { value: e.op('Sigmoid', [projected.value]), columns: projected.columns };
}

/** One number per head for every token of `query` [B,T,*]: float32 [B,T,H]. */
export function constantGate(
  e: SiteEmitter,
  constant: number | readonly number[],
  heads: number,
  query: string,
  layer: number,
  what: 'decay' | 'beta',
): EmittedGate {
  const values = typeof constant === 'number' ? Array(heads).fill(constant) : [...constant];
  const allowed = what === 'decay' ? (v: number) => v <= 0 : (v: number) => v > 0 && v <= 2;
  if (values.length !== heads || !values.every(allowed)) {
    const range = what === 'decay' ? '<= 0 (log decay)' : 'in (0, 2]';
    throw new FlaError(
      'invalid_argument',
      `layer ${layer}: ${what} must be ${heads} numbers ${range}, received ${values}`,
    );
  }
  const shape = e.shape([e.dim(query, 0), e.dim(query, 1), heads]);
  const row = e.constant('float32', values, [1, 1, heads]);
  return { value: e.op('Expand', [row, shape]), columns: heads };
}

function project(
  e: SiteEmitter,
  sdpa: Sdpa,
  layer: number,
  gate: { weight: Float32Array; bias?: Float32Array },
  what: string,
  columns: readonly number[],
): EmittedGate {
  const x = layerInput(e, sdpa, layer);
  const hidden = e.facts.dims(x)?.at(-1);
  const rows = typeof hidden === 'number' ? hidden : 0;
  const n = columns.find((c) => c * rows === gate.weight.length);
  if (!n || (gate.bias && gate.bias.length !== n)) {
    throw new FlaError(
      'invalid_argument',
      `layer ${layer}: ${what} weight must be [${hidden ?? '?'}, ${columns.join(' or ')}] with a bias of as many columns, ` +
        `received ${gate.weight.length} weights and ${gate.bias?.length ?? 'no'} biases`,
    );
  }
  const { graph } = e;
  const weight = graph.addInitializer(
    makeTensor(graph.fresh(`${what}.${layer}.weight`), sdpa.dtype, [rows, n], gate.weight),
  );
  const batchFirst = sdpa.q.layout === 'time-first' ? e.transpose(x, [1, 0, 2]) : x;
  const product = e.matmul(batchFirst, weight);
  if (!gate.bias) return { value: product, columns: n };
  const bias = graph.addInitializer(
    makeTensor(graph.fresh(`${what}.${layer}.bias`), sdpa.dtype, [n], gate.bias),
  );
  return { value: e.add(product, bias), columns: n };
}

/** The hidden states [B,T,hidden] that queries and values are projected from. */
function layerInput(e: SiteEmitter, sdpa: Sdpa, layer: number): string {
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
