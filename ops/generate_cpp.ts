import {
  type DimPattern,
  type DType,
  type OpSchema,
  parseDim,
  type ShapePattern,
  typeCombinations,
} from './define.js';

const cppTypes: Partial<Record<DType, string>> = {
  float32: 'DType::kFloat32',
  float16: 'DType::kFloat16',
  bfloat16: 'DType::kBFloat16',
  bool: 'DType::kBool',
};

/** ops/gen/<op>_constants.h: the numbers of the definition, for kernels. Undefined when there are none. */
export function cppConstants(schema: OpSchema): string | undefined {
  const lines = Object.entries(schema.constants).map(
    ([name, { value, doc }]) =>
      `constexpr float k${camel(name)} = ${cppFloat(value)};  // ${doc}\n`,
  );
  if (lines.length === 0) return undefined;
  const snake = snakeCase(schema.name);
  return header(snake, 'CONSTANTS_H_', lines.join(''));
}

/** ops/gen/<op>.h: indices and the `OpTable` of one operator. */
export function cppHeader(schema: OpSchema): string {
  const table = new Table(schema);
  const snake = snakeCase(schema.name);
  const body = `${table.indices()}\n${table.definition()}`;
  return header(snake, 'H_', body, '#include "ops/register/op_table.h"\n\n');
}

function header(snake: string, guardEnd: string, body: string, includes = ''): string {
  const guard = `FLA_OPS_GEN_${snake.toUpperCase()}_${guardEnd}`;
  return `// Generated from ops/${snake}/schema.ts by \`npm run gen\`. Do not edit.
// clang-format off
#ifndef ${guard}
#define ${guard}

${includes}namespace fla::gen::${snake} {

${body}
}  // namespace fla::gen::${snake}

#endif  // ${guard}
`;
}

/** `LinearAttention` -> `linear_attention`. */
export function snakeCase(name: string): string {
  return name.replace(/(?<!^)([A-Z])/g, '_$1').toLowerCase();
}

/** `kv_num_heads` -> `KvNumHeads`, `atLeast` -> `AtLeast`. */
function camel(name: string): string {
  return name.replace(/(?:^|_)(\w)/g, (_, letter: string) => letter.toUpperCase());
}

/** Builds the constexpr definitions bottom up: every list becomes a named array that its owner points to. */
class Table {
  private readonly arrays: string[] = [];
  private readonly dims: string[];
  private readonly attributes: string[];
  private readonly inputs: string[];
  private readonly types: string[];

  constructor(private readonly schema: OpSchema) {
    this.attributes = Object.keys(schema.attributes);
    this.inputs = schema.inputs.map(({ name }) => name);
    this.types = Object.keys(schema.types);
    this.dims = this.dimNames();
  }

  /** int attributes used in shapes, aliases, dimensions solved from shapes, maxima. */
  private dimNames(): string[] {
    const names = new Set(Object.keys(this.schema.aliases));
    for (const { shapes } of this.schema.inputs) {
      for (const dim of shapes.flat()) {
        const { factors, terms } = parseDim(dim);
        for (const atom of [...factors, ...terms.map((term) => term.atom)]) {
          if (typeof atom === 'string') names.add(atom);
        }
      }
    }
    for (const name of Object.keys(this.schema.maxima)) names.add(name);
    return [...names];
  }

  indices(): string {
    const enums = [
      this.enumOf('Input', 'k', this.inputs),
      this.enumOf(
        'Output',
        'k',
        this.schema.outputs.map(({ name }) => name),
      ),
      this.enumOf('Attribute', 'kAttribute', this.attributes),
      this.enumOf('Dim', 'kDim', this.dims),
      this.enumOf('Type', 'kType', this.types),
    ];
    for (const [name, { type, allowed }] of Object.entries(this.schema.attributes)) {
      if (type === 'string' && allowed) {
        enums.push(this.enumOf(camel(name), `k${camel(name)}`, allowed.map(String)));
      }
    }
    return enums.join('');
  }

