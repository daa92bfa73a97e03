import { FlaError } from '../ops/error.js';
import {
  type AttributeProto,
  type FunctionProto,
  Graph,
  type GraphProto,
  type Model,
  NODE_LIMIT,
  type NodeProto,
  toNumber,
} from './ir/index.js';
import { RULES } from './rules/index.js';

const CALL_LIMIT = 1000; // of functions that call functions

/**
 * Replaces calls of the model-local functions that hold attention by what is in them, in place, as the newer exporter of
 * PyTorch writes one function per module. Functions that are never called any more are dropped, others stay.
 *
 * @returns whether there were any
 */
export function inlineAttention(model: Model): boolean {
  const wanted = holders(model);
  if (wanted.size === 0) return false;
  checkSize(model.graph.proto.node, wanted);
  while (expand(model.graph.proto, model, wanted)) model.graph.touch();
  const called = new Set<string>();
  const collect = (nodes: readonly NodeProto[]) => {
    for (const node of nodes) {
      called.add(callKey(node));
      for (const sub of subgraphs(node)) collect(sub.node);
    }
  };
  collect(model.graph.proto.node);
  for (const fn of model.functions) if (!wanted.has(functionKey(fn))) collect(fn.node);
  model.proto.functions = model.functions.filter(
    (fn) => !wanted.has(functionKey(fn)) || called.has(functionKey(fn)),
  );
  model.graph.touch();
  return true;
}

function tooMuch(why: string): FlaError {
  return new FlaError('invalid_model', `model: its functions cannot be written out: ${why}`);
}

/** A few functions that call one another twice are a million nodes: they are counted before any is written. */
function checkSize(main: readonly NodeProto[], wanted: ReadonlyMap<string, FunctionProto>): void {
  const known = new Map<FunctionProto, number>();
  const open = new Set<FunctionProto>();
  const count = (nodes: readonly NodeProto[]): number => {
    let sum = 0;
    for (const node of nodes) {
      const fn = wanted.get(callKey(node));
      sum += fn ? within(fn) : 1;
      for (const sub of subgraphs(node)) sum += count(sub.node);
    }
    return sum;
  };
  const within = (fn: FunctionProto): number => {
    const before = known.get(fn);
    if (before !== undefined) return before;
    if (open.has(fn)) throw tooMuch('a function calls itself');
    if (open.size === CALL_LIMIT) throw tooMuch(`more than ${CALL_LIMIT} calls in one another`);
    open.add(fn);
    const sum = count(fn.node);
    open.delete(fn);
    known.set(fn, sum);
    return sum;
  };
  const nodes = count(main);
  if (nodes > NODE_LIMIT) throw tooMuch(`at most ${NODE_LIMIT} nodes expected, received ${nodes}`);
}

/** Functions with attention in them, or in what they call, that can be written into the main graph. */
function holders(model: Model): ReadonlyMap<string, FunctionProto> {
  // Our own functions are bodies of ops, not parts of the model.
  const others = model.functions.filter((fn) => fn.domain !== 'com.fla' && sameOpset(fn, model));
  const callers = new Map<string, Set<FunctionProto>>();
  const holding: FunctionProto[] = [];
  for (const fn of others) {
    const proto = { node: fn.node, initializer: [], input: [], output: [], valueInfo: [] };
    for (const node of new Graph(proto, model).walk()) {
      if (RULES.some((r) => r.anchors(node))) holding.push(fn);
      const called = callKey(node.proto);
      callers.set(called, (callers.get(called) ?? new Set()).add(fn));
    }
  }
  const found = new Map<string, FunctionProto>();
  for (let fn = holding.pop(); fn; fn = holding.pop()) {
    const held = functionKey(fn);
    if (found.has(held)) continue;
    found.set(held, fn);
    for (const caller of callers.get(held) ?? []) holding.push(caller);
  }
  return found;
}

/** Nodes mean what the version of their domain says, which must be the model's own. */
function sameOpset(fn: FunctionProto, model: Model): boolean {
  return fn.opsetImport.every(({ domain, version }) => {
    const known = model.opset(domain ?? '');
    return known === undefined || known === toNumber(version);
  });
}

