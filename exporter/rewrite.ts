import { FlaError } from '../ops/error.js';
import { type AnalysedSite, type Analysis, analyse } from './analysis.js';
import { SharedValues } from './common_values.js';
import { type SiteReport, siteReport } from './inspect.js';
import type { Graph, Model, Node, NodeProto } from './ir/index.js';
import { partOfShape, replaceLengths } from './lengths.js';
import type { Facts } from './match/facts.js';
import { batchAxis, type Sdpa, tokenAxis } from './match/sdpa.js';
import { roleOf } from './match/situation.js';
import { earlier, SITES_KEY, STATE_KEY, sitesSchema, statesSchema } from './metadata.js';
import { openedUp, openUp, startsCausally } from './open_up.js';
import { declareStates, removeCaches, type StatePair } from './states.js';
import { validateModel } from './validate.js';
import { checkOptions } from './variants/check_options.js';
import { SiteEmitter } from './variants/emit.js';
import { biasRefused, distanceTable, misfit } from './variants/features.js';
import { checkGates, GATES } from './variants/gates.js';
import { emitWindowed, isWindowed } from './variants/hybrid.js';
import { emitLinear, VARIANTS } from './variants/linear.js';
import type { LayerGates, RewriteOptions, Variant } from './variants/options.js';
import { Rows } from './variants/rows.js';
import { emitSoftmax, type Handicap } from './variants/softmax.js';

/** The layout of the metadata that a rewritten model carries. */
const FORMAT_VERSION = '1';

/** What was done to one site. */
export interface RewrittenSite extends SiteReport {
  rewritten: boolean;
  /** Why a rewritable site was left alone; null when it was rewritten. */
  kept: string | null;
}

export interface RewriteReport {
  variant: Variant;
  sites: RewrittenSite[];
  /** States of the rewritten model, in the order of its inputs. */
  state: StatePair[];
  /** Length of attention_mask in a call: the new tokens only, or all since the start; null without a KV cache. */
  attentionMask: 'current' | 'total' | null;
  removedNodes: number;
}

/**
 * Rewrites the attention of a model, in place. When it throws, the model is of no further use.
 *
 * @throws FlaError `invalid_argument` for options that do not fit the model, `invalid_model` for a malformed graph,
 * `unsupported` for what a site needs and this version cannot write
 */
export async function rewriteModel(model: Model, options: RewriteOptions): Promise<RewriteReport> {
  checkOptions(options);
  validateModel(model);
  const before = new Set(model.graph.nodes.map((n) => n.proto));
  const causalCaches = await startsCausally(model, options);
  const opened = openedUp(model);
  let { analysis, sites, chosen } = await choose(opened, options, causalCaches);
  if (opened !== model && chosen.length > 0 && !options.dryRun) {
    openUp(model);
    ({ analysis, sites, chosen } = await choose(model, options, causalCaches));
  }
  const report: RewriteReport = {
    variant: options.variant,
    sites,
    state: [],
    attentionMask: null,
    removedNodes: 0,
  };
  if (options.dryRun || chosen.length === 0) return report;
  if (options.variant === 'none') reEmit(chosen, analysis);
  else Object.assign(report, await convert(chosen, analysis, options));
  for (const graph of new Set(chosen.map((s) => s.node.graph))) {
    graph.removeDead();
    graph.sort();
  }
  model.graph.removeDead();
  model.graph.sort();
  const after = new Set(model.graph.nodes.map((n) => n.proto));
  report.removedNodes = [...before].filter((n) => !after.has(n)).length;
  if (options.variant !== 'none') {
    report.state = inInputOrder(model.graph, [
      ...earlier(model, STATE_KEY, statesSchema),
      ...report.state,
    ]);
    describe(model, report);
  }
  return report;
}

/** The sites of a model, and those among them that the options ask for. */
async function choose(model: Model, options: RewriteOptions, causalCaches?: boolean) {
  const analysis = await analyse(model, { ...options, causalCaches });
  checkLayers(analysis, options);
  const sites = analysis.sites.map((site): RewrittenSite => {
    const kept = whyKept(site, options);
    return { ...siteReport(site, options), rewritten: kept === null, kept };
  });
  return { analysis, sites, chosen: analysis.sites.filter((_, i) => sites[i]!.rewritten) };
}

