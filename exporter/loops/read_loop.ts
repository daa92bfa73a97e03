import { type Graph, isFloat, type Node } from '../ir/index.js';
import { Facts } from '../match/facts.js';
import type { Output, Token, TokenLoop } from './token_loop.js';

interface Carried {
  readonly before: string;
  readonly after: string;
  readonly initial: string;
  readonly final: string;
}

/** More steps than any loop over tokens makes: exporters write such a number where there is no limit. */
const NO_LIMIT = 2 ** 31 - 1;

/**
 * A Loop as a loop over tokens, or why it is none: it counts tokens, reads each one with Gather or Slice from what holds all of them,
 * and hands on one state. Outputs are collected as scan outputs, in a sequence, or in a tensor that is carried.
 *
 * @returns the ways to read it: which carried tensor is the state has to be tried
 */
export function readLoop(node: Node, facts: Facts): TokenLoop[] | string {
  const [body] = node.subgraphs;
  if (!body || body.inputs.length < 2 || body.outputs.length < 1) return 'it has no body';
  const reading = new Reading(node, body, facts);
  const steps = reading.steps();
  if (typeof steps === 'string') return steps;
  const [iteration] = body.inputs.map((i) => i.name) as [string];
  const outputs: Output[] = [];
  for (const [i, { name }] of body.outputs.slice(1 + reading.carried.length).entries()) {
    const result = node.outputs[reading.carried.length + i];
    if (result) outputs.push({ kind: 'stack', value: name, result, axis: 0 });
  }
  const tensors: Carried[] = [];
  for (const carried of reading.carried) {
    if (reading.isInvariant(carried)) continue;
    if (reading.counts(carried)) {
      if (carried.final && isRead(node.graph, carried.final))
        return `the number of tokens that it has seen is read as '${carried.final}'`;
      continue;
    }
    const sequence = reading.sequence(carried);
    if (typeof sequence === 'string') return sequence;
    if (sequence) outputs.push(sequence);
    else tensors.push(carried);
  }
  if (outputs.length > 1) return `it must have one output a token, received ${outputs.length}`;
  if (tensors.length !== 2 - outputs.length) {
    return `it must carry one state and have one output a token, received ${tensors.length} tensors and ${outputs.length} outputs`;
  }
  const other = tensors.find(({ initial }) => {
    const dtype = facts.dtype(initial);
    return dtype && !isFloat(dtype);
  });
  if (other)
    return `'${other.initial}' must be a float tensor, received ${facts.dtype(other.initial)}`;
  const { tokens, again, reads } = reading.tokens();
  return tensors.map((state, i) => {
    const buffer = tensors[1 - i];
    return {
      ...{ node, body, state, tokens, again, reads, steps },
      counters: [
        iteration,
        ...reading.carried.filter((c) => reading.counts(c)).map((c) => c.before),
      ],
      output: outputs[0] ?? {
        kind: 'buffer',
        before: buffer!.before,
        value: buffer!.after,
        initial: buffer!.initial,
        result: buffer!.final,
      },
      same: reading.carried
        .filter((c) => c.final && reading.isInvariant(c))
        .map((c) => [c.final, c.initial] as const),
    };
  });
}

class Reading {
  readonly carried: readonly Carried[];
  private readonly facts: Facts;
  private readonly iteration: string;
  private readonly condition: string;

  constructor(
    private readonly node: Node,
    private readonly body: Graph,
    private readonly outer: Facts,
  ) {
    this.facts = new Facts(body, undefined, outer);
    const [iteration, condition, ...befores] = body.inputs.map((i) => i.name);
    this.iteration = iteration!;
    this.condition = condition!;
    this.carried = befores.map((before, i) => ({
      before,
      after: body.outputs[1 + i]?.name ?? '',
      initial: node.inputs[2 + i] ?? '',
      final: node.outputs[i] ?? '',
    }));
  }

