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
import { type FloatDType, normalizes, stateType } from './variants/linear.js';
import type { RewriteOptions } from './variants/options.js';

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

/** Names the state of a layer after its cache: past_key_values.3.key becomes past_key_values.3.state. */
function stateName(graph: Graph, cacheName: string): string {
  const at = cacheName.toLowerCase().lastIndexOf('key');
  const name =
    at < 0 ? `${cacheName}.state` : `${cacheName.slice(0, at)}state${cacheName.slice(at + 3)}`;
  return graph.fresh(name);
}

/** Declares the state that takes the place of a site's cache, at the place of the cache among inputs and outputs. */
export function declareState(
  graph: Graph,
  sdpa: Sdpa,
  cache: Cache,
  dtype: FloatDType,
  options: RewriteOptions,
): StatePair {
  const columns = sdpa.v.dim + (normalizes(options) ? 1 : 0);
  const batch = batchOfCache(graph, cache);
  const pair = {
    past: stateName(graph, cache.pastKey),
    present: stateName(graph, cache.presentKey || `${cache.pastKey}.present`),
    shape: [batch, sdpa.v.heads, sdpa.k.dim, columns],
    dtype: stateType(dtype, options) as DTypeName,
    in_place: true,
  };
  addState(graph, pair, cache.pastKey, cache.presentKey);
  return pair;
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