function checkLayers({ sites }: Analysis, options: RewriteOptions): void {
  const layers = new Set(sites.map((s) => s.layer).filter((l) => l !== null));
  const shown = layers.size > 0 ? `0..${layers.size - 1}` : 'none';
  const { layers: asked = [], keepSoftmax = [], gates = {} } = options;
  const gated = Object.keys(gates).filter((key) => key !== 'default');
  for (const layer of [...asked, ...keepSoftmax, ...gated.map(Number)]) {
    if (!layers.has(layer)) {
      throw new FlaError(
        'invalid_argument',
        `layer must be one of the model's (${shown}), received ${layer}`,
      );
    }
  }
  for (const layer of asked) {
    const site = sites.find((s) => s.layer === layer)!;
    const { rewritable, reason } = siteReport(site, options);
    if (!rewritable && options.variant !== 'none') {
      throw new FlaError('unsupported', `layer ${layer} cannot be rewritten: ${reason}`);
    }
  }
}

/** Why a site is left alone, or null when it is to be rewritten. */
function whyKept(site: AnalysedSite, options: RewriteOptions): string | null {
  const { sdpa, mask, layer } = site;
  if (!sdpa || !mask) return 'it is not rewritable';
  const asked = options.layers?.includes(layer!) ?? false;
  if (options.layers && !asked) return 'it is not among the layers asked for';
  if (options.keepSoftmax?.includes(layer!)) return 'it was asked to stay softmax';
  // A round trip needs no knowledge of what the mask hides.
  if (options.variant === 'none') {
    return sdpa.cache?.opaque ? 'its cache has an order that only the node itself knows' : null;
  }
  if (mask.kind === 'other' || biasRefused(mask, options)) return 'it is not rewritable';
  if (mask.kind === 'window' && !asked) {
    return `its cost is bounded already by a window of ${mask.window} keys; ask for layer ${layer} to convert it`;
  }
  const leftToRight = isWindowed(options.variant) || VARIANTS[options.variant].rule !== 'linear';
  if (mask.kind === 'bidirectional' && leftToRight) {
    return `${options.variant} runs from left to right, and this attention is bidirectional`;
  }
  const unfit = misfit({ sdpa, mask, layer: layer! }, options);
  if (unfit) return unfit;
  if (options.variant in GATES) {
    checkGates(options.variant, layer!, gatesFor(options, layer!));
  }
  return null;
}

function gatesFor(options: RewriteOptions, layer: number): LayerGates | undefined {
  return options.gates?.[layer] ?? options.gates?.default;
}

/** What is written for sites. All of it takes their place at once: a graph is indexed anew after every change. */
class Written {
  private readonly sites: { graph: Graph; old: readonly Node[]; nodes: readonly NodeProto[] }[] =
    [];

  add({ node, sdpa }: AnalysedSite, e: SiteEmitter): void {
    e.presents(sdpa!);
    this.sites.push({ graph: node.graph, old: sdpa!.replaced, nodes: e.nodes });
  }
  insert(): void {
    for (const graph of new Set(this.sites.map((s) => s.graph))) {
      const here = this.sites.filter((s) => s.graph === graph);
      graph.remove(here.flatMap((s) => s.old));
      graph.insert(here.flatMap((s) => s.nodes));
    }
  }
}

/** Softmax attention again, from the normalised descriptions alone. */
export function reEmit(
  chosen: readonly AnalysedSite[],
  { factsOf }: Analysis,
  handicap?: Handicap,
): void {
  const written = new Written();
  const products = chosen.map((site) => {
    const { graph } = site.node;
    const { q } = site.sdpa!;
    const e = new SiteEmitter(graph, factsOf(graph), site.node.name);
    e.rows = new Rows(e, () => e.dim(q.value, tokenAxis(q)));
    written.add(site, e);
    return emitSoftmax(e, site.sdpa!, handicap);
  });
  written.insert();
  for (const [i, { node, sdpa }] of chosen.entries()) {
    const { graph } = node;
    for (const value of sdpa!.interior.flatMap((n) => n.outputs)) {
      const asked = graph.uses(value).some((u) => u.node.is('Shape'));
      if (asked && factsOf(graph).rank(value) === 4)
        graph.replaceUses(value, products[i]!, (use) => !use.node.is('Shape'));
    }
    replaceSumShape(sdpa!, factsOf(graph));
  }
}

