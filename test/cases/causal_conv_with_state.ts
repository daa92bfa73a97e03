/** The cases of CausalConvWithState that every backend runs, each against the float64 reference. */
import type { CausalConvWithStateInputs } from '../../ops/causal_conv_with_state/reference.js';
import type { CausalConvWithStateAttributeInput } from '../../ops/causal_conv_with_state/schema.js';
import { Random } from './tensors.js';

export interface CausalConvCase {
  readonly name: string;
  readonly attributes: CausalConvWithStateAttributeInput;
  inputs(): CausalConvWithStateInputs;
}

export const causalConvTypes = ['float32', 'float16', 'bfloat16'] as const;

interface Spec {
  readonly B?: number;
  readonly D?: number;
  readonly T?: number;
  readonly W?: number;
  readonly bias?: boolean;
  readonly state?: boolean;
  readonly activation?: CausalConvWithStateAttributeInput['activation'];
}

function makeCase(name: string, spec: Spec): CausalConvCase {
  const { B = 2, D = 12, T = 33, W = 4, bias, state, activation = 'none' } = spec;
  return {
    name,
    attributes: { activation },
    inputs() {
      const random = new Random(name);
      const normal = () => random.normal();
      return {
        input: random.tensor([B, D, T], normal),
        weight: random.tensor([D, 1, W], normal),
        ...(bias && { bias: random.tensor([D], normal) }),
        ...(state && { past_state: random.tensor([B, D, W - 1], normal) }),
      };
    },
  };
}

export const causalConvCases: readonly CausalConvCase[] = [
  ...[0, 1, 2, 3, 4, 31, 64, 257].flatMap((T) => [
    makeCase(`T = ${T}`, { T }),
    makeCase(`T = ${T}, bias, state, silu`, { T, bias: true, state: true, activation: 'silu' }),
  ]),
  ...[1, 2, 3, 5, 8, 17].map((W) => makeCase(`W = ${W}`, { W, state: true, bias: true })),
  makeCase('W > T', { W: 8, T: 3, state: true }),
  makeCase('W > T, no state', { W: 8, T: 3 }),
  makeCase('one channel', { D: 1, B: 1 }),
  makeCase('many channels', { D: 1000, T: 1, state: true, activation: 'swish' }),
  makeCase('swish', { activation: 'swish' }),
];
