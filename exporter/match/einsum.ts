import type { Node } from '../ir/index.js';

/** `abc,abd->cd` as its letters; undefined where operands are not two, letters repeat, or an ellipsis stands for some. */
export function einsumLetters(
  node: Node,
): { inputs: readonly [string, string]; output: string } | undefined {
  const equation = (node.string('equation') ?? '').replaceAll(' ', '');
  const [, a, b, output] = /^([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)$/.exec(equation) ?? [];
  const once = (s: string) => new Set(s).size === s.length;
  if (!a || !b || !output || ![a, b, output].every(once)) return undefined;
  return { inputs: [a, b], output };
}

/** How heads lie in an operand. */
export type EinsumLayout = 'bhtd' | 'bthd' | 'ntd';

/** The scores q k' as an Einsum: which operand is q, and how heads lie in both. */
export function scoresOf(
  node: Node,
): { q: 0 | 1; queries: EinsumLayout; keys: EinsumLayout } | undefined {
  const letters = einsumLetters(node);
  if (!letters) return undefined;
  const { inputs, output } = letters;
  const [rows, columns] = [output.at(-2)!, output.at(-1)!];
  const q = inputs[0].includes(rows) ? 0 : 1;
  const [ofQ, ofK] = [inputs[q], inputs[1 - q]!];
  const [inner, ...more] = [...ofQ].filter((c) => ofK.includes(c) && !output.includes(c));
  if (!inner || more.length > 0 || ofQ.includes(columns) || ofK.includes(rows)) return undefined;
  const batch = output.slice(0, -2);
  const queries = layoutOf(ofQ, batch, rows, inner);
  const keys = layoutOf(ofK, batch, columns, inner);
  return queries && keys && { q, queries, keys };
}

/** The weighted sum as an Einsum, the weights being operand `at`: how heads lie in values and result. */
export function sumOf(
  node: Node,
  at: number,
): { values: EinsumLayout; result: EinsumLayout } | undefined {
  const letters = einsumLetters(node);
  if (!letters || at > 1) return undefined;
  const weights = letters.inputs[at]!;
  const ofV = letters.inputs[1 - at]!;
  const batch = weights.slice(0, -2);
  const inner = [...ofV].filter((c) => !weights.includes(c));
  if (inner.length !== 1) return undefined;
  const values = layoutOf(ofV, batch, weights.at(-1)!, inner[0]!);
  const result = layoutOf(letters.output, batch, weights.at(-2)!, inner[0]!);
  return values && result && { values, result };
}

function layoutOf(
  operand: string,
  batch: string,
  tokens: string,
  inner: string,
): EinsumLayout | undefined {
  const [b, h] = batch;
  if (batch.length === 1) return operand === `${b}${tokens}${inner}` ? 'ntd' : undefined;
  if (batch.length !== 2) return undefined;
  if (operand === `${b}${h}${tokens}${inner}`) return 'bhtd';
  return operand === `${b}${tokens}${h}${inner}` ? 'bthd' : undefined;
}