  /** A value looked through Identity and through what is handed on unchanged. */
  private source(value: string): string {
    for (let at = value; ; ) {
      const node = this.own(at);
      if (node?.is('Identity')) {
        at = node.inputs[0]!;
        continue;
      }
      const carried = this.carried.find((c) => c.before === at);
      if (!carried || !this.isInvariant(carried)) return at;
      return carried.initial;
    }
  }
  /** The node of the body, not of a graph around it, that makes a value. */
  private own(value: string): Node | undefined {
    const node = value ? this.body.producer(value) : undefined;
    return node?.graph === this.body ? node : undefined;
  }
  private isOutside(value: string): boolean {
    return !this.own(value) && !this.body.inputs.some((i) => i.name === value);
  }

  isInvariant({ before, after }: Carried): boolean {
    let at = after;
    for (let node = this.own(at); node?.is('Identity'); node = this.own(at)) at = node.inputs[0]!;
    return at === before;
  }
  /** Whether it is 0, 1, 2, ... */
  counts(carried: Carried): boolean {
    const added = this.offset(carried.after, [carried.before]);
    return added?.by === 1 && this.outer.scalar(carried.initial) === 0;
  }

  /** What is added to the number of tokens before this one (or to one of `from`), and whether it is a vector of one element. */
  private offset(
    value: string,
    from: readonly string[] = this.counters(),
  ): { by: number; vector: boolean } | undefined {
    if (from.includes(value)) {
      return { by: 0, vector: this.body.dims(value)?.length === 1 };
    }
    const node = this.own(value);
    const [a = '', b = ''] = node?.inputs ?? [];
    switch (node?.opType) {
      case 'Identity':
      case 'Cast':
        return this.offset(a, from);
      case 'Unsqueeze':
      case 'Reshape': {
        const x = this.offset(a, from);
        const flat = node.opType === 'Unsqueeze' || this.facts.ints(b)?.length === 1;
        return x && !x.vector && flat ? { ...x, vector: true } : flat ? x : undefined;
      }
      case 'Squeeze': {
        const x = this.offset(a, from);
        return x && { ...x, vector: false };
      }
      case 'Add': {
        const [x, n] = this.facts.scalar(b) === undefined ? [b, a] : [a, b];
        const added = this.facts.scalar(n);
        const of = added === undefined ? undefined : this.offset(x, from);
        return of && { by: of.by + added!, vector: of.vector || this.facts.rank(n) === 1 };
      }
    }
    return undefined;
  }
  private counters(): string[] {
    return [this.iteration, ...this.carried.filter((c) => this.counts(c)).map((c) => c.before)];
  }

  /** What limits the number of steps. */
  steps(): string[] | string {
    const limits: string[] = [];
    const [count = '', first = ''] = this.node.inputs;
    const { graph } = this.node;
    const known = count ? graph.scalar(count) : NO_LIMIT;
    if (known === undefined || known < NO_LIMIT) limits.push(count);
    const goesOn = this.source(this.body.outputs[0]!.name);
    if (this.body.scalar(goesOn) !== 1 && goesOn !== this.condition) {
      const below = this.limits(goesOn);
      if (!below) return 'whether it goes on depends on more than the number of tokens';
      limits.push(...below);
    }
    if (first && graph.scalar(first) !== 1 && !this.startsBelow(first, limits))
      return `whether it starts depends on more than the number of tokens: '${first}'`;
    return limits.length > 0 ? [...new Set(limits)] : 'nothing says how many tokens there are';
  }
  /** Limits of a condition that is true as long as the number of the next token is below all of them. */
  private limits(condition: string): string[] | undefined {
    const node = this.own(condition);
    const [a = '', b = ''] = node?.inputs ?? [];
    if (node?.is('Cast')) return this.limits(this.source(a));
    if (node?.is('And')) {
      const both = [this.limits(this.source(a)), this.limits(this.source(b))];
      return both.every((l) => l !== undefined) ? both.flat() : undefined;
    }
    const limit = this.source(b);
    const next = node?.is('Less') && this.isOutside(limit) ? this.offset(a)?.by : undefined;
    if (next === 1) return [limit];
    // TensorFlow's counter lags behind, but the Loop itself ends there.
    return next === 0 && this.sameNumber(limit, this.node.inputs[0] ?? '') ? [] : undefined;
  }
  /** The same condition before the first token. */
  private startsBelow(condition: string, limits: readonly string[]): boolean {
    const node = this.node.graph.producer(condition);
    const [a = '', b = ''] = node?.inputs ?? [];
    if (node?.is('Cast') || node?.is('Identity')) return this.startsBelow(a, limits);
    if (node?.is('And')) return this.startsBelow(a, limits) && this.startsBelow(b, limits);
    return (
      !!node?.is('Less') && this.outer.scalar(a) === 0 && limits.some((l) => this.sameNumber(b, l))
    );
  }
  private sameNumber(a: string, b: string): boolean {
    const root = (value: string): string => {
      const node = this.node.graph.producer(value);
      return node?.is('Identity') || node?.is('Cast') ? root(node.inputs[0]!) : value;
    };
    const number = this.outer.scalar(a);
    return root(a) === root(b) || (number !== undefined && number === this.outer.scalar(b));
  }

