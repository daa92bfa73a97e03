import { FlaError } from '../../ops/error.js';
import type { Graph, Model } from '../ir/index.js';
import { earlier, STATE_KEY, statesSchema } from '../metadata.js';
import type { StatePair } from '../states.js';

export interface TargetReport {
  /** The states by the names that they have now. */
  state: StatePair[];
  /**
   * What to change in the model's config.json or genai_config.json, as a JSON merge patch (RFC 7396); null when it may stay as
   * it is.
   */
  config: Record<string, unknown> | null;
}

/**
 * The states that a rewrite left.
 *
 * @throws FlaError `unsupported` when there are none, `invalid_model` when the model lacks one that its metadata names
 */
export function statesOf(model: Model, target: string): StatePair[] {
  const { graph } = model;
  const pairs = earlier(model, STATE_KEY, statesSchema);
  const inputs = new Set(graph.inputs.map((i) => i.name).filter((name) => graph.isInput(name)));
  const outputs = new Set(graph.outputs.map((o) => o.name).filter((name) => graph.producer(name)));
  for (const { past, present } of pairs) {
    if (inputs.delete(past) && outputs.delete(present)) continue;
    throw new FlaError(
      'invalid_model',
      `model: metadata ${STATE_KEY} must name one input and one output of the model for each state, received '${past}' and '${present}'`,
    );
  }
  if (pairs.length > 0) return pairs;
  throw new FlaError('unsupported', `target ${target}: the model must have states, received none`);
}

export function renameInput(graph: Graph, from: string, to: string): void {
  graph.info(from)!.name = to;
  graph.touch();
  graph.replaceUses(from, to);
}

export function renameOutput(graph: Graph, from: string, to: string): void {
  const node = graph.producer(from)!;
  graph.outputs.find((o) => o.name === from)!.name = to;
  graph.renameOutput(node, node.outputs.indexOf(from), to);
}
