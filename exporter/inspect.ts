import { type AnalysedSite, analyse } from './analysis.js';
import type { Model } from './ir/index.js';
import { type MaskClass, maskName } from './match/mask.js';
import type { Runner } from './match/runner.js';
import { openedUp, startsCausally } from './open_up.js';
import { biasRefused, notesOf } from './variants/features.js';
import type { RewriteOptions } from './variants/options.js';

/** What `inspectModel` says about one Softmax or fused attention node. Keys are those of `inspect --json`. */
export interface SiteReport {
  /** Name of the Softmax or fused node. */
  node: string;
  /** Position among the attention sites of the model, counted from 0 in graph order; null for what is no attention. */
  layer: number | null;
  /** The rule that understood it, such as `decomposed` or `com.microsoft.MultiHeadAttention`; null when none did. */
  pattern: string | null;
  q_num_heads: number | null;
  kv_num_heads: number | null;
  head_dim: number | null;
  /**
   * `bidirectional`, `causal`, `padding`, `causal+padding`, `window <w>`, `window <w>+padding`, or `other`; with `+ALiBi` or `+bias` where
   * something is added to scores by position.
   */
  mask: string | null;
  /** True when keys and values of earlier calls are concatenated in front (a KV cache). */
  cache: boolean;
  rewritable: boolean;
  /** Why it cannot be rewritten; null when it can. */
  reason: string | null;
  /** What linear attention changes or leaves out of it besides the softmax; of a rewritten site, what the variant did. */
  notes: string[];
}

export interface InspectReport {
  sites: SiteReport[];
}

export interface InspectOptions {
  /** Runs the small models that masks and shapes are probed with; without one, models that need it are refused. */
  runner?: Runner;
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

/**
 * Finds every Softmax and fused attention node of a model and says what each one is. The model is not changed.
 *
 * @throws FlaError `invalid_model` when the graph is malformed
 */
export async function inspectModel(
  model: Model,
  options: InspectOptions = {},
): Promise<InspectReport> {
  const causalCaches = await startsCausally(model, options);
  const { sites } = await analyse(openedUp(model), { ...options, causalCaches });
  return { sites: sites.map((site) => siteReport(site)) };
}

/** One site in the words of the report; `options` say what it is to become, linear attention by default. */
export function siteReport(
  site: AnalysedSite,
  options: RewriteOptions = { variant: 'linear' },
): SiteReport {
  const { sdpa, refusal, mask, layer } = site;
  const reason = refusal?.reason ?? (mask ? maskReason(mask, options) : null);
  const notes = sdpa && mask ? notesOf({ sdpa, mask, layer: layer! }, options) : [];
  return {
    node: site.node.name,
    layer: site.layer,
    pattern: sdpa || refusal?.attention ? site.rule.name : null,
    q_num_heads: sdpa?.q.heads ?? refusal?.partial?.q_num_heads ?? null,
    kv_num_heads: sdpa?.v.heads ?? refusal?.partial?.kv_num_heads ?? null,
    head_dim: sdpa?.q.dim ?? refusal?.partial?.head_dim ?? null,
    mask: mask ? maskName(mask) : null,
    cache: sdpa ? sdpa.cache !== undefined : (refusal?.partial?.cache ?? false),
    rewritable: reason === null,
    reason,
    notes,
  };
}

/** Why no variant takes a mask, or null. */
function maskReason(mask: MaskClass, options: RewriteOptions): string | null {
  if (mask.kind === 'other') return `mask: ${mask.reason}`;
  return biasRefused(mask, options) ? `mask: ${mask.bias}; bias 'drop' leaves it out` : null;
}
