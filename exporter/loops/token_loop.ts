import type { Graph, Node } from '../ir/index.js';

/** A loop over tokens that carries one state, whichever operator it is written with. Values of the body are named as in the body. */
export interface TokenLoop {
  readonly node: Node;
  readonly body: Graph;
  readonly state: {
    /** Outside: what it starts as, and what it ends as ('' when nobody asks). */
    readonly initial: string;
    readonly final: string;
    /** Inside: before and after a token. */
    readonly before: string;
    readonly after: string;
  };
  readonly tokens: readonly Token[];
  /** Inside: tokens that are read once more, and the name they have above. */
  readonly again: readonly (readonly [name: string, token: string])[];
  readonly output: Output;
  /** Numbers of tokens, the smallest of which counts; none when the operator goes over all there are. */
  readonly steps: readonly string[];
  /** Inside: values that are the number of tokens before this one. */
  readonly counters: readonly string[];
  /** Nodes of the body that take tokens out of what holds all of them. */
  readonly reads: readonly Node[];
  /** Results that are what they started as: name, and what it is. */
  readonly same: readonly (readonly [string, string])[];
}

/** A value outside of which the body sees one token at a time. */
export interface Token {
  readonly value: string;
  readonly axis: number;
  /** The token, inside. */
  readonly name: string;
  /** The axis of tokens stays, with length 1. */
  readonly kept: boolean;
}

/** Where a token's output goes. */
export type Output =
  /** Outputs become slices along a new axis. */
  | {
      readonly kind: 'stack';
      readonly value: string;
      readonly result: string;
      readonly axis: number;
    }
  /** Outputs are joined along an axis that they have. */
  | {
      readonly kind: 'join';
      readonly value: string;
      readonly result: string;
      readonly axis: number;
    }
  /** A tensor that is carried and gets an output more, or one more of its slices written, with each token. */
  | {
      readonly kind: 'buffer';
      readonly before: string;
      readonly value: string;
      readonly initial: string;
      readonly result: string;
    };
