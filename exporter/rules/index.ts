import type { Rule } from '../match/rule.js';
import { decomposed } from './decomposed.js';

/** Every rule, the first that has something to say about a node wins. */
export const RULES: readonly Rule[] = [decomposed];
