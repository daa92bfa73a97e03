import { FlaError } from '../../ops/error.js';
import type { Graph, Model } from '../ir/index.js';
import type { StatePair } from '../states.js';

export const STATE_KEY = 'onnx_fla.state';

export interface TargetReport {
  /** The states by the names that they have now. */
  state: StatePair[];
  /**
   * What to change in the model's config.json or genai_config.json, as a JSON merge patch (RFC 7396); null when it may stay as
   * it is.
   */
  config: Record<string, unknown> | null;
}

/** The states that a rewrite left. @throws FlaError `unsupported` when there are none */
export function statesOf(model: Model, target: string): StatePair[] {
  const text = model.metadata(STATE_KEY);
  const pairs = text === undefined ? [] : (JSON.parse(text) as StatePair[]);
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