  private enumOf(name: string, prefix: string, items: readonly string[]): string {
    return `enum ${name} : int { ${items.map((item) => prefix + camel(item)).join(', ')} };\n`;
  }

  definition(): string {
    const { schema } = this;
    const fields = [
      quote(schema.name),
      quote(schema.domain),
      `${schema.version}`,
      this.span('TypeTable', 'types', this.typeRows()),
      this.span('TypeCombination', 'combinations', this.combinationRows()),
      this.span('const char*', 'dim_names', this.dims.map(quote)),
      this.span(
        'int',
        'positive',
        schema.positive.map((name) => this.dimIndex(name)),
      ),
      this.span('AliasTable', 'aliases', this.aliasRows()),
      this.span('MaximumTable', 'maxima', this.maximumRows()),
      this.span('PresenceTable', 'presence', this.presenceRows()),
      this.span('AttributeTable', 'attributes', this.attributeRows()),
      this.span('InputTable', 'inputs', this.inputRows()),
      this.span('OutputTable', 'outputs', this.outputRows()),
      this.span('ConstraintTable', 'constraints', this.constraintRows()),
      this.span('PairTable', 'together', this.pairRows()),
      this.span('RuleTable', 'rules', this.ruleRows()),
    ];
    return `${this.arrays.join('')}
inline constexpr OpTable kTable = {
    ${fields.join(',\n    ')}};
`;
  }

  /** Defines an array and returns a Span over it. */
  private span(type: string, name: string, items: readonly string[]): string {
    if (items.length === 0) return '{}';
    const separator = items.some((item) => item.startsWith('{')) ? ',\n    ' : ', ';
    const elements = separator === ', ' ? items.join(separator) : `\n    ${items.join(separator)}`;
    this.arrays.push(`inline constexpr ${type} ${name}[] = {${elements}};\n`);
    return `{${name}, ${items.length}}`;
  }

  private typeRows(): string[] {
    return Object.entries(this.schema.types).map(([name, choices]) => {
      const rows = choices.map((choice) => {
        const variable = this.types.indexOf(choice);
        return variable < 0 ? `{-1, ${cppType(choice as DType)}}` : `{kType${camel(choice)}, {}}`;
      });
      return `{${quote(name)}, ${this.span('TypeChoice', `type_${name}`, rows)}}`;
    });
  }

  private combinationRows(): string[] {
    return typeCombinations(this.schema).map(
      (types) => `{{${this.types.map((name) => cppType(types[name])).join(', ')}}}`,
    );
  }

  private aliasRows(): string[] {
    const direct = this.dims
      .filter((name) => this.attributes.includes(name))
      .map((name) => [name, name]);
    return [...Object.entries(this.schema.aliases), ...direct].map(
      ([symbol, attribute]) => `{${this.dimIndex(symbol)}, kAttribute${camel(attribute)}}`,
    );
  }

  private maximumRows(): string[] {
    return Object.entries(this.schema.maxima).map(
      ([name, pair]) => `{${[name, ...pair].map((symbol) => this.dimIndex(symbol)).join(', ')}}`,
    );
  }

  private presenceRows(): string[] {
    return Object.entries(this.schema.presence ?? {}).map(([name, { input, given, absent }]) => {
      const sizes = `${given !== undefined}, ${this.dim(given ?? absent)}, ${this.dim(absent)}`;
      return `{${this.dimIndex(name)}, k${camel(input)}, ${sizes}}`;
    });
  }

  private pairRows(): string[] {
    return (this.schema.together ?? []).map((pair) => `{k${camel(pair[0])}, k${camel(pair[1])}}`);
  }

