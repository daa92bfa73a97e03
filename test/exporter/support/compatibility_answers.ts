import {
  type Model,
  type RewriteOptions,
  type RewrittenSite,
  rewriteModel,
} from '../../../exporter/index.js';

export const LINEAR: readonly RewriteOptions[] = [{ variant: 'linear' }, { variant: 'performer' }];
const [a, dt, decay, beta] = [-1, 0.1, -0.1, 1].map((constant) => ({ constant }));
/** A variant of each rule; whether a site is taken depends on nothing else. */
export const GATED: readonly RewriteOptions[] = [
  { variant: 'mamba2', gates: { default: { a, dt } } },
  { variant: 'gated-delta', gates: { default: { decay, beta } } },
];

/** One text, or those of layers that differ. */
export function all(texts: readonly string[]): string {
  return [...new Set(texts)].join('; ');
}

/** What `rewrite` says of the layers that count: one answer, or one of each variant where they differ. */
export async function column(
  build: () => Model,
  variants: readonly RewriteOptions[],
  counts: (site: RewrittenSite) => boolean,
  reason: (text: string) => string,
): Promise<string> {
  const said = async (options: RewriteOptions) => {
    const { sites } = await rewriteModel(build(), { ...options, dryRun: true });
    return all(sites.filter(counts).map((site) => answer(site, reason)));
  };
  const texts = await Promise.all(variants.map(said));
  const alike = texts.every((text) => text === texts[0]);
  return alike ? texts[0]! : texts.map((t, i) => `${variants[i]!.variant}: ${t}`).join('; ');
}

function answer(site: RewrittenSite, shown: (text: string) => string): string {
  const { kept, rewritten, reason, mask, notes } = site;
  if (rewritten) return ['yes', ...notes].join('; ');
  if (reason) return `no: ${shown(reason)}`;
  if (kept?.includes('bounded already')) return 'on request';
  return mask?.startsWith('bidirectional') || mask === 'padding' ? 'no: not causal' : `no: ${kept}`;
}