  /** Outputs that are put into a sequence, of which a tensor is made after the loop. */
  sequence({ before, after, final }: Carried): Output | string | undefined {
    const insert = this.own(after);
    if (!insert?.is('SequenceInsert')) return undefined;
    const [sequence, value = '', position] = insert.inputs;
    if (sequence !== before || position || this.body.uses(before).length > 1)
      return `the sequence '${before}' is used for more than an output a token`;
    const uses = this.node.graph.uses(final);
    const [use] = uses;
    if (uses.length !== 1 || !use?.node.is('ConcatFromSequence') || this.node.graph.isOutput(final))
      return `the sequence '${final}' must be read by one ConcatFromSequence only`;
    return {
      kind: use.node.int('new_axis') === 1 ? 'stack' : 'join',
      value,
      result: use.node.outputs[0]!,
      axis: use.node.int('axis') ?? 0,
    };
  }

  /** Where the body takes the token of a step. */
  tokens(): Pick<TokenLoop, 'tokens' | 'again' | 'reads'> {
    const tokens: Token[] = [];
    const again: [string, string][] = [];
    const reads: Node[] = [];
    for (const node of this.body.nodes) {
      const value = this.source(node.inputs[0] ?? '');
      if (!value || !this.isOutside(value)) continue;
      const read = node.is('Gather')
        ? this.gathered(node)
        : node.is('Slice')
          ? this.sliced(node)
          : undefined;
      if (!read) continue;
      const name = node.outputs[0]!;
      const known = tokens.find(
        (t) => t.value === value && t.axis === read.axis && t.kept === read.kept,
      );
      if (known) again.push([name, known.name]);
      else tokens.push({ value, name, ...read });
      reads.push(node);
    }
    return { tokens, again, reads };
  }
  private gathered(node: Node): Pick<Token, 'axis' | 'kept'> | undefined {
    const index = this.offset(node.inputs[1] ?? '');
    return index?.by === 0 ? { axis: node.int('axis') ?? 0, kept: index.vector } : undefined;
  }
  private sliced(node: Node): Pick<Token, 'axis' | 'kept'> | undefined {
    const [, start = '', end = '', axes = '', step = ''] = node.inputs;
    const [axis, more] = this.facts.ints(axes) ?? [];
    const one = !step || this.facts.scalar(step) === 1;
    const [from, to] = [this.offset(start), this.offset(end)];
    return from?.by === 0 && to?.by === 1 && one && axis !== undefined && more === undefined
      ? { axis, kept: true }
      : undefined;
  }
}

function isRead(graph: Graph, value: string): boolean {
  return graph.isOutput(value) || graph.uses(value).length > 0;
}
