import * as v from 'valibot';
import { FlaError } from '../../ops/error.js';
import { hybridAttention } from '../../ops/hybrid_attention/schema.js';
import { linearAttention } from '../../ops/linear_attention/schema.js';
import { windowAttention } from '../../ops/window_attention/schema.js';
import { checkShape } from '../check_shape.js';
import { DATA_TYPE, type DTypeName, type Graph, type Model, makeValueInfo } from '../ir/index.js';
import { Facts } from '../match/facts.js';
import { roleOf } from '../match/situation.js';
import { STATE_KEY } from '../metadata.js';
import { addState, type StatePair } from '../states.js';
import { SiteEmitter } from '../variants/emit.js';
import { statesOf, type TargetReport } from './report.js';

const configSchema = v.object({
  model: v.optional(
    v.object({
      decoder: v.optional(
        v.object({
          inputs: v.optional(
            v.object({
              past_key_names: v.optional(v.string()),
              attention_mask: v.optional(v.string()),
            }),
          ),
          outputs: v.optional(v.object({ present_key_names: v.optional(v.string()) })),
          sliding_window: v.nullish(v.looseObject({})),
        }),
      ),
    }),
  ),
  search: v.optional(v.object({ num_beams: v.optional(v.number()) })),
});

/** What of a genai_config.json matters here. */
export type GenaiConfig = v.InferInput<typeof configSchema>;

export interface GenaiOptions {
  /** The genai_config.json of the original; default: one that leaves all names as they are. */
  config?: GenaiConfig;
  /** Name of the file that the model is written to. */
  filename?: string;
}

/** A layer's states, by the inputs of its operator that take them. */
interface Layer {
  readonly number: number;
  readonly recurrent: StatePair;
  readonly conv?: StatePair;
}

/** The operators that a rewrite gives states to. */
const CARRYING = [linearAttention, windowAttention, hybridAttention];
/** Where a template of genai_config.json holds the number of a layer. */
const NUMBER = '%d';

/**
 * Gives the states of a rewritten decoder the names and shapes under which onnxruntime-genai (0.12.2 or newer) makes, feeds and
 * hands on the states of hybrid models, read from its src/models/recurrent_state.cpp:
 *
 * - layer N has `past_key_values.N.conv_state`, of rank 3, and `past_key_values.N.recurrent_state`, of rank 4, and outputs
 *   `present.N.conv_state` and `present.N.recurrent_state`; all but the batch are numbers, the same in all layers
 * - past and present are the same memory. An output is therefore written when its layer's operator is through, whichever body runs
 * - attention_mask covers all tokens so far, and what came before is counted from it
 *
 * A layer with one state has a conv_state of one element that nothing reads.
 *
 * @throws FlaError `unsupported` when the states do not fit into that, `invalid_argument` for templates of names that they cannot follow
 */
export function forGenai(model: Model, { config = {}, filename }: GenaiOptions): TargetReport {
  const { graph } = model;
  checkShape(configSchema, config, 'genai_config.json');
  const pairs = statesOf(model, 'genai');
  const decoder = config.model?.decoder;
  const names = {
    past: templateOf(
      decoder?.inputs?.past_key_names ?? 'past_key_values.%d.key',
      'inputs.past_key_names',
    ),
    present: templateOf(
      decoder?.outputs?.present_key_names ?? 'present.%d.key',
      'outputs.present_key_names',
    ),
  };
  const counters = pairs.filter((p) => p.dtype === 'int64');
  const layers = layersOf(
    graph,
    pairs.filter((p) => !counters.includes(p)),
  );
  checkUniform(layers);
  const e = new SiteEmitter(graph, new Facts(graph), 'genai');
  countFromMask(e, counters, decoder?.inputs?.attention_mask ?? 'attention_mask');
  const state = layers.flatMap((layer) => renameLayer(e, layer, names));
  graph.insert(e.nodes);
  graph.removeDead();
  graph.sort();
  model.setMetadata(STATE_KEY, JSON.stringify(state));
  const cacheLeft = graph.inputs.some(
    (i) => roleOf(graph, i.name) === 'past' && !state.some((s) => s.past === i.name),
  );
  const patch = {
    ...(filename && { filename }),
    ...(!cacheLeft && decoder?.sliding_window && { sliding_window: null }),
  };
  const beams = (config.search?.num_beams ?? 1) > 1;
  return {
    state,
    config:
      Object.keys(patch).length > 0 || beams
        ? {
            ...(Object.keys(patch).length > 0 && { model: { decoder: patch } }),
            ...(beams && { search: { num_beams: 1 } }),
          }
        : null,
  };
}

/** What stands before the last dot: names of states are made from it. */
function templateOf(template: string, where: string): string {
  const dot = template.lastIndexOf('.');
  if (template.includes(NUMBER) && dot > template.indexOf(NUMBER)) return template.slice(0, dot);
  throw new FlaError(
    'invalid_argument',
    `genai_config.json: model.decoder.${where} must hold %d and a dot behind it, as past_key_values.%d.key does, received ${JSON.stringify(template)}`,
  );
}

/** Name of the input by which an operator of com.fla takes a state. */
function inputName(graph: Graph, past: string): string | undefined {
  const [use] = graph.uses(past);
  if (use?.node.domain !== 'com.fla') return undefined;
  return CARRYING.find((op) => op.name === use.node.opType)?.inputs[use.index]?.name;
}

