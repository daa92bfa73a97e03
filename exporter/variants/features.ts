import type { MaskClass } from '../match/mask.js';
import type { Sdpa } from '../match/sdpa.js';
import { keySlopes } from './alibi.js';
import { isWindowed, windowOf } from './hybrid.js';
import { sinkWeight } from './linear.js';
import type { RewriteOptions, Variant } from './options.js';

/** What is known of one site, as far as variants differ in what they make of it. */
export interface Features {
  readonly sdpa: Sdpa;
  readonly mask: MaskClass;
  readonly layer: number;
}

/** How long a bias must have stayed the same to be taken to have settled. */
const SETTLED = 100;

/** Must a site be left alone for a bias that the variant has no place for and that may not be dropped? */
export function biasRefused({ bias, distances }: MaskClass, options: RewriteOptions): boolean {
  const placed = isWindowed(options.variant) && distances !== undefined;
  return bias !== undefined && !placed && options.bias !== 'drop';
}

/**
 * What a windowed variant adds to scores by distance, [HQ][window + 1]: the last entry serves all larger distances. Undefined when it
 * cannot: beyond the window the bias changes still, and there are tokens to see.
 */
export function distanceTable(
  { sdpa, mask }: Pick<Features, 'sdpa' | 'mask'>,
  options: RewriteOptions,
): readonly (readonly number[])[] | undefined {
  const { window, sinks } = windowOf(options);
  const unseen = options.variant === 'window' && sinks === 0;
  const tables = mask.distances?.map((f) => {
    const from = f.findIndex((_, d) => f.slice(d).every((x) => Math.abs(x - f[d]!) <= 1e-5));
    const settled = from <= f.length - SETTLED;
    if (settled ? from > window && !unseen : !unseen || window > f.length) return undefined;
    return Array.from({ length: window + 1 }, (_, d) => f[d] ?? f.at(-1)!);
  });
  if (!tables?.every((t) => t !== undefined)) return undefined;
  return tables.length === 1 ? Array(sdpa.q.heads).fill(tables[0]) : (tables as number[][]);
}

/** Why a variant cannot do with an attention's own features, or undefined. */
export function misfit({ sdpa, mask }: Features, options: RewriteOptions): string | undefined {
  const { variant } = options;
  if (variant === 'hybrid' && sdpa.sink) return 'hybrid has no place for the sink among its keys';
  if (
    isWindowed(variant) &&
    mask.bias &&
    options.bias !== 'drop' &&
    !distanceTable({ sdpa, mask }, options)
  ) {
    return `its bias by position changes beyond the window of ${windowOf(options).window} tokens: give a longer window, or bias 'drop'`;
  }
  if (!mask.slopes) return undefined;
  if (variant === 'hybrid' && (options.cache ?? 0) > 0)
    return 'hybrid keeps no cache of tokens where there is ALiBi';
  if ((variant === 'hybrid' || slopesDecay(variant)) && !keySlopes(mask.slopes, sdpa))
    return 'ALiBi has several slopes for the query heads of one key head, which share a decay';
  return undefined;
}

/** Does ALiBi become the decay of the variant's state? */
function slopesDecay(variant: Variant): boolean {
  return variant === 'linear' || variant === 'performer';
}

/** What a variant changes or leaves out besides the softmax, in words. */
export function notesOf({ sdpa, mask, layer }: Features, options: RewriteOptions): string[] {
  const { variant } = options;
  const notes: string[] = [];
  if (variant === 'none') return notes;
  const placed = isWindowed(variant) && distanceTable({ sdpa, mask }, options);
  if (mask.bias && !placed) notes.push('the bias by position is left out');
  if (isWindowed(variant)) return notes;
  if (mask.slopes) {
    notes.push(
      slopesDecay(variant)
        ? 'ALiBi becomes a decay of each head'
        : `ALiBi is left out: the variant has ${variant === 'delta' ? 'no decay' : 'decays of its own'}`,
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