async function convert(
  chosen: readonly AnalysedSite[],
  analysis: Analysis,
  options: RewriteOptions,
): Promise<Pick<RewriteReport, 'state' | 'attentionMask'>> {
  const { graph } = analysis.facts;
  const shared = new SharedValues(graph, analysis, chosen[0]!.sdpa!);
  const removed = chosen.flatMap(({ sdpa }) => sdpa!.cache ?? []);
  const declared = chosen.map(({ sdpa, layer }) =>
    sdpa!.cache ? declareStates(graph, sdpa!, sdpa!.cache, layer!, options) : {},
  );
  const state: StatePair[] = declared.flatMap((states) => Object.values(states));
  const written = new Written();
  for (const [i, site] of chosen.entries()) {
    const sdpa = site.sdpa!;
    const layer = site.layer!;
    const states = declared[i]!;
    const { graph: place } = site.node;
    const e = new SiteEmitter(place, analysis.factsOf(place), site.node.name, shared.rows);
    const mask = shared.padding(site);
    const { slopes } = site.mask!;
    const bias = slopes && { slopes };
    if (isWindowed(options.variant)) {
      const distances = distanceTable({ sdpa, mask: site.mask! }, options);
      const added = { ...bias, ...(distances && { distances }) };
      emitWindowed(e, { sdpa, layer, mask, ...states, ...added }, options);
    } else {
      const gates = gatesFor(options, layer);
      const emitted = {
        sdpa,
        layer,
        causal: site.mask!.kind !== 'bidirectional',
        mask,
        pastState: states.state?.past ?? '',
        presentState: states.state?.present ?? '',
        ...(gates && { gates }),
        ...bias,
      };
      emitLinear(e, emitted, options);
    }
    written.add(site, e);
  }
  written.insert();
  shared.insert();
  for (const { sdpa, node } of chosen) replaceSumShape(sdpa!, analysis.factsOf(node.graph));
  for (const place of new Set(chosen.map((site) => site.node.graph))) place.removeDead();
  for (const { sdpa } of chosen) replaceScoreShapes(sdpa!, analysis);
  if (removed.length === 0) {
    shared.insert();
    return { state, attentionMask: null };
  }
  const kept = analysis.sites.find((s) => s.sdpa?.cache && !chosen.includes(s))?.sdpa?.cache;
  const maskInput = shared.maskInput();
  const lengths = {
    graph,
    prober: analysis.prober,
    removed,
    kept,
    maskInput,
    tokens: shared.tokens(),
    currentMask: maskInput && shared.currentMask(maskInput),
    rightPadded: chosen.some((s) => s.sdpa!.cache?.lengths !== undefined),
  };
  for (const { presentKey, presentValue } of removed) {
    for (const name of [presentKey, presentValue]) if (name) graph.removeOutput(name);
  }
  for (const { pastKey, pastValue } of removed) {
    for (const past of [pastKey, pastValue]) readUncast(graph, past);
  }
  state.push(...(await replaceLengths(lengths)));
  removeCaches(graph, removed);
  shared.insert();
  const total = maskInput !== undefined && readsWholeMask(graph, maskInput, shared);
  if (kept || total) return { state, attentionMask: 'total' };
  if (maskInput !== undefined) nameAfterTokens(graph, maskInput);
  return { state, attentionMask: 'current' };
}

/** Readers of the shape of the weighted sum get it from the queries, where the site computes something made of the sum. */
function replaceSumShape({ sum, output, q, v, anchor }: Sdpa, facts: Facts): void {
  const value = (sum ?? anchor).outputs[0]!;
  if (value === output.value) return;
  const { graph } = facts;
  const readers = graph.uses(value).filter((u) => u.node.is('Shape'));
  if (readers.length === 0) return;
  const e = new SiteEmitter(graph, facts, anchor.name);
  const [rows, tokens] = [batchAxis(q), tokenAxis(q)].map((axis) => e.dim(q.value, axis));
  const shape =
    facts.rank(value) === 4
      ? e.shape([rows!, q.heads, tokens!, v.dim])
      : e.shape([e.mul(rows!, e.ints(q.heads)), tokens!, v.dim]);
  for (const { node } of readers) {
    graph.replaceUses(node.outputs[0]!, partOfShape(e, shape, node));
    graph.remove([node]);
  }
  graph.insert(e.nodes);
}