const key = (domain: string | undefined, name: string | undefined, overload: string | undefined) =>
  `${domain === 'ai.onnx' ? '' : (domain ?? '')}|${name}|${overload ?? ''}`;
const functionKey = (fn: FunctionProto) => key(fn.domain, fn.name, fn.overload);
const callKey = (node: NodeProto) => key(node.domain, node.opType, node.overload);

/** One pass over a graph and those nested in it; says whether anything was replaced. */
function expand(
  graph: GraphProto,
  model: Model,
  wanted: ReadonlyMap<string, FunctionProto>,
): boolean {
  let changed = false;
  graph.node = graph.node.flatMap((node) => {
    for (const sub of subgraphs(node)) changed = expand(sub, model, wanted) || changed;
    const fn = wanted.get(callKey(node));
    if (!fn) return [node];
    changed = true;
    return inlinedCall(fn, node, model);
  });
  return changed;
}

/** What a call computes, its inner values renamed; the model imports what that needs. */
export function inlinedCall(fn: FunctionProto, call: NodeProto, model: Model): NodeProto[] {
  for (const { domain, version } of fn.opsetImport) {
    model.requireOpset(domain ?? '', toNumber(version));
  }
  const prefix = call.name || call.output.find((v) => v) || call.opType;
  const names = new Map<string, string>([['', '']]);
  for (const [i, name] of fn.input.entries()) names.set(name, call.input[i] ?? '');
  for (const [i, name] of fn.output.entries()) {
    names.set(name, call.output[i] || model.fresh(`${prefix}/${name}`));
  }
  // An input that is handed straight through.
  const through = fn.output.flatMap((name, i) => {
    const at = fn.input.indexOf(name);
    if (at < 0 || !call.output[i]) return [];
    names.set(name, call.input[at] ?? '');
    return [
      {
        opType: 'Identity',
        name: model.fresh(`${prefix}/Identity`),
        input: [call.input[at] ?? ''],
        output: [call.output[i]!],
        attribute: [],
      },
    ];
  });
  const rename = (value: string) => {
    const known = names.get(value) ?? model.fresh(`${prefix}/${value}`);
    names.set(value, known);
    return known;
  };
  const defaults = new Map((fn.attributeProto ?? []).map((a) => [a.name, a]));
  const given = (name: string) => call.attribute.find((a) => a.name === name) ?? defaults.get(name);
  return [...fn.node.map((node) => copy(node, rename, given, model, prefix)), ...through];
}

function copy(
  node: NodeProto,
  rename: (value: string) => string,
  given: (attribute: string) => AttributeProto | undefined,
  model: Model,
  prefix: string,
): NodeProto {
  const graph = (g: GraphProto): GraphProto => ({
    ...g,
    node: g.node.map((n) => copy(n, rename, given, model, prefix)),
    initializer: g.initializer.map((t) => ({ ...t, name: rename(t.name ?? '') })),
    input: g.input.map((v) => ({ ...v, name: rename(v.name) })),
    output: g.output.map((v) => ({ ...v, name: rename(v.name) })),
    valueInfo: g.valueInfo.map((v) => ({ ...v, name: rename(v.name) })),
  });
  const attribute = node.attribute.flatMap((a): AttributeProto[] => {
    if (a.refAttrName) {
      const value = given(a.refAttrName);
      return value ? [{ ...value, name: a.name }] : [];
    }
    return [
      { ...a, ...(a.g && { g: graph(a.g) }), ...(a.graphs && { graphs: a.graphs.map(graph) }) },
    ];
  });
  return {
    ...node,
    name: model.fresh(`${prefix}/${node.name || node.opType}`),
    input: node.input.map(rename),
    output: node.output.map(rename),
    attribute,
  };
}

function subgraphs(node: NodeProto): GraphProto[] {
  return node.attribute.flatMap((a) => [...(a.g ? [a.g] : []), ...(a.graphs ?? [])]);
}
