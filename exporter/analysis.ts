import { FlaError } from '../ops/error.js';
import type { Model } from './ir/index.js';
import { Facts } from './match/facts.js';
import { classifyMask, type MaskClass } from './match/mask.js';
import { Prober } from './match/probe.js';
import { missingRunner, type Runner } from './match/runner.js';
import type { Sdpa } from './match/sdpa.js';
import { findSites, type Site } from './match/sites.js';
import { RULES } from './rules/index.js';
import { validateModel } from './validate.js';

/** A site and the class of its mask. */
export interface AnalysedSite extends Site {
  readonly mask?: MaskClass;
}

export interface Analysis {
  readonly sites: readonly AnalysedSite[];
  readonly facts: Facts;
  readonly prober: Prober;
}

export interface AnalysisOptions {
  runner?: Runner;
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

/** Everything that `inspect` tells and `rewrite` builds on. Puts the nodes of the model into topological order. */
export async function analyse(model: Model, options: AnalysisOptions = {}): Promise<Analysis> {
  validateModel(model);
  model.graph.sort();
  const facts = new Facts(model.graph);
  const prober = new Prober(model.graph, options.runner ?? missingRunner);
  const found = await matchSites(model, facts, prober);
  const known = new Map<string, MaskClass>();
  const sites: AnalysedSite[] = [];
  for (const site of found) {
    if (options.signal?.aborted) throw new FlaError('aborted', 'interrupted');
    if (!site.sdpa) {
      sites.push(site);
    } else {
      // Layers mostly share one mask.
      const key = maskKey(site.sdpa);
      const mask = known.get(key) ?? (await classifyMask(site.sdpa, facts, prober));
      known.set(key, mask);
      sites.push({ ...site, mask });
    }
    options.onProgress?.(sites.length, found.length);
  }
  return { sites, facts, prober };
}

/** Applies the rules; shapes that they miss are looked up by running the model on a few tokens. */
async function matchSites(model: Model, facts: Facts, prober: Prober): Promise<Site[]> {
  const asked = new Set<string>();
  for (;;) {
    const sites = findSites(model.graph, RULES, facts);
    const wanted = [...new Set(sites.flatMap((s) => s.wanted))].filter((v) => !asked.has(v));
    const shapes = wanted.length > 0 ? await prober.shapes(wanted) : 'nothing is missing';
    if (typeof shapes === 'string') return sites;
    for (const [i, value] of wanted.entries()) {
      asked.add(value);
      facts.assume(value, shapes[i]!);
    }
  }
}

function maskKey(sdpa: Sdpa): string {
  return JSON.stringify([sdpa.masks, sdpa.cache !== undefined, sdpa.q.heads]);
}
