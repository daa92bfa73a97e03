/**
 * What an operator is, as data: inputs, outputs, attributes, types, shapes and the rules between them.
 *
 * `ops/<op>/schema.ts` holds one `OpSchema` each. Everything else that knows an op's interface is derived from it: the C++
 * tables in ops/gen, docs/ops/*.md, and `checkCall` below, which the reference implementations and the web backend use.
 */
import { FlaError, type FlaErrorCode } from './error.js';

export type DType = 'float32' | 'float16' | 'bfloat16' | 'bool' | 'int64' | 'float64';

export interface AttributeSchema {
  readonly type: 'int' | 'float' | 'string';
  /** Without a default the attribute is required. */
  readonly default?: number | string;
  readonly allowed?: readonly (number | string)[];
  readonly min?: number;
  readonly doc: string;
}

/**
 * One dimension: factors joined by `*`, then any number of `+` or `-` terms, as in `B`, `HV*K`, `V+normalize`, `W-1`, `1`.
 * A factor or term is a symbol (a dimension, an alias or an int attribute) or a literal.
 */
export type DimPattern = string;
export type ShapePattern = readonly DimPattern[];

export interface InputSchema {
  readonly name: string;
  /** A name in `types`. */
  readonly type: string;
  /**
   * Acceptable shapes; the first that fits wins. New symbols may be introduced by a sole shape of a required input, or of an
   * optional one that decides the symbol's size when it is absent, too (`presence`).
   */
  readonly shapes: readonly ShapePattern[];
  readonly optional?: boolean;
  readonly doc: string;
}

export interface OutputSchema {
  readonly name: string;
  readonly type: string;
  readonly shape: ShapePattern;
  readonly optional?: boolean;
  /** The input whose memory this output may reuse: reading and writing the same buffer is safe. */
  readonly inPlaceOf?: string;
  readonly doc: string;
}

/** A relation between two dimensions; a violation is reported against `argument`. */
export interface ConstraintSchema {
  readonly argument: string;
  /** `divides`: `left` divides `right`. `nested`: one of the two divides the other. `atLeast`: `left` is no less than `right`. */
  readonly kind: 'divides' | 'nested' | 'atLeast';
  readonly left: DimPattern;
  readonly right: DimPattern;
}

/** A dimension that depends on whether an optional input is there. */
export interface PresenceSchema {
  readonly input: string;
  /** The size when the input is there; by default what its shape says. */
  readonly given?: DimPattern;
  readonly absent: DimPattern;
}

/**
 * When attribute `attribute` has one of the values `is`, or (an int without `allowed`) is at least `atLeast`: inputs that must be
 * there, must not, and values others must have.
 */
export interface RuleSchema {
  readonly attribute: string;
  readonly is?: readonly (number | string)[];
  readonly atLeast?: number;
  readonly needs?: readonly string[];
  readonly refuses?: readonly string[];
  readonly requires?: Readonly<Record<string, readonly (number | string)[]>>;
}

export interface OpSchema {
  readonly name: string;
  readonly domain: string;
  readonly version: number;
  readonly summary: string;
  /** Markdown paragraphs: the equations and everything that fixes the result. */
  readonly semantics: readonly string[];
  readonly papers: readonly { readonly title: string; readonly url: string }[];
  /** Type variables in order. A choice is a dtype, or an earlier variable's name ("the same as that one").
   * A variable without inputs takes its first choice. */
  readonly types: Readonly<Record<string, readonly string[]>>;
  /** Short dimension names for attributes, such as `HV` for `kv_num_heads`. */
  readonly aliases: Readonly<Record<string, string>>;
  /** Dimensions computed from others: the larger of two. */
  readonly maxima: Readonly<Record<string, readonly [string, string]>>;
  /** Dimensions that depend on whether an input is there; solved when that input's turn comes. */
  readonly presence?: Readonly<Record<string, PresenceSchema>>;
  /** Pairs of optional inputs of which both are given or neither. */
  readonly together?: readonly (readonly [string, string])[];
  /** Dimensions that must be at least 1 (the others may be 0). */
  readonly positive: readonly string[];
  readonly inputs: readonly InputSchema[];
  readonly outputs: readonly OutputSchema[];
  readonly attributes: Readonly<Record<string, AttributeSchema>>;
  readonly constraints: readonly ConstraintSchema[];
  readonly rules: readonly RuleSchema[];
  /** Named numbers that are part of the definition (epsilons, clamps); C++ gets them as constants. */
  readonly constants: Readonly<Record<string, { readonly value: number; readonly doc: string }>>;
}

