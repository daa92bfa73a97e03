import { describe, expect, it } from 'vitest';
import { buildModel, Emitter, freshNames, makeNode } from '../../../exporter/index.js';
import { Facts } from '../../../exporter/match/facts.js';
import {
  any,
  either,
  isMiss,
  lazy,
  match,
  note,
  number,
  op,
  type Pattern,
} from '../../../exporter/match/pattern.js';

/** A graph over inputs a and b, and its facts. */
function graphOf(write: (e: Emitter) => string) {
  const e = new Emitter(freshNames());
  const value = write(e);
  const { graph } = buildModel({
    inputs: { a: ['float32', ['N']], b: ['float32', ['N']] },
    outputs: { [value]: ['float32', ['N']] },
    nodes: e.nodes,
  });
  return { value, facts: new Facts(graph) };
}
function values(pattern: Pattern<never>, write: (e: Emitter) => string) {
  const { value, facts } = graphOf(write);
  const result = match(pattern, value, facts);
  return isMiss(result) ? result.reason : result.values;
}

describe('op', () => {
  const scaled = op<never>('Mul', [op('Relu', [any('x')]), number('factor')]);

  it('matches operands in order and binds them', () => {
    const found = values(scaled, (e) => e.op('Mul', [e.op('Relu', ['a']), e.scalar(3)]));
    expect(found).toEqual({ x: 'a', factor: 'Constant' });
  });
  it('matches Mul and Add the other way round, but not Div', () => {
    expect(values(scaled, (e) => e.op('Mul', [e.scalar(3), e.op('Relu', ['a'])]))).toMatchObject({
      x: 'a',
    });
    const divided = op<never>('Div', [op('Relu', [any('x')]), number('factor')]);
    expect(values(divided, (e) => e.op('Div', [e.scalar(3), e.op('Relu', ['a'])]))).toMatch(/must/);
  });
  it('looks through Cast, Identity and Dropout', () => {
    const found = values(scaled, (e) => {
      const relu = e.op('Identity', [e.op('Dropout', [e.op('Relu', ['b'])])]);
      return e.op('Cast', [e.op('Mul', [relu, e.scalar(2)])], { to: 1 });
    });
    expect(found).toMatchObject({ x: 'b' });
  });
  it('takes several operators, and those of other domains by their full name', () => {
    const either2 = op<never>('Add|Sub', [any('x'), any('y')]);
    expect(values(either2, (e) => e.op('Sub', ['a', 'b']))).toEqual({ x: 'a', y: 'b' });
    const fused = op<never>('com.microsoft.FusedMatMul', [any('x'), any('y')]);
    const domain = { domain: 'com.microsoft' };
    expect(values(fused, (e) => e.op('FusedMatMul', ['a', 'b'], {}, domain))).toEqual({
      x: 'a',
      y: 'b',
    });
    expect(values(fused, (e) => e.op('FusedMatMul', ['a', 'b']))).toMatch(/received FusedMatMul/);
  });
  it('says what it expected and what it found', () => {
    expect(values(scaled, (e) => e.op('Mul', [e.op('Tanh', ['a']), e.scalar(3)]))).toBe(
      "'Tanh_node' must be Relu, received Tanh",
    );
    expect(values(scaled, (e) => e.op('Mul', [e.op('Relu', ['a']), 'b']))).toBe(
      "'b' must be a constant number",
    );
  });
  it('fails with the reason of its check', () => {
    const checked = op<never>('Relu', [any('x')], (node) => `${node.opType} is not liked`);
    expect(values(checked, (e) => e.op('Relu', ['a']))).toBe('Relu is not liked');
  });
});

describe('either', () => {
  it('takes the first that matches', () => {
    const p = either<never>(op('Neg', [any('n')]), op('Relu', [any('r')]));
    expect(values(p, (e) => e.op('Relu', ['a']))).toEqual({ r: 'a' });
  });
  it('reports the miss that came furthest', () => {
    const far = op<never>('Add', [op('Relu', [op('Neg', [any('x')])]), any('y')]);
    const near = op<never>('Mul', [any('x'), any('y')]);
    const reason = values(either(near, far), (e) =>
      e.op('Add', [e.op('Relu', [e.op('Tanh', ['a'])]), 'b']),
    );
    expect(reason).toBe("'Tanh_node' must be Neg, received Tanh");
  });
});

describe('lazy and note', () => {
  type Step = { op: string; value: string };
  const chain: Pattern<Step> = lazy(() =>
    either<Step>(
      op('Relu', [any('end')]),
      note(op('Add', [chain, any('what')]), (v) => ({ op: 'add', value: v.what! })),
      note(op('Where', [any('what'), chain, any('other')]), (v) => ({
        op: 'where',
        value: v.what!,
      })),
    ),
  );

  it('gathers notes from the matched value inwards, each with its own bindings', () => {
    const { value, facts } = graphOf((e) => {
      const first = e.op('Add', [e.op('Relu', ['a']), 'b']);
      const second = e.op('Where', [e.op('Not', ['b'], {}, { output: 'c' }), first, 'a']);
      return e.op('Add', ['a', second]);
    });
    const found = match(chain, value, facts);
    expect(isMiss(found) ? found.reason : found.notes).toEqual([
      { op: 'add', value: 'a' },
      { op: 'where', value: 'c' },
      { op: 'add', value: 'b' },
    ]);
    expect(isMiss(found) ? [] : found.nodes.map((n) => n.opType)).toEqual([
      'Add',
      'Where',
      'Add',
      'Relu',
    ]);
  });
});

it('a value of a graph input or constant is said to be one', () => {
  const { graph } = buildModel({
    inputs: { a: ['float32', ['N']] },
    outputs: { y: ['float32', ['N']] },
    nodes: [makeNode('Relu', ['a'], ['y'])],
  });
  const result = match(op<never>('Relu', [op('Neg', [any('x')])]), 'y', new Facts(graph));
  expect(isMiss(result) && result.reason).toBe(
    "'a' must come from Neg, received a graph input or constant",
  );
});
