import { FlaError } from '../../ops/error.js';
import type { Model } from '../ir/index.js';
import { STATE_KEY } from '../metadata.js';
import type { StatePair } from '../states.js';
import { renameInput, renameOutput, statesOf, type TargetReport } from './report.js';

/** How @huggingface/transformers names the batch in shapes of caches that it makes. */
const BATCH = 'batch_size';

/**
 * Gives the states of a rewritten decoder names and shapes that @huggingface/transformers (version 4) makes, feeds and hands on as
 * if they were caches: `past_key_values.N.key` and `.value` (`.decoder.key` and `.decoder.value` beside an encoder), the batch
 * called `batch_size`. A state that belongs to no layer takes a name that no layer has, or that of a layer more, which config.json
 * must then promise.
 *
 * @throws FlaError `unsupported` when the model has no states or a layer has more than two
 */
export function forTransformersJs(model: Model): TargetReport {
  const { graph } = model;
  const pairs = statesOf(model, 'transformersjs');
  const caches = graph.inputs.map((i) => i.name).filter((name) => /^past_key_values\./.test(name));
  const taken = new Set(caches.filter((name) => !pairs.some((p) => p.past === name)));
  const hasEncoder = caches.some((name) => name.includes('.encoder.'));
  const layers =
    1 +
    Math.max(...caches.map((name) => Number(/^past_key_values\.(\d+)\./.exec(name)?.[1] ?? -1)));
  const free = function* (layer: string | undefined) {
    const first = layer === undefined ? 0 : Number(layer);
    const end = layer === undefined ? Number.POSITIVE_INFINITY : first + 1;
    for (let i = first; i < end; i++) {
      // Where it is nobody's key, a layer's value is no sequence that anyone measures.
      for (const kind of layer === undefined && i < layers ? ['value'] : ['key', 'value'])
        yield hasEncoder ? `${i}.decoder.${kind}` : `${i}.${kind}`;
    }
  };
  let last = layers;
  // Those of layers first: what is left over goes to the others.
  const layerOf = (p: StatePair) => /^past_key_values\.(\d+)\./.exec(p.past)?.[1];
  for (const pair of [...pairs].sort(
    (a, b) => +(layerOf(a) === undefined) - +(layerOf(b) === undefined),
  )) {
    const layer = layerOf(pair);
    const place = [...take(free(layer), 2 * layers + 2)].find(
      (p) => !taken.has(`past_key_values.${p}`),
    );
    if (place === undefined) {
      throw new FlaError(
        'unsupported',
        `target transformersjs: layer ${layer} must have two states at most, received '${pair.past}' beside them`,
      );
    }
    taken.add(`past_key_values.${place}`);
    last = Math.max(last, Number(place.split('.')[0]) + 1);
    renameInput(graph, pair.past, `past_key_values.${place}`);
    renameOutput(graph, pair.present, `present.${place}`);
    pair.past = `past_key_values.${place}`;
    pair.present = `present.${place}`;
  }
  nameBatch(model);
  const state = pairs.map((p) => ({
    ...p,
    shape: p.shape.map((d, axis) => (axis === 0 && typeof d === 'string' ? BATCH : d)),
  }));
  model.setMetadata(STATE_KEY, JSON.stringify(state));
  const layerCount = hasEncoder ? 'decoder_layers' : 'num_hidden_layers';
  return { state, config: last > layers ? { [layerCount]: last } : null };
}

/** The batch of what is carried, by the name that zeros are made for. */
function nameBatch({ graph }: Model): void {
  for (const info of [...graph.inputs, ...graph.outputs]) {
    if (!/^(past_key_values|present)\./.test(info.name)) continue;
    const batch = info.type?.tensorType?.shape?.dim[0];
    if (!batch || batch.dimValue) continue;
    batch.dimParam = BATCH;
  }
}

function* take<T>(values: Iterable<T>, count: number): Iterable<T> {
  let left = count;
  for (const value of values) {
    if (left-- <= 0) return;
    yield value;
  }
}
