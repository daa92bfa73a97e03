import type { MaskClass } from '../match/mask.js';
import type { Sdpa } from '../match/sdpa.js';
import { keySlopes } from './alibi.js';
import { isWindowed } from './hybrid.js';
import { sinkWeight } from './linear.js';
import type { RewriteOptions } from './options.js';

/** What is known of one site, as far as variants differ in what they make of it. */
export interface Features {
  readonly sdpa: Sdpa;
  readonly mask: MaskClass;
  readonly layer: number;
}

/** Why a variant cannot do with an attention's own features, or undefined. */
export function misfit({ sdpa, mask }: Features, options: RewriteOptions): string | undefined {
  const { variant } = options;
  if (variant === 'hybrid' && sdpa.sink) return 'hybrid has no place for the sink among its keys';
  if (!mask.slopes) return undefined;
  if (variant === 'hybrid' && (options.cache ?? 0) > 0)
    return 'hybrid keeps no cache of tokens where there is ALiBi';
  if ((variant === 'hybrid' || variant === 'linear') && !keySlopes(mask.slopes, sdpa))
    return 'ALiBi has several slopes for the query heads of one key head, which share a decay';
  return undefined;
}

/** What a variant changes or leaves out besides the softmax, in words. */
export function notesOf({ sdpa, mask, layer }: Features, options: RewriteOptions): string[] {
  const { variant } = options;
  const notes: string[] = [];
  if (variant === 'none') return notes;
  if (mask.bias) notes.push('the bias by position is left out');
  if (isWindowed(variant)) return notes;
  if (mask.slopes) {
    notes.push(
      variant === 'linear'
        ? 'ALiBi becomes a decay of each head'
        : `ALiBi is left out: ${variant} has decays of its own`,
    );
  }
  if (sdpa.softcap !== undefined) notes.push(`the softcap of ${sdpa.softcap} is left out`);
  if (sdpa.sink) {
    notes.push(
      sinkWeight(sdpa, layer, options) > 0
        ? 'the sink becomes a constant in the denominator'
        : 'the sink is left out',
    );
  }
  return notes;
}