/**
 * Readers of the scores' shape get it from the queries: the scores are gone.
 *
 * @throws FlaError `unsupported` when there is a cache, whose length nothing knows any more
 */
function replaceScoreShapes(sdpa: Sdpa, { factsOf }: Analysis): void {
  const { graph } = sdpa.anchor;
  const facts = factsOf(graph);
  const { q, cache } = sdpa;
  for (const value of sdpa.interior.flatMap((n) => n.outputs)) {
    const readers = graph.uses(value).filter((u) => u.node.is('Shape'));
    if (readers.length === 0) continue;
    if (cache || facts.rank(value) !== 4) {
      throw new FlaError(
        'unsupported',
        `'${readers[0]!.node.name}' reads the shape of scores '${value}', which are gone`,
      );
    }
    const e = new SiteEmitter(graph, facts, sdpa.anchor.name);
    const tokens = e.dim(q.value, tokenAxis(q));
    const shape = e.shape([e.dim(q.value, batchAxis(q)), q.heads, tokens, tokens]);
    for (const { node } of readers) {
      graph.replaceUses(node.outputs[0]!, partOfShape(e, shape, node));
    }
    graph.insert(e.nodes);
    graph.removeDead();
  }
}

/** The shape of a cache is that of its cast. */
function readUncast(graph: Graph, past: string): void {
  const casts = graph.uses(past).flatMap(({ node }) => (node.is('Cast') ? node.outputs : []));
  for (const cast of casts) graph.replaceUses(cast, past, (use) => !use.node.is('Shape'));
}

/** Does anything but the cut to the new tokens still read the padding mask? */
function readsWholeMask(graph: Graph, maskInput: string, shared: SharedValues): boolean {
  return graph.uses(maskInput).some((u) => !shared.owns(u.node.proto));
}

/** Declares the mask [B,T] as long as the new tokens, with the name that their dimension has. */
function nameAfterTokens(graph: Graph, maskInput: string): void {
  const tokens = graph.inputs.find(({ name }) => roleOf(graph, name) === 'tokens')?.name;
  const length = tokens && graph.dims(tokens)?.[1];
  const dim = graph.info(maskInput)?.type?.tensorType?.shape?.dim[1];
  if (typeof length === 'string' && dim?.dimParam) dim.dimParam = length;
}

function inInputOrder(graph: Graph, states: readonly StatePair[]): StatePair[] {
  return graph.inputs.flatMap(({ name }) => states.filter((s) => s.past === name));
}

/** What the metadata says of one attention of the model as it was before any rewrite. */
interface SiteRecord extends Pick<SiteReport, 'layer' | 'node' | 'pattern' | 'mask'> {
  variant: Variant;
  /** Why it is still softmax; null when it is not. */
  reason: string | null;
}

function siteRecord(site: RewrittenSite, variant: Variant): SiteRecord {
  const { layer, node, pattern, mask, rewritten, kept, reason } = site;
  return {
    layer,
    node,
    pattern,
    mask,
    variant: rewritten ? variant : 'none',
    reason: kept === null ? null : (reason ?? kept),
  };
}

/** Records of an earlier rewrite, brought up to date: what it left as softmax is what was found now, in the same order. */
function mergeRecords(before: readonly SiteRecord[], now: readonly SiteRecord[]): SiteRecord[] {
  const rest = [...now];
  const left = before.filter((s) => s.variant === 'none').length;
  if (left !== now.length) return [...before.filter((s) => s.variant !== 'none'), ...now];
  return before.map((s) => (s.variant === 'none' ? { ...rest.shift()!, layer: s.layer } : s));
}

/** Leaves what a runtime needs to know in the model's metadata. */
function describe(model: Model, report: RewriteReport): void {
  const found = report.sites.filter((s) => s.layer !== null);
  const records = mergeRecords(
    earlier(model, SITES_KEY, sitesSchema) as unknown as SiteRecord[],
    found.map((s) => siteRecord(s, report.variant)),
  );
  model.setMetadata('onnx_fla.version', FORMAT_VERSION);
  model.setMetadata(SITES_KEY, JSON.stringify(records));
  if (report.state.length === 0) return;
  model.setMetadata(STATE_KEY, JSON.stringify(report.state));
  model.setMetadata('onnx_fla.rewind', 'no');
  if (report.attentionMask) model.setMetadata('onnx_fla.attention_mask', report.attentionMask);
}
