import type { AttributeSchema, InputSchema, OpSchema, OutputSchema } from './define.js';

/** docs/ops/<op>.md. */
export function docPage(schema: OpSchema): string {
  const parts = [
    `# ${schema.domain}.${schema.name}, version ${schema.version}`,
    '<!-- Generated from the schema by `npm run gen`. Do not edit. -->',
    schema.summary,
    '## Inputs',
    table(['input', 'type', 'shape', ''], schema.inputs.map(inputRow)),
    '## Outputs',
    table(['output', 'type', 'shape', ''], schema.outputs.map(outputRow)),
    '## Attributes',
    table(
      ['attribute', 'values', 'default', ''],
      Object.entries(schema.attributes).map(attributeRow),
    ),
    '## Types',
    table(
      ['variable', 'may be'],
      Object.entries(schema.types).map(([name, choices]) => [name, choices.join(', ')]),
    ),
    '## Semantics',
    ...schema.semantics,
    ...rules(schema),
    '## Papers',
    schema.papers.map(({ title, url }) => `- [${title}](${url})`).join('\n'),
  ];
  return `${parts.join('\n\n')}\n`;
}

/** A Markdown table, its columns padded as Biome would. */
function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((_, i) => Math.max(3, ...[head, ...rows].map((row) => row[i].length)));
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, i) => cell.padEnd(widths[i])).join(' | ')} |`;
  const rule = widths.map((width) => '-'.repeat(width));
  return [line(head), line(rule), ...rows.map(line)].join('\n');
}

const shapeText = (shape: readonly string[]) => `[${shape.join(',')}]`;

function inputRow({ name, type, shapes, optional, doc }: InputSchema): string[] {
  return [optional ? `${name}?` : name, type, shapes.map(shapeText).join(' or '), doc];
}

function outputRow({ name, type, shape, doc }: OutputSchema): string[] {
  return [name, type, shapeText(shape), doc];
}

function attributeRow([name, attribute]: [string, AttributeSchema]): string[] {
  const { type, allowed, min, doc } = attribute;
  const values = allowed?.join(', ') ?? (min === undefined ? type : `${type} >= ${min}`);
  return [name, values, attribute.default === undefined ? 'required' : `${attribute.default}`, doc];
}

function rules(schema: OpSchema): string[] {
  const lines = schema.rules.map(({ attribute, is = [], atLeast, needs, refuses, requires }) => {
    const when = atLeast === undefined ? is.join(' or ') : `at least ${atLeast}`;
    const demands = [
      needs && `${needs.join(', ')} must be given`,
      refuses && `${refuses.join(', ')} must be absent`,
      ...Object.entries(requires ?? {}).map(
        ([name, values]) => `${name} must be ${values.join(' or ')}`,
      ),
    ].filter(Boolean);
    return `- ${attribute} ${when}: ${demands.join('; ')}`;
  });
  const pairs = (schema.together ?? []).map((pair) => `- ${pair.join(' and ')}: both or neither`);
  const relations = schema.constraints.map(
    ({ kind, left, right }) =>
      ({
        divides: `- ${left} divides ${right}`,
        nested: `- one of ${left} and ${right} divides the other`,
        atLeast: `- ${left} is at least ${right}`,
      })[kind],
  );
  const all = [...lines, ...pairs, ...relations];
  return all.length === 0 ? [] : ['## Rules', all.join('\n')];
}