/** Keeps the literal types of a schema, so that `AttributesOf` can give each attribute its own values. */
export function defineOp<const S extends OpSchema>(schema: S): S {
  return schema;
}

type ValueOf<A extends AttributeSchema> = A extends { allowed: readonly (infer V)[] }
  ? V
  : A['type'] extends 'string'
    ? string
    : number;

/** All attributes of an op, defaults filled in. */
export type AttributesOf<S extends OpSchema> = {
  -readonly [N in keyof S['attributes']]: ValueOf<S['attributes'][N]>;
};
type RequiredNames<S extends OpSchema> = {
  [N in keyof S['attributes']]: S['attributes'][N] extends { default: number | string } ? never : N;
}[keyof S['attributes']];
/** The attributes as a caller writes them: only those without a default must be there. */
export type AttributeInput<S extends OpSchema> = Partial<AttributesOf<S>> &
  Pick<AttributesOf<S>, RequiredNames<S>>;

export interface TensorSpec {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

export interface CheckedCall<S extends OpSchema> {
  readonly attributes: AttributesOf<S>;
  /** Every dimension symbol, alias and maximum. */
  readonly dims: Readonly<Record<string, number>>;
  /** The dtype each type variable took; variables whose inputs are all absent are missing. */
  readonly types: Readonly<Record<string, DType>>;
}

/**
 * Checks one call against the schema and solves its dimensions.
 *
 * `inputs` maps input names to specs; absent optional inputs are undefined or missing. Throws `FlaError` with a message such as
 * `LinearAttention: decay must be [B,T,HV] = [2,64,8], received [2,64,4]`. The C++ library gives the same messages.
 */
export function checkCall<S extends OpSchema>(
  schema: S,
  attributes: Readonly<Record<string, unknown>>,
  inputs: Readonly<Record<string, TensorSpec | undefined>>,
): CheckedCall<S> {
  const values = checkAttributes(schema, attributes);
  checkPresence(schema, values, inputs);
  const types = checkTypes(schema, inputs);
  const dims = solveDims(schema, values, inputs);
  return { attributes: values, dims, types };
}

/** Fills in defaults and checks every attribute by itself and against the rules between attributes. */
export function checkAttributes<S extends OpSchema>(
  schema: S,
  given: Readonly<Record<string, unknown>>,
): AttributesOf<S> {
  for (const name of Object.keys(given)) {
    if (given[name] === undefined || Object.hasOwn(schema.attributes, name)) continue;
    const known = Object.keys(schema.attributes).join(', ');
    throw fail(
      schema,
      'invalid_attribute',
      name,
      `one of the attributes ${known}`,
      'an unknown name',
    );
  }
  const values: Record<string, number | string> = {};
  for (const [name, attribute] of Object.entries(schema.attributes)) {
    values[name] = checkAttribute(schema, name, attribute, given[name] ?? attribute.default);
  }
  for (const rule of activeRules(schema, values)) {
    for (const [name, allowed] of Object.entries(rule.requires ?? {})) {
      if (allowed.includes(values[name])) continue;
      const expected = `${allowed.join(' or ')} when ${rule.attribute}=${values[rule.attribute]}`;
      throw fail(schema, 'invalid_attribute', name, expected, `${values[name]}`);
    }
  }
  return values as AttributesOf<S>;
}

function checkAttribute(
  schema: OpSchema,
  name: string,
  attribute: AttributeSchema,
  value: unknown,
): number | string {
  const bad = (expected: string) =>
    fail(schema, 'invalid_attribute', name, expected, value === undefined ? 'none' : `${value}`);
  if (attribute.allowed) {
    if (!attribute.allowed.includes(value as string)) {
      throw bad(`one of ${attribute.allowed.join(', ')}`);
    }
  } else if (attribute.type === 'string' ? typeof value !== 'string' : typeof value !== 'number') {
    throw bad(`of type ${attribute.type}`);
  }
  if (attribute.type === 'int' && !Number.isInteger(value)) throw bad('of type int');
  if (attribute.min !== undefined && !((value as number) >= attribute.min)) {
    throw bad(`at least ${attribute.min}`);
  }
  return value as number | string;
}

function activeRules(schema: OpSchema, values: Readonly<Record<string, unknown>>): RuleSchema[] {
  return schema.rules.filter(({ attribute, is, atLeast }) =>
    atLeast === undefined
      ? is?.includes(values[attribute] as string)
      : (values[attribute] as number) >= atLeast,
  );
}

function checkPresence(
  schema: OpSchema,
  values: Readonly<Record<string, unknown>>,
  inputs: Readonly<Record<string, TensorSpec | undefined>>,
): void {
  for (const input of schema.inputs) {
    if (!input.optional && !inputs[input.name]) {
      throw fail(schema, 'missing_input', input.name, 'given', 'none');
    }
  }
  for (const pair of schema.together ?? []) {
    const [given, missing] = inputs[pair[0]] ? pair : [pair[1], pair[0]];
    if (!inputs[given] || inputs[missing]) continue;
    throw fail(schema, 'missing_input', missing, `given when ${given} is`, 'none');
  }
  for (const rule of activeRules(schema, values)) {
    const when = `when ${rule.attribute}=${values[rule.attribute]}`;
    for (const name of rule.needs ?? []) {
      if (!inputs[name]) throw fail(schema, 'missing_input', name, `given ${when}`, 'none');
    }
    for (const name of rule.refuses ?? []) {
      const spec = inputs[name];
      if (spec) throw fail(schema, 'unexpected_input', name, `absent ${when}`, list(spec.shape));
    }
  }
}

function checkTypes(
  schema: OpSchema,
  inputs: Readonly<Record<string, TensorSpec | undefined>>,
): Record<string, DType> {
  const types: Record<string, DType> = {};
  for (const { name, type } of schema.inputs) {
    const spec = inputs[name];
    if (!spec) continue;
    const choices = types[type] ? [types[type]] : typeChoices(schema, type, types);
    if (!choices.includes(spec.dtype)) {
      throw fail(
        schema,
        'invalid_type',
        name,
        `of type ${type} = ${choices.join(' or ')}`,
        spec.dtype,
      );
    }
    types[type] = spec.dtype;
  }
  return types;
}

/** The dtypes a type variable may take once earlier variables are known. */
function typeChoices(
  schema: OpSchema,
  type: string,
  known: Readonly<Record<string, DType>>,
): DType[] {
  return [...new Set(schema.types[type].map((choice) => known[choice] ?? (choice as DType)))];
}

/** Every combination of dtypes, one record per combination. */
export function typeCombinations(schema: OpSchema): Record<string, DType>[] {
  let combinations: Record<string, DType>[] = [{}];
  for (const type of Object.keys(schema.types)) {
    combinations = combinations.flatMap((known) =>
      typeChoices(schema, type, known).map((dtype) => ({ ...known, [type]: dtype })),
    );
  }
  return combinations;
}

/** A parsed `DimPattern`: the product of `factors`, plus every `sign * atom` of `terms`. */
export interface Dim {
  readonly factors: readonly (string | number)[];
  readonly terms: readonly { readonly atom: string | number; readonly sign: 1 | -1 }[];
}

export function parseDim(pattern: DimPattern): Dim {
  if (!/^\w+(\*\w+)*([+-]\w+)*$/.test(pattern)) {
    throw new TypeError(`bad dimension pattern ${pattern}`);
  }
  const atom = (text: string) => (/^\d+$/.test(text) ? Number(text) : text);
  const [product, ...terms] = pattern.split(/(?=[+-])/);
  return {
    factors: product.split('*').map(atom),
    terms: terms.map((term) => ({ atom: atom(term.slice(1)), sign: term[0] === '-' ? -1 : 1 })),
  };
}

type Dims = Record<string, number>;

const lookUp = (atom: string | number, dims: Dims): number | undefined =>
  typeof atom === 'number' ? atom : dims[atom];

/** The sum of a pattern's terms, or undefined while one of their symbols is unknown. */
function sumOfTerms({ terms }: Dim, dims: Dims): number | undefined {
  let sum = 0;
  for (const { atom, sign } of terms) {
    const value = lookUp(atom, dims);
    if (value === undefined) return undefined;
    sum += sign * value;
  }
  return sum;
}

/** The size a pattern stands for, or undefined while one of its symbols is unknown. */
export function evaluateDim(pattern: DimPattern, dims: Dims): number | undefined {
  const dim = parseDim(pattern);
  let size = 1;
  for (const factor of dim.factors) {
    const value = lookUp(factor, dims);
    if (value === undefined) return undefined;
    size *= value;
  }
  const rest = sumOfTerms(dim, dims);
  return rest === undefined ? undefined : size + rest;
}

/** Gives the one unknown symbol of `pattern` the value that makes it equal `size`; false if there is none. */
function solveDim(
  pattern: DimPattern,
  size: number,
  dims: Dims,
  positive: readonly string[],
): boolean {
  const expected = evaluateDim(pattern, dims);
  if (expected !== undefined) return expected === size;
  const dim = parseDim(pattern);
  let rest = size - (sumOfTerms(dim, dims) ?? 0);
  let unknown = '';
  for (const factor of dim.factors) {
    const value = lookUp(factor, dims);
    if (value === undefined) unknown = factor as string;
    else if (value === 0 || rest % value !== 0) return false;
    else rest /= value;
  }
  if (rest < (positive.includes(unknown) ? 1 : 0)) return false;
  dims[unknown] = rest;
  return true;
}

function solveShape(
  pattern: ShapePattern,
  shape: readonly number[],
  dims: Dims,
  positive: readonly string[],
) {
  return (
    pattern.length === shape.length &&
    pattern.every((dim, i) => solveDim(dim, shape[i], dims, positive))
  );
}

function solveDims(
  schema: OpSchema,
  values: Readonly<Record<string, number | string>>,
  inputs: Readonly<Record<string, TensorSpec | undefined>>,
): Dims {
  const dims = knownDims(schema, values);
  for (const { name, shapes } of schema.inputs) {
    const spec = inputs[name];
    solvePresence(schema, name, spec !== undefined, dims);
    if (!spec) continue;
    const fits = shapes.some((pattern) => {
      const trial = { ...dims };
      return solveShape(pattern, spec.shape, trial, schema.positive) && Object.assign(dims, trial);
    });
    if (!fits) {
      const expected = shapes.map((pattern) => describeShape(pattern, dims)).join(' or ');
      throw fail(schema, 'invalid_shape', name, expected, list(spec.shape));
    }
  }
  for (const constraint of schema.constraints) checkConstraint(schema, constraint, dims);
  for (const [name, [a, b]] of Object.entries(schema.maxima))
    dims[name] = Math.max(dims[a], dims[b]);
  return dims;
}

/** Gives the dimensions that depend on the presence of `input` their sizes. */
function solvePresence(schema: OpSchema, input: string, isGiven: boolean, dims: Dims): void {
  for (const [name, { input: decides, given, absent }] of Object.entries(schema.presence ?? {})) {
    if (decides !== input) continue;
    const pattern = isGiven ? given : absent;
    if (pattern !== undefined) dims[name] = evaluateDim(pattern, dims)!;
  }
}

function knownDims(schema: OpSchema, values: Readonly<Record<string, number | string>>): Dims {
  const dims: Dims = {};
  for (const [name, attribute] of Object.entries(schema.attributes)) {
    if (attribute.type === 'int') dims[name] = values[name] as number;
  }
  for (const [alias, attribute] of Object.entries(schema.aliases)) dims[alias] = dims[attribute];
  return dims;
}

function checkConstraint(
  schema: OpSchema,
  { argument, kind, left, right }: ConstraintSchema,
  dims: Dims,
): void {
  const [a, b] = [evaluateDim(left, dims)!, evaluateDim(right, dims)!];
  const holds = {
    divides: b % a === 0,
    nested: b % a === 0 || a % b === 0,
    atLeast: a >= b,
  };
  if (holds[kind]) return;
  const known = right === `${b}` ? right : `${right} = ${b}`;
  const expected = {
    divides: `such that ${left} divides ${known}`,
    nested: `such that one of ${left} and ${known} divides the other`,
    atLeast: `such that ${left} is at least ${known}`,
  }[kind];
  throw fail(schema, 'invalid_shape', argument, expected, `${left} = ${a}`);
}

/** `[B,T,HV*V] = [2,64,8*V]`: the pattern, then the pattern with what is known filled in. */
function describeShape(pattern: ShapePattern, dims: Dims): string {
  const filled = pattern.map((dim) => evaluateDim(dim, dims) ?? fillDim(dim, dims));
  return `${list(pattern)} = ${list(filled)}`;
}

function fillDim(pattern: DimPattern, dims: Dims): string {
  const { factors, terms } = parseDim(pattern);
  const fill = (atom: string | number) => `${lookUp(atom, dims) ?? atom}`;
  const rest = terms.map(({ atom, sign }) => (sign < 0 ? '-' : '+') + fill(atom));
  return factors.map(fill).join('*') + rest.join('');
}

/** The shape of an output once the dimensions are known. */
export function outputShape(schema: OpSchema, name: string, dims: Readonly<Dims>): number[] {
  const output = schema.outputs.find((candidate) => candidate.name === name);
  if (!output) throw new TypeError(`${schema.name} has no output ${name}`);
  return output.shape.map((dim) => evaluateDim(dim, dims)!);
}

const list = (items: readonly (string | number)[]) => `[${items.join(',')}]`;

function fail(
  schema: OpSchema,
  code: FlaErrorCode,
  argument: string,
  expected: string,
  received: string,
) {
  return new FlaError(
    code,
    `${schema.name}: ${argument} must be ${expected}, received ${received}`,
  );
}
