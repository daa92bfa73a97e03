import type { Node } from '../ir/index.js';
import type { Facts } from './facts.js';
import type { Refusal, RuleResult } from './sdpa.js';

/** One way in which models write attention. */
export interface Rule {
  /** What `inspect` calls the pattern. */
  readonly name: string;
  /** Does the rule have something to say about this node? */
  anchors(node: Node): boolean;
  /** The site around an anchor, or why it is none. */
  match(anchor: Node, facts: Facts): RuleResult;
}

/** The layer's own refusal: no attention at all, such as a classifier's Softmax. */
export function notAttention(reason: string): RuleResult {
  return { reason, attention: false };
}

/** Attention that this rule cannot bring to the common form. */
export function unsupported(
  reason: string,
  partial: NonNullable<Refusal['partial']> = {},
): RuleResult {
  return { reason, attention: true, partial };
}
