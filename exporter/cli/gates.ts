import { FlaError } from '../../ops/error.js';
import type { ConstantGate, Gate, LayerGates, ProjectedGate, RewriteOptions } from '../index.js';
import { readText } from '../text/read_text.js';
import { readSafetensors, type StoredTensor } from './safetensors.js';

type Json = Record<string, unknown>;
type Gates = NonNullable<RewriteOptions['gates']>;

const PROJECTED = ['decay', 'beta', 'dt'] as const;
const CONSTANT = ['a', 'gain'] as const;
const NAMES = "'decay', 'beta', 'dt', 'a', 'gain' and 'temperature'";

/**
 * Reads gates from a safetensors file, or from JSON.
 *
 * JSON: by layer number, or `default` for all others, `{decay?, beta?, dt?, a?, gain?, temperature?}`; a gate is
 * `{"constant": number | [per head]}` or (the first three) `{"weight": [hidden][n], "bias"?: [n]}`. Safetensors: the same as names,
 * `<layer>.<gate>.constant` [] or [heads], `<layer>.<gate>.weight` [hidden,n], `<layer>.<gate>.bias` [n], `<layer>.temperature` [] or [1].
 *
 * @throws FlaError `io` or `invalid_argument`, naming the file and the entry
 */
export function loadGates(file: string): Gates {
  return /\.safetensors$/i.test(file) ? fromTensors(file) : fromJson(file);
}

function fail(file: string, where: string, expected: string, received: unknown): never {
  const got = shown(received);
  throw new FlaError('invalid_argument', `${file}: ${where} must be ${expected}, received ${got}`);
}

/** A value in few words: it may be nested as deep as its file allows. */
function shown(value: unknown): string {
  if (Array.isArray(value) && value.some((v) => typeof v === 'object')) return 'a list of lists';
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return 'an object';
  return JSON.stringify(value)?.slice(0, 60) ?? 'nothing';
}

function fromJson(file: string): Gates {
  let json: unknown;
  try {
    json = JSON.parse(readText(file));
  } catch (error) {
    if (error instanceof FlaError) throw error;
    throw new FlaError('invalid_argument', `${file}: is no JSON: ${(error as Error).message}`);
  }
  const wrong = (where: string, expected: string, received: unknown) =>
    fail(file, where, expected, received);
  const isObject = (v: unknown): v is Json =>
    typeof v === 'object' && v !== null && !Array.isArray(v);
  const isNumbers = (v: unknown): v is number[] => Array.isArray(v) && v.every(Number.isFinite);

  const constant = (value: Json, where: string): ConstantGate => {
    const { constant: c } = value;
    if (typeof c === 'number' || isNumbers(c)) return { constant: c };
    return wrong(`${where}.constant`, 'a number or a list of numbers', c);
  };
  const projected = ({ weight, bias }: Json, where: string): ProjectedGate => {
    const rows = Array.isArray(weight) && weight.every(isNumbers) ? weight : undefined;
    const ragged = rows?.some((row) => row.length !== rows[0]!.length);
    const flat = Array.isArray(weight) ? weight.flat() : weight;
    if (!isNumbers(flat) || ragged)
      return wrong(`${where}.weight`, 'rows of numbers [hidden][n]', weight);
    if (bias !== undefined && !isNumbers(bias))
      return wrong(`${where}.bias`, 'a list of numbers', bias);
    return {
      weight: Float32Array.from(flat),
      ...(rows && rows.length > 0 && { dims: [rows.length, rows[0]!.length] }),
      ...(bias && { bias: Float32Array.from(bias) }),
    };
  };
  const layer = (value: unknown, where: string): LayerGates => {
    if (!isObject(value)) return wrong(where, 'an object', value);
    const { temperature, ...named } = value;
    if (temperature !== undefined && typeof temperature !== 'number') {
      wrong(`${where}.temperature`, 'a number', temperature);
    }
    const gates = Object.entries(named).map(([name, gate]) => {
      const at = `${where}.${name}`;
      const mayProject = (PROJECTED as readonly string[]).includes(name);
      if (!mayProject && !(CONSTANT as readonly string[]).includes(name)) {
        return wrong(where, `made of ${NAMES}`, name);
      }
      if (!isObject(gate)) return wrong(at, 'an object', gate);
      const fixed = !mayProject || gate.constant !== undefined;
      return [name, fixed ? constant(gate, at) : projected(gate, at)];
    });
    return { ...Object.fromEntries(gates), ...(temperature !== undefined && { temperature }) };
  };

  if (!isObject(json)) return wrong('gates', 'an object', json);
  return Object.fromEntries(
    Object.entries(json).map(([key, value]) => {
      if (key !== 'default' && !/^\d+$/.test(key)) wrong('keys', "layer numbers or 'default'", key);
      return [key, layer(value, `'${key}'`)];
    }),
  ) as Gates;
}

const TENSOR_NAME =
  /^(default|\d+)\.(?:(temperature)|(?:(decay|beta|dt)\.(weight|bias|constant))|(?:(a|gain)\.(constant)))$/;

function fromTensors(file: string): Gates {
  const layers = new Map<string, Map<string, StoredTensor>>();
  for (const tensor of readSafetensors(file)) {
    const [, layer, temperature, projected, part, constant] = TENSOR_NAME.exec(tensor.name) ?? [];
    if (layer === undefined) {
      const parts = `<layer or default>.<gate>.<weight, bias or constant>, of ${NAMES}`;
      return fail(file, 'tensors', `named ${parts}`, tensor.name);
    }
    const entry = temperature ?? `${projected ?? constant}.${part ?? 'constant'}`;
    const entries = layers.get(layer) ?? new Map<string, StoredTensor>();
    layers.set(layer, entries.set(entry, tensor));
  }
  const vector = (t: StoredTensor): Float32Array => {
    if (t.dims.length > 1) fail(file, `'${t.name}'`, 'a number or a vector', t.dims);
    return t.numbers();
  };
  const gate = (of: ReadonlyMap<string, StoredTensor>, name: string): Gate | undefined => {
    const [constant, weight, bias] = ['constant', 'weight', 'bias'].map((p) =>
      of.get(`${name}.${p}`),
    );
    if (constant) {
      const extra = weight ?? bias;
      if (extra) fail(file, `'${extra.name}'`, `absent beside '${constant.name}'`, extra.dims);
      const values = [...vector(constant)];
      return { constant: values.length === 1 ? values[0]! : values };
    }
    if (!weight) return bias && fail(file, `'${bias.name}'`, 'beside a weight', bias.dims);
    if (weight.dims.length !== 2) {
      fail(file, `'${weight.name}'`, 'a matrix [hidden, n]', weight.dims);
    }
    return {
      weight: weight.numbers(),
      dims: weight.dims,
      ...(bias && { bias: vector(bias) }),
    };
  };
  return Object.fromEntries(
    [...layers].map(([layer, entries]) => {
      const gates = [...PROJECTED, ...CONSTANT].map((name) => [name, gate(entries, name)] as const);
      const temperature = entries.get('temperature');
      const [divisor, ...more] = temperature ? vector(temperature) : [];
      if (temperature && (divisor === undefined || more.length > 0)) {
        fail(file, `'${temperature.name}'`, 'one number', temperature.dims);
      }
      const all = [...gates, ['temperature', divisor] as const];
      return [layer, Object.fromEntries(all.filter(([, g]) => g !== undefined))];
    }),
  ) as Gates;
}
