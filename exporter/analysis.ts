import { FlaError } from '../ops/error.js';
import type { Graph, Model } from './ir/index.js';
import { Facts } from './match/facts.js';
import { classifyMask, type MaskClass } from './match/mask.js';
import { Prober } from './match/probe.js';
import { missingRunner, type Runner } from './match/runner.js';
import { type Sdpa, tokenAxis } from './match/sdpa.js';
import { findSites, type Site } from './match/sites.js';
import { roleOf } from './match/situation.js';
import { RULES } from './rules/index.js';
import { validateModel } from './validate.js';

/** A site and the class of its mask. */
export interface AnalysedSite extends Site {
  readonly mask?: MaskClass;
}

export interface Analysis {
  readonly sites: readonly AnalysedSite[];
  /** What is known of the main graph. */
  readonly facts: Facts;
  readonly prober: Prober;
  /** The same of a graph nested in it. */
  readonly factsOf: (graph: Graph) => Facts;
}

export interface AnalysisOptions {
  runner?: Runner;
  /**
   * For a merged encoder-decoder that was opened: whether the branch without a cache is causal, and with it attention over a
   * cache that has no mask.
   */
  causalCaches?: boolean | undefined;
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

/** Everything that `inspect` tells and `rewrite` builds on. Puts the nodes of the model into topological order. */
export async function analyse(model: Model, options: AnalysisOptions = {}): Promise<Analysis> {
  validateModel(model);
  sortAll(model.graph);
  const factsOf = perGraph((graph): Facts => {
    return new Facts(graph, undefined, graph.parent && factsOf(graph.parent));
  });
  const proberOf = perGraph((graph) => new Prober(graph, options.runner ?? missingRunner));
  const matched = await matchSites(model, factsOf, proberOf);
  const { causalCaches } = options;
  const found =
    causalCaches === undefined
      ? matched
      : matched.map((site) => ofCachedBranch(site, causalCaches, factsOf));
  const knownIn = perGraph(() => new Map<string, MaskClass>());
  const sites: AnalysedSite[] = [];
  for (const site of found) {
    if (options.signal?.aborted) throw new FlaError('aborted', 'interrupted');
    if (!site.sdpa) {
      sites.push(site);
    } else if (besideCache(site.node.graph)) {
      const reason = 'it lies in a nested graph, and the model has a KV cache';
      const { sdpa: _, ...rest } = site;
      sites.push({ ...rest, refusal: { reason, attention: true } });
    } else {
      // Layers mostly share one mask.
      const key = maskKey(site.sdpa);
      const { graph } = site.node;
      const known = knownIn(graph);
      const mask =
        known.get(key) ?? (await classifyMask(site.sdpa, factsOf(graph), proberOf(graph)));
      known.set(key, mask);
      sites.push({ ...site, mask });
    }
    options.onProgress?.(sites.length, found.length);
  }
  return { sites, factsOf, facts: factsOf(model.graph), prober: proberOf(model.graph) };
}

/** A site of the branch with a cache, which now reads the first tokens too. */
function ofCachedBranch(site: Site, causal: boolean, factsOf: (graph: Graph) => Facts): Site {
  const { sdpa, ...rest } = site;
  if (!sdpa?.cache) return site;
  if (factsOf(site.node.graph).dims(sdpa.q.value)?.[tokenAxis(sdpa.q)] === 1) {
    const reason = 'the branch with a cache takes one new token, and the first call brings several';
    return { ...rest, refusal: { reason, attention: true } };
  }
  if (!causal || sdpa.masks.length > 0) return site;
  return { ...rest, sdpa: { ...sdpa, masks: [{ kind: 'causal' }] } };
}

/** Calls may go to one branch first and to another later, which must agree on what is carried from one to the next. */
function besideCache({ parent, root }: Graph): boolean {
  return parent !== undefined && root.inputs.some(({ name }) => roleOf(root, name) === 'past');
}

function sortAll(graph: Graph): void {
  for (const node of graph.nodes) for (const sub of node.subgraphs) sortAll(sub);
  graph.sort();
}

function perGraph<T>(make: (graph: Graph) => T): (graph: Graph) => T {
  const made = new Map<Graph, T>();
  return (graph) => {
    const known = made.get(graph) ?? make(graph);
    made.set(graph, known);
    return known;
  };
}

/** Applies the rules; shapes that they miss are looked up by running the model on a few tokens. */
async function matchSites(
  model: Model,
  factsOf: (graph: Graph) => Facts,
  proberOf: (graph: Graph) => Prober,
): Promise<Site[]> {
  const asked = perGraph(() => new Set<string>());
  for (;;) {
    const sites = findSites(model.graph, RULES, factsOf);
    let learnt = false;
    for (const graph of new Set(sites.map((s) => s.node.graph))) {
      const here = sites.filter((s) => s.node.graph === graph).flatMap((s) => s.wanted);
      const wanted = [...new Set(here)].filter((v) => !asked(graph).has(v));
      const shapes = wanted.length > 0 ? await proberOf(graph).shapes(wanted) : '';
      for (const [i, value] of wanted.entries()) {
        asked(graph).add(value);
        if (typeof shapes === 'string') continue;
        factsOf(graph).assume(value, shapes[i]!);
        learnt = true;
      }
    }
    if (!learnt) return sites;
  }
}

function maskKey(sdpa: Sdpa): string {
  return JSON.stringify([sdpa.masks, sdpa.cache !== undefined, sdpa.q.heads]);
}