  private attributeRows(): string[] {
    return Object.entries(this.schema.attributes).map(([name, attribute]) => {
      const { type, allowed = [], min } = attribute;
      const span = this.span(
        'const char*',
        `allowed_${name}`,
        allowed.map((value) => quote(`${value}`)),
      );
      const number = typeof attribute.default === 'number' ? attribute.default : 0;
      const text = typeof attribute.default === 'string' ? quote(attribute.default) : 'nullptr';
      return `{${[
        quote(name),
        `AttributeType::k${camel(type)}`,
        `${attribute.default === undefined}`,
        `${number}`,
        text,
        span,
        `${min !== undefined}`,
        `${min ?? 0}`,
      ].join(', ')}}`;
    });
  }

  private inputRows(): string[] {
    return this.schema.inputs.map(({ name, type, optional = false, shapes }) => {
      const list = shapes.map((shape) => this.shape(shape)).join(',\n      ');
      return `{${quote(name)}, kType${camel(type)}, ${optional}, ${shapes.length}, {\n      ${list}}}`;
    });
  }

  private outputRows(): string[] {
    return this.schema.outputs.map(({ name, type, optional = false, inPlaceOf, shape }) => {
      const reused = inPlaceOf ? `k${camel(inPlaceOf)}` : '-1';
      return `{${quote(name)}, kType${camel(type)}, ${optional}, ${reused},\n      ${this.shape(shape)}}`;
    });
  }

  private shape(pattern: ShapePattern): string {
    return `{${pattern.length}, {${pattern.map((dim) => this.dim(dim)).join(', ')}}}`;
  }

  private dim(pattern: DimPattern): string {
    const { factors, terms } = parseDim(pattern);
    if (factors.length > 2) throw new TypeError(`at most two factors: ${pattern}`);
    if (terms.length > 3) throw new TypeError(`at most three terms: ${pattern}`);
    const [first, second = 1] = factors;
    const sums = terms.map(({ atom, sign }) => `{${this.atom(atom)}, ${sign}}`).join(', ');
    return `{${quote(pattern)}, {${this.atom(first)}, ${this.atom(second)}}, ${terms.length}, {${sums}}}`;
  }

  private atom(atom: string | number): string {
    return typeof atom === 'number' ? `literal(${atom})` : `symbol(${this.dimIndex(atom)})`;
  }

  private dimIndex(name: string): string {
    if (!this.dims.includes(name)) throw new TypeError(`no dimension ${name}`);
    return `kDim${camel(name)}`;
  }

  private constraintRows(): string[] {
    return this.schema.constraints.map(
      ({ argument, kind, left, right }) =>
        `{${quote(argument)}, ConstraintKind::k${camel(kind)}, ${this.dim(left)}, ${this.dim(right)}}`,
    );
  }

  private ruleRows(): string[] {
    return this.schema.rules.map((rule, i) => {
      const { attribute, is = [], atLeast, needs, refuses, requires = {} } = rule;
      const inputs = (names: readonly string[] = []) => names.map((name) => `k${camel(name)}`);
      const values = Object.entries(requires).map(
        ([name, allowed]) => `{kAttribute${camel(name)}, ${this.bits(name, allowed)}}`,
      );
      return `{${[
        `kAttribute${camel(attribute)}`,
        this.bits(attribute, is),
        `${atLeast !== undefined}`,
        `${atLeast ?? 0}`,
        this.span('int', `rule_${i}_needs`, inputs(needs)),
        this.span('int', `rule_${i}_refuses`, inputs(refuses)),
        this.span('RequiredValueTable', `rule_${i}_values`, values),
      ].join(', ')}}`;
    });
  }

  /** The bit set of `values` over an attribute's allowed values. */
  private bits(attribute: string, values: readonly (number | string)[]): number {
    const allowed = this.schema.attributes[attribute].allowed ?? [];
    return values.reduce<number>((set, value) => set | (1 << allowed.indexOf(value)), 0);
  }
}

function cppType(dtype: DType): string {
  const type = cppTypes[dtype];
  if (!type) throw new TypeError(`no C++ type for ${dtype}`);
  return type;
}

const quote = (text: string) => JSON.stringify(text);

const cppFloat = (value: number) => `${Number.isInteger(value) ? `${value}.0` : value}f`;
