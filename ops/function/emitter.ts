import {
  DATA_TYPE,
  type DTypeName,
  Emitter,
  freshNames,
  makeValueInfo,
} from '../../exporter/ir/index.js';

/** Larger than any dimension, for the ends of static slices. */
const TO_END = 2 ** 31 - 1;

/**
 * Writes function bodies that are valid in every version of the default domain from 9 to 26.
 *
 * ONNX Runtime inlines a function and then reads its nodes under the model's opset, whatever the function imports, so a body
 * must be written for the model's version. The methods here hide what changed between versions. Lengths that are only known at
 * run time are int64 vectors of one element, which is what `dim` gives and what `shape` joins.
 */
export class BodyEmitter extends Emitter {
  constructor(
    readonly opset: number,
    private readonly names: (stem: string) => string = freshNames(),
  ) {
    super(names);
  }

  /** An emitter for a nested graph: names stay unique, constants are its own. */
  nested(): BodyEmitter {
    return new BodyEmitter(this.opset, this.names);
  }

  cast(x: string, dtype: DTypeName, output?: string): string {
    return this.op('Cast', [x], { to: DATA_TYPE[dtype] }, { output });
  }
  add(a: string, b: string): string {
    return this.op('Add', [a, b]);
  }
  sub(a: string, b: string): string {
    return this.op('Sub', [a, b]);
  }
  mul(a: string, b: string): string {
    return this.op('Mul', [a, b]);
  }
  div(a: string, b: string): string {
    return this.op('Div', [a, b]);
  }
  matmul(a: string, b: string): string {
    return this.op('MatMul', [a, b]);
  }
  /** The smaller of two int64 values: Min takes no integers before opset 12. */
  smaller(a: string, b: string): string {
    return this.op('Where', [this.op('Less', [a, b]), a, b]);
  }
  /** The larger of two int64 values. */
  larger(a: string, b: string): string {
    return this.op('Where', [this.op('Less', [a, b]), b, a]);
  }

  /** Length of one axis. */
  dim(x: string, axis: number): string {
    return this.op('Gather', [this.op('Shape', [x]), this.ints(axis)], { axis: 0 });
  }
  /** A shape from static lengths and values of `dim`. */
  shape(lengths: readonly (number | string)[]): string {
    const parts = lengths.map((d) => (typeof d === 'number' ? this.ints(d) : d));
    return this.op('Concat', parts, { axis: 0 });
  }
  /**
   * Reshape; a length of 0 keeps the input's.
   *
   * Computed lengths are added into the static ones rather than joined with Concat: ONNX Runtime would replace a sole computed
   * part of a Concat by -1, which no empty tensor can be reshaped to.
   */
  reshape(x: string, lengths: readonly (number | string)[], output?: string): string {
    let shape = this.ints(...lengths.map((d) => (typeof d === 'number' ? d : 0)));
    for (const [i, length] of lengths.entries()) {
      if (typeof length === 'number') continue;
      shape = this.add(shape, this.mul(length, this.ints(...lengths.map((_, j) => +(i === j)))));
    }
    return this.op('Reshape', [x, shape], {}, { output });
  }
  transpose(x: string, perm: readonly number[]): string {
    return this.op('Transpose', [x], { perm });
  }
  unsqueeze(x: string, axis: number): string {
    return this.withAxes('Unsqueeze', x, axis, 13);
  }
  squeeze(x: string, axis: number): string {
    return this.withAxes('Squeeze', x, axis, 13);
  }
  /** Sum over one axis, which stays with length 1. */
  sum(x: string, axis: number): string {
    return this.withAxes('ReduceSum', x, axis, 13, { keepdims: 1 });
  }
  /** Maximum over one axis, which stays with length 1. */
  max(x: string, axis: number): string {
    return this.withAxes('ReduceMax', x, axis, 18, { keepdims: 1 });
  }
  zeros(lengths: readonly (number | string)[]): string {
    return this.op('ConstantOfShape', [this.shape(lengths)]);
  }

  /** x[start:end] along one axis, with fixed bounds; negative ones count from the end. */
  slice(x: string, axis: number, start: number, end = TO_END): string {
    if (this.opset < 10) {
      return this.op('Slice', [x], { axes: [axis], starts: [start], ends: [end] });
    }
    return this.op('Slice', [x, this.ints(start), this.ints(end), this.ints(axis)]);
  }
  /** x[start : start + length] along one axis; start and length may be values of `dim`. */
  window(x: string, axis: number, start: number | string, length: string): string {
    const from = typeof start === 'number' ? this.ints(start) : start;
    if (this.opset >= 10) {
      const end = start === 0 ? length : this.add(length, from);
      return this.op('Slice', [x, from, end, this.ints(axis)]);
    }
    // Slice takes no computed bounds before opset 10.
    return this.op('Gather', [x, this.add(this.positions(length), from)], { axis });
  }
  /** 0, 1, ..., length - 1 in int64. There is no Range before opset 11. */
  positions(length: string): string {
    const ones = this.add(this.cast(this.zeros([length]), 'int64'), this.ints(1));
    return this.squeeze(this.op('NonZero', [ones]), 0);
  }
  /** x with zeros appended along axis 1 up to `length`; x has rank `rank`. */
  padTokens(x: string, rank: number, missing: string): string {
    const lengths = Array.from({ length: rank }, (_, i) => (i === 1 ? missing : this.dim(x, i)));
    return this.op('Concat', [x, this.zeros(lengths)], { axis: 1 });
  }

  /**
   * Scan over the first axis of `inputs`. `body` gets the names of the states and of this step's inputs, and returns those of
   * the next states and of this step's outputs. Everything inside is float32 of rank `rank`; ONNX Runtime wants
   * the rank declared where it cannot infer it. Values of the enclosing body may be used inside.
   *
   * @returns the final states, and the outputs stacked along a new first axis
   */
  scan(
    states: readonly string[],
    inputs: readonly string[],
    rank: number,
    body: (
      e: BodyEmitter,
      states: string[],
      inputs: string[],
    ) => { states: string[]; outputs: string[] },
  ): { states: string[]; outputs: string[] } {
    const unknown = Array.from({ length: rank }, () => undefined);
    const info = (name: string) => makeValueInfo(name, DATA_TYPE.float32, unknown);
    const formal = (values: readonly string[], stem: string) => values.map(() => this.names(stem));
    const stateNames = formal(states, 'state');
    const inputNames = formal(inputs, 'step');
    const inner = this.nested();
    const result = body(inner, stateNames, inputNames);
    const outs = this.ops(
      'Scan',
      [...states, ...inputs],
      result.states.length + result.outputs.length,
      {
        body: {
          graph: {
            name: this.names('body'),
            node: inner.nodes,
            initializer: [],
            input: [...stateNames, ...inputNames].map(info),
            output: [...result.states, ...result.outputs].map(info),
            valueInfo: [],
          },
        },
        num_scan_inputs: inputs.length,
      },
    );
    return { states: outs.slice(0, states.length), outputs: outs.slice(states.length) };
  }

  /** Axes became an input at `since`. Axes are not negative: some versions before 11 refuse those. */
  private withAxes(
    opType: string,
    x: string,
    axis: number,
    since: number,
    attrs: Record<string, number> = {},
  ): string {
    return this.opset < since
      ? this.op(opType, [x], { axes: [axis], ...attrs })
      : this.op(opType, [x, this.ints(axis)], attrs);
  }
}