function layersOf(graph: Graph, pairs: readonly StatePair[]): Layer[] {
  const found = new Map<number, { recurrent?: StatePair; conv?: StatePair }>();
  for (const pair of pairs) {
    const number = Number(/\d+/.exec(pair.past)?.[0] ?? Number.NaN);
    const layer = found.get(number) ?? {};
    found.set(number, layer);
    const taken = inputName(graph, pair.past);
    const place = taken === 'past_window' && hasState(graph, pair) ? 'conv' : 'recurrent';
    if (!taken || Number.isNaN(number) || layer[place] || pair.shape.length !== 4) {
      throw new FlaError(
        'unsupported',
        `target genai: '${pair.past}' [${pair.shape}] must be a state of rank 4 that an operator of com.fla reads, of a layer with a number in its name`,
      );
    }
    layer[place] = pair;
  }
  return [...found].map(([number, layer]) => ({
    number,
    recurrent: layer.recurrent!,
    ...(layer.conv && { conv: layer.conv }),
  }));
}

/** Is there another state beside this window? */
function hasState(graph: Graph, { past }: StatePair): boolean {
  return graph.uses(past)[0]!.node.opType === 'HybridAttention';
}

/** All layers' states are made in the type and shape of the first. */
function checkUniform(layers: readonly Layer[]): void {
  const shown = (p: StatePair | undefined) => (p ? `${p.dtype} [${p.shape.slice(1)}]` : 'none');
  const [first] = layers;
  for (const which of ['recurrent', 'conv'] as const) {
    const other = layers.find((l) => shown(l[which]) !== shown(first![which]));
    if (!other) continue;
    throw new FlaError(
      'unsupported',
      `target genai: states must be of one type and shape in all layers, received ${shown(first![which])} in layer ${first!.number} and ${shown(other[which])} in layer ${other.number}`,
    );
  }
}

/** What counts the tokens before becomes a count of the mask, which is always as long as the text so far. */
function countFromMask(e: SiteEmitter, counters: readonly StatePair[], maskName: string): void {
  const { graph } = e;
  if (counters.length > 0 && !graph.isInput(maskName)) {
    throw new FlaError(
      'unsupported',
      `target genai: positions follow from '${counters[0]!.past}', which is counted from an input '${maskName}' [batch, total], received none`,
    );
  }
  if (!graph.isInput(maskName)) return;
  const tokens = graph.inputs.find(({ name }) => roleOf(graph, name) === 'tokens')?.name;
  if (counters.length > 0 && !tokens) {
    throw new FlaError(
      'unsupported',
      'target genai: the model must have an input of token ids [B,T], received none',
    );
  }
  const before = () => e.sub(e.dim(maskName, 1), e.dim(tokens!, 1));
  for (const { past, present, shape } of counters) {
    const cut = () => e.op('Slice', [maskName, e.ints(0), before(), e.ints(1)]);
    const count = shape[0] === 1 ? before() : e.squeeze(e.sum(e.cast(cut(), 'int64'), 1), 1);
    graph.replaceUses(past, count);
    graph.removeInput(past);
    graph.removeOutput(present);
  }
  const dim = graph.info(maskName)?.type?.tensorType?.shape?.dim[1];
  if (dim && !dim.dimValue) dim.dimParam = 'total_sequence_length';
  graph.model.setMetadata('onnx_fla.attention_mask', 'total');
}

/** Puts a layer's states under their new names, conv_state first. */
function renameLayer(
  e: SiteEmitter,
  { number, recurrent, conv }: Layer,
  names: { past: string; present: string },
): StatePair[] {
  const name = (template: string, what: string) =>
    `${template.replace(NUMBER, `${number}`)}.${what}`;
  const pairOf = (what: string, old: StatePair, dims: readonly number[]): StatePair => ({
    ...old,
    past: name(names.past, what),
    present: name(names.present, what),
    shape: [old.shape[0]!, ...dims],
  });
  const { graph } = e;
  const node = graph.uses(recurrent.past)[0]!.node;
  const dims = recurrent.shape.slice(1) as number[];
  const states: StatePair[] = [];
  if (conv) {
    const [H, rows, width] = conv.shape.slice(1) as number[];
    const pair = pairOf('conv_state', conv, [H!, rows! * width!]);
    move(e, conv, pair, node.outputs[0]!);
    states.push(pair);
  } else {
    const pair = pairOf('conv_state', recurrent, [1, 1]);
    addState(graph, pair, recurrent.past, recurrent.present);
    e.op('Identity', [pair.past], {}, { output: pair.present });
    states.push(pair);
  }
  const pair = pairOf('recurrent_state', recurrent, dims);
  move(e, recurrent, pair, node.outputs[0]!);
  return [...states, pair];
}

/**
 * Puts the pair `to` in the place of `from`. Its output takes its batch from `after`, so that it is written when everything else
 * that reads the input has run.
 */
function move(e: SiteEmitter, from: StatePair, to: StatePair, after: string): void {
  const { graph } = e;
  const dtype = DATA_TYPE[to.dtype as DTypeName];
  const declare = (list: { name: string }[], old: string, name: string) =>
    list.splice(
      list.findIndex((v) => v.name === old),
      1,
      makeValueInfo(name, dtype, to.shape),
    );
  declare(graph.proto.input, from.past, to.past);
  declare(graph.proto.output, from.present, to.present);
  graph.touch();
  const flat = to.shape.length !== from.shape.length;
  const past = flat ? e.reshape(to.past, [0, ...(from.shape.slice(1) as number[])]) : to.past;
  graph.replaceUses(from.past, past);
  const inner = graph.fresh(`${from.present}.inner`);
  const node = graph.producer(from.present)!;
  graph.renameOutput(node, node.outputs.indexOf(from.present), inner);
  e.reshape(inner, [e.dim(after, 0), ...(to.shape.slice(1) as number[])], to.present);
}
