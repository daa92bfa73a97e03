import { FlaError } from '../ops/error.js';
import {
  DATA_TYPE,
  type Dim,
  type DTypeName,
  type Graph,
  makeValueInfo,
  valueDims,
} from './ir/index.js';
import type { Cache, Sdpa } from './match/sdpa.js';
import { featureCount } from './variants/fitted.js';
import { carriedShapes, hybridShape, isWindowed } from './variants/hybrid.js';
import { inFloat32, normalizes } from './variants/linear.js';
import type { RewriteOptions } from './variants/options.js';
import { type FloatDType, floatType, stateType } from './variants/types.js';

/** A state carried from call to call: output `present` of one run is input `past` of the next; zeros start. */
export interface StatePair {
  past: string;
  present: string;
  /** The batch dimension may be symbolic, all others are numbers. */
  shape: (number | string)[];
  dtype: string;
  /** Only the op that writes `present` reads `past`: where its kernels run, both may share memory. */
  in_place: boolean;
}

/** Names a state of a layer after its cache: past_key_values.3.key becomes past_key_values.3.state. */
function stateName(graph: Graph, cacheName: string, what: string): string {
  const at = cacheName.toLowerCase().lastIndexOf('key');
  const name =
    at < 0 ? `${cacheName}.${what}` : `${cacheName.slice(0, at)}${what}${cacheName.slice(at + 3)}`;
  return graph.fresh(name);
}

/** What takes the place of one site's cache: `state`, and `window` for variants with exact keys. */
export interface SiteStates {
  readonly state?: StatePair;
  readonly window?: StatePair;
}

/** Declares the states that take the place of a site's cache, at the place of the cache among inputs and outputs. */
export function declareStates(
  graph: Graph,
  sdpa: Sdpa,
  cache: Cache,
  layer: number,
  options: RewriteOptions,
): SiteStates {
  const dtype = floatType(sdpa, layer);
  const declare = (what: string, dims: readonly number[], type: FloatDType): StatePair => {
    const pair = {
      past: stateName(graph, cache.pastKey, what),
      present: stateName(graph, cache.presentKey || `${cache.pastKey}.present`, what),
      shape: [batchOfCache(graph, cache), ...dims],
      dtype: type as DTypeName,
      in_place: true,
    };
    addState(graph, pair, cache.pastKey, cache.presentKey);
    return pair;
  };
  if (isWindowed(options.variant)) {
    const shape = hybridShape(sdpa, layer, options);
    const { window, state } = carriedShapes(sdpa, shape, options.variant);
    return {
      window: declare('window', window, dtype),
      ...(state && { state: declare('state', state, 'float32') }),
    };
  }
  const columns = sdpa.v.dim + (normalizes(options) ? 1 : 0);
  const dims = [sdpa.v.heads, featureCount(sdpa, layer, options) ?? sdpa.k.dim, columns];
  const type = inFloat32(sdpa, layer, options) ? 'float32' : stateType(dtype, options);
  return { state: declare('state', dims, type) };
}

/** Declares a pair, before the input and output of the given names or else at the end. */
export function addState(graph: Graph, pair: StatePair, beforeInput = '', beforeOutput = ''): void {
  const dtype = DATA_TYPE[pair.dtype as DTypeName];
  const place = (list: { name: string }[], before: string) => {
    const at = list.findIndex((v) => v.name === before);
    return at < 0 ? list.length : at;
  };
  const { input, output } = graph.proto;
  input.splice(place(input, beforeInput), 0, makeValueInfo(pair.past, dtype, pair.shape));
  output.splice(place(output, beforeOutput), 0, makeValueInfo(pair.present, dtype, pair.shape));
  graph.touch();
}

/** The batch dimension as the input of a cache declares it. */
export function batchOfCache(graph: Graph, { pastKey, stacked }: Cache): number | string {
  return batchDim(graph, pastKey, stacked ? 1 : 0);
}

/** The batch dimension as an input declares it. */
export function batchDim(graph: Graph, input: string, axis = 0): number | string {
  const d: Dim = valueDims(graph.info(input))?.[axis];
  return d === undefined || (typeof d === 'number' && d < 1) ? 'batch' : d;
}

/** Takes the cache of a converted site out of the model's inputs and outputs. */
export function removeCaches(graph: Graph, caches: readonly Cache[]): void {
  for (const cache of caches) {
    for (const present of [cache.presentKey, cache.presentValue]) {
      if (present) graph.removeOutput(present);
    }
  }
  graph.removeDead();
  for (const past of new Set(caches.flatMap((c) => [c.pastKey, c.pastValue]))) {
    const [use] = graph.uses(past);
    if (use) {
      throw new FlaError(
        'unsupported',
        `cache '${past}' is also read by ${use.node.opType} '${use.node.name}', in a way that no state can replace`,
      );
    }
    graph.removeInput(past);
  }
}
