/** Command lines, options and files of gates that fuzzing draws: most fit, some are odd. */
import type { RewriteOptions } from '../../../exporter/index.js';
import { mutate } from '../../support/mutate.js';
import type { Below } from '../../support/mutate_model.js';
import type { SeedKind } from './fuzz_seeds.js';

/** Files that a command reads beside the model. */
export interface Sidecar {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export type Work =
  | { readonly kind: 'command'; readonly args: readonly string[]; readonly sidecar?: Sidecar }
  /** `rewriteModel` itself: it takes what the command line refuses to parse. */
  | { readonly kind: 'options'; readonly options: RewriteOptions };

const VARIANTS = [
  ...['none', 'linear', 'performer', 'retention', 'gla', 'mamba2', 'delta', 'gated-delta'],
  ...['hybrid', 'window', 'rmt'],
] as const;
const GATED = ['gla', 'mamba2', 'delta', 'gated-delta'];
const NUMBERS = [
  '0',
  '1',
  '2',
  '7',
  '-1',
  '1.5',
  '1e3',
  '4096',
  '65536',
  '131072',
  '2147483648',
  '9007199254740993',
];
const WORDS = ['', ' ', 'x', 'NaN', 'Infinity', '0x10', '1,,2', '\n', '__proto__'];
const LAYERS = ['0', '0', '0', '1', '0-3', '0,0', '5-1', '99', '0-100000', '-1', 'all', '', '0,'];
const DECAYS = ['-0.1,-0.1,-0.1,-0.1', '-0.1,-0.2', '-0.1', '0', '1', '-1e400', 'x', ''];

class Draw {
  constructor(private readonly below: Below) {}
  readonly one = <T>(from: readonly T[]): T => from[this.below(from.length)]!;
  /** True once in n. */
  readonly once = (n: number): boolean => this.below(n) === 0;
  number(): string {
    return this.once(6) ? this.one(WORDS) : this.one(NUMBERS);
  }
}

/** What is to be done with a model, of this kind before it was mutated. */
export function drawWork(kind: SeedKind, input: string, output: string, below: Below): Work {
  const draw = new Draw(below);
  const what = below(10);
  const moves = kind === 'recurrence' ? 7 : 1;
  if (what < moves) return { kind: 'command', args: drawMove(input, output, draw) };
  if (what === moves) {
    return { kind: 'command', args: ['inspect', input, ...(draw.once(2) ? ['--json'] : [])] };
  }
  if (what === 9) return { kind: 'options', options: drawOptions(draw, below) };
  return drawRewrite(kind, input, output, draw, below);
}

function drawSaving(output: string, draw: Draw): string[] {
  const args = draw.once(12) ? ['--dry-run'] : ['-o', output];
  if (draw.once(4)) {
    args.push('--external-data', draw.one(['keep', 'separate', 'inline', 'share', 'x']));
  }
  if (draw.once(2)) args.push('--json');
  return args;
}

const BODIES = ['auto', 'com.microsoft', 'standard'];

function drawMove(input: string, output: string, draw: Draw): string[] {
  const saving = drawSaving(output, draw);
  if (draw.once(2)) {
    return ['raise', input, ...saving, ...(draw.once(2) ? ['--body', draw.one(BODIES)] : [])];
  }
  return ['lower', input, ...saving, '--to', draw.one(['com.microsoft', 'ai.onnx', 'standard'])];
}

function drawRewrite(
  kind: SeedKind,
  input: string,
  output: string,
  draw: Draw,
  below: Below,
): Work {
  const variant = kind === 'language' && draw.once(2) ? 'rmt' : draw.one(VARIANTS);
  const args = ['rewrite', input, ...drawSaving(output, draw), '--variant', variant];
  let sidecar: Sidecar | undefined;
  const folder = input.slice(0, input.lastIndexOf('/') + 1);
  const give = (option: string, file: Sidecar) => {
    sidecar = file;
    args.push(option, folder + file.name);
  };
  if (variant === 'rmt') {
    args.push('--memory-tokens', draw.once(3) ? draw.number() : draw.one(['1', '4', '23', '24']));
    args.push('--segment', draw.once(3) ? draw.number() : '16');
    if (draw.once(3)) give('--memory', drawMemory(draw, below));
  }
  if (GATED.includes(variant) || draw.once(20)) give('--gates', drawGates(variant, draw, below));
  if (['hybrid', 'window'].includes(variant) || draw.once(20)) {
    args.push('--window', draw.once(3) ? draw.number() : '3');
    if (draw.once(2)) args.push('--sinks', draw.once(3) ? draw.number() : '1');
  }
  if (variant === 'hybrid' && draw.once(3)) args.push('--cache', draw.number());
  if (['hybrid', 'performer'].includes(variant) && draw.once(3)) {
    args.push('--features', draw.once(2) ? draw.number() : '8');
  }
  if (variant === 'performer' && draw.once(3)) args.push('--seed', draw.number());
  if (variant === 'retention' && draw.once(2)) args.push('--decay', draw.one(DECAYS));
  if (draw.once(5)) args.push('--layers', draw.one(LAYERS));
  if (draw.once(8)) args.push('--keep-softmax', draw.one(LAYERS));
  if (draw.once(5)) {
    const maps = ['elu1', 'relu', 'exp', 'silu', 'softmax', 'l2norm', 'identity', 'sigmoid'];
    args.push('--feature-map', draw.one(maps));
  }
  if (draw.once(8)) args.push(draw.one(['--normalize', '--no-normalize']));
  if (draw.once(8)) args.push('--dtype', draw.one(['float32', 'same']));
  if (draw.once(8)) args.push('--bias', 'drop');
  if (draw.once(8)) args.push('--body', draw.one(BODIES));
  if (draw.once(10)) args.push('--target', draw.one(['transformersjs', 'genai']));
  return { kind: 'command', args, sidecar };
}

const ODD: readonly unknown[] = [
  ...[0, 1, 2, -1, 1.5, 1e30, 2 ** 53, Number.NaN, Number.POSITIVE_INFINITY],
  ...[undefined, null, '', '3', 'x\ny', true, [], {}, [0], [-0.1, -0.1], ['x'], { constant: null }],
];

const OPTIONS = [
  ...['featureMap', 'normalize', 'bias', 'layers', 'keepSoftmax', 'dtype', 'gates', 'decay'],
  ...['window', 'sinks', 'cache', 'features', 'seed', 'body', 'hybrid', 'fitted'],
];

/** Options of another type or size, as a caller without types may give them. */
function drawOptions(draw: Draw, below: Below): RewriteOptions {
  const variant = draw.once(12) ? draw.one(ODD) : draw.one(VARIANTS);
  const options: Record<string, unknown> = { variant };
  if (GATED.includes(variant as string) && !draw.once(6)) {
    options.gates = structured(gatesOf(variant as string, draw), draw, below);
  }
  if (variant === 'hybrid' || variant === 'linear' || variant === 'performer') {
    const name = variant === 'hybrid' ? 'hybrid' : 'fitted';
    if (draw.once(2)) options[name] = structured({ 0: featuresOf(draw) }, draw, below);
  }
  for (let left = below(4); left > 0; left--) options[draw.one(OPTIONS)] = draw.one(ODD);
  return options as unknown as RewriteOptions;
}

type Json = Record<string, unknown>;

/** Gates that a layer may have: constants fit any; weights only those of 12 or 16 hidden values and four heads. */
function gatesOf(variant: string, draw: Draw): Json {
  const projected = (columns: number): Json => {
    const hidden = draw.one([12, 12, 16, 32]);
    const weight = Array.from({ length: hidden }, (_, i) =>
      Array(columns).fill((i % 5) / 10 - 0.2),
    );
    return { weight, ...(draw.once(2) && { bias: Array(columns).fill(0.1) }) };
  };
  const constant = (value: number): Json => ({
    constant: draw.once(3) ? Array(draw.one([4, 4, 2, 1, 3])).fill(value) : value,
  });
  const either = (value: number, columns: number) =>
    draw.once(2) ? constant(value) : projected(columns);
  const gates: Json = {};
  if (variant === 'mamba2' || (variant === 'gated-delta' && draw.once(2))) {
    Object.assign(gates, { a: constant(-1), dt: either(0.1, 4) });
  } else if (variant !== 'delta') gates.decay = either(-0.1, draw.one([4, 12]));
  if (variant.endsWith('delta')) gates.beta = either(0.5, draw.one([4, 1]));
  if (draw.once(5)) gates.gain = constant(1.5);
  if (draw.once(5)) gates.temperature = draw.one([1, 16, 16, 0, -1, 1e-300]);
  return { [draw.one(['default', 'default', '0', '7'])]: gates };
}

/** Fitted feature maps of a layer with four heads of three dimensions, or others. */
function featuresOf(draw: Draw): Json {
  const parameter = (...dims: number[]) => ({
    dims,
    data: new Float32Array(dims.reduce((a, b) => a * b, 1)).fill(0.1),
  });
  const [heads, dim, count] = [draw.one([4, 4, 4, 2]), draw.one([3, 3, 3, 4]), draw.one([3, 6, 0])];
  const signs = draw.one([1, 2]);
  return {
    ...{ featureMap: draw.one(['exp', 'softmax', 'elu1', 'identity']), signs },
    ...(draw.once(2) && { favor: true }),
    ...(draw.once(2) && { queryWeight: parameter(heads, dim, count) }),
    ...(draw.once(2) && { keyWeight: parameter(heads, dim, count) }),
    ...(draw.once(3) && { keyBias: parameter(heads, count * signs) }),
    ...(draw.once(3) && { alpha: parameter(heads) }),
    ...(draw.once(3) && { keyMean: parameter(heads, dim) }),
  };
}

/** A value somewhere in it is another, half of the time. */
function structured(json: Json, draw: Draw, below: Below): Json {
  if (draw.once(2)) return json;
  let at: Json = json;
  for (let depth = below(4); depth > 0; depth--) {
    const inner = draw.one(Object.values(at));
    const opens = typeof inner === 'object' && inner !== null && !ArrayBuffer.isView(inner);
    if (opens && Object.keys(inner).length > 0) at = inner as Json;
  }
  at[draw.once(5) ? draw.one(WORDS) : draw.one(Object.keys(at))] = draw.one(ODD);
  return json;
}

const TEXTS = [
  '',
  '{',
  'null',
  '[]',
  '"x"',
  '{"0":',
  `${'['.repeat(1e5)}`,
  `{"default":${'['.repeat(9000)}${']'.repeat(9000)}}`,
];

function drawGates(variant: string, draw: Draw, below: Below): Sidecar {
  const gates = gatesOf(GATED.includes(variant) ? variant : draw.one(GATED), draw);
  if (draw.once(2)) {
    const bytes = safetensors(tensorsOf(gates), draw);
    return { name: 'in.gates.safetensors', bytes: draw.once(2) ? mutate(bytes, below) : bytes };
  }
  const text = draw.once(12)
    ? draw.one(TEXTS)
    : JSON.stringify(structured(gates, draw, below)).replace('1e+30', '1e400');
  const bytes = new TextEncoder().encode(text);
  return {
    name: 'in.gates.json',
    bytes: draw.once(4) && bytes.length > 0 ? mutate(bytes, below) : bytes,
  };
}

function drawMemory(draw: Draw, below: Below): Sidecar {
  const dims = [draw.one([1, 4, 4, 0]), draw.one([12, 12, 16, 32])];
  const values = Array(dims[0]! * dims[1]!).fill(0.25);
  const bytes = safetensors([{ name: draw.one(['memory', 'memory', 'x']), dims, values }], draw);
  return { name: 'in.memory.safetensors', bytes: draw.once(2) ? mutate(bytes, below) : bytes };
}

interface Stored {
  readonly name: string;
  readonly dims: readonly number[];
  readonly values: readonly number[];
}

function tensorsOf(layers: Json): Stored[] {
  return Object.entries(layers).flatMap(([layer, gates]) =>
    Object.entries(gates as Json).flatMap(([gate, value]): Stored[] => {
      if (typeof value === 'number')
        return [{ name: `${layer}.${gate}`, dims: [], values: [value] }];
      return Object.entries(value as Json).map(([part, numbers]) => ({
        name: `${layer}.${gate}.${part}`,
        dims: dimsOf(numbers),
        values: [numbers].flat(2) as number[],
      }));
    }),
  );
}

const dimsOf = (value: unknown): number[] =>
  Array.isArray(value) ? [value.length, ...dimsOf(value[0])] : [];

/** A safetensors file, with an entry that lies about its tensor at times. */
function safetensors(tensors: readonly Stored[], draw: Draw): Uint8Array {
  let offset = 0;
  const header: Record<string, Json> = {};
  for (const { name, dims, values } of tensors) {
    const end = offset + 4 * values.length;
    header[name] = { dtype: 'F32', shape: dims, data_offsets: [offset, end] };
    offset = end;
  }
  if (draw.once(4) && tensors.length > 0) {
    const entry = header[draw.one(tensors).name]!;
    entry[draw.one(['dtype', 'shape', 'data_offsets'])] = draw.one([
      ...ODD,
      ...['F16', 'I64', [2 ** 40, 2 ** 40], [-1, 4], [0, 2 ** 53], [0, 1], [4, 0], [[[]]]],
    ]);
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const start = new Uint8Array(8);
  new DataView(start.buffer).setBigUint64(0, BigInt(text.length), true);
  const data = new Uint8Array(Float32Array.from(tensors.flatMap((t) => t.values)).buffer);
  return Uint8Array.from([...start, ...text, ...data]);
}
