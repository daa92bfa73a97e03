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
 * @param config the model's config.json, which tells under what name the number of layers stands; default: num_hidden_layers, or decoder_layers
 * beside an encoder
 * @throws FlaError `unsupported` when the model has no states or a layer has more than two, `invalid_argument` for a config.json without a
 * number of layers
 */
export function forTransformersJs(model: Model, config?: object): TargetReport {
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
  return { state, config: last > layers ? layerPatch(last, hasEncoder, config) : null };
}

type Json = Readonly<Record<string, unknown>>;

/** Where the configurations of decoders have the number of layers (the library's src/configs.js). */
const LAYER_KEYS = [
  'num_hidden_layers',
  'n_layer',
  'n_layers',
  'num_layers',
  'num_transformer_layers',
] as const;
/** And those of decoders with an encoder. */
const DECODER_KEYS = ['decoder_layers', 'num_decoder_layers', 'decoder_num_hidden_layers'] as const;

function layerPatch(count: number, hasEncoder: boolean, config?: object): Json {
  const keys = hasEncoder ? DECODER_KEYS : LAYER_KEYS;
  if (!config) return { [keys[0]]: count };
  const known = (json: Json) => keys.find((key) => Number.isInteger(json[key]));
  const key = known(config as Json);
  if (key) return { [key]: count };
  // Models of text and images have that of the text in it.
  const { text_config: text } = config as { text_config?: Json };
  const inner = text && known(text);
  if (inner) return { text_config: { [inner]: count } };
  throw new FlaError(
    'invalid_argument',
    `config.json must have the number of layers, ${keys.join(' or ')}, received ${Object.keys(config).join(', ').slice(0, 100)}`,
  );
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
