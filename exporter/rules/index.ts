import type { Rule } from '../match/rule.js';
import { attention } from './attention.js';
import { decomposed } from './decomposed.js';
import { otherFused } from './fused.js';
import { multiHeadAttention } from './multi_head_attention.js';

/** Every rule; the first that has something to say about a node wins. */
export const RULES: readonly Rule[] = [decomposed, attention, multiHeadAttention, otherFused];
