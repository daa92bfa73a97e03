import type { Rule } from '../match/rule.js';
import { attention } from './attention.js';
import { decomposed } from './decomposed.js';
import { otherFused } from './fused.js';
import { groupQueryAttention } from './group_query_attention.js';
import { decoderMaskedMultiHeadAttention, multiHeadAttention } from './multi_head_attention.js';
import {
  decoderMaskedSelfAttention,
  packedAttention,
  quantisedAttention,
} from './packed_attention.js';

/** Every rule; the first that has something to say about a node wins. */
export const RULES: readonly Rule[] = [
  decomposed,
  attention,
  multiHeadAttention,
  decoderMaskedMultiHeadAttention,
  groupQueryAttention,
  packedAttention,
  quantisedAttention,
  decoderMaskedSelfAttention,
  otherFused,
];
