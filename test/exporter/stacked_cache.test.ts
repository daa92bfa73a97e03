/** A cache [2,B,H,T,D] of keys and values that plain operators take apart and join. */
import { expect, it } from 'vitest';
import { inspectModel, type Model, type Node } from '../../exporter/index.js';
import { loadTransformers } from './support/transformers.js';

/** Exchanges an input of two nodes. */
function exchange({ graph }: Model, [a, i]: [Node, number], [b, j]: [Node, number]): void {
  const [first, second] = [a.inputs[i]!, b.inputs[j]!];
  graph.setInput(a, i, second);
  graph.setInput(b, j, first);
}

function swapPast(model: Model): void {
  const entries = model.graph.uses('past_0').filter(({ node }) => node.is('Gather'));
  const [keys, values] = entries.map((u) => u.node);
  exchange(model, [keys!, 1], [values!, 1]);
}

function swapPresent(model: Model): void {
  const joined = model.graph.producer('present_0')!;
  exchange(model, [joined, 0], [joined, 1]);
}

const KEPT: readonly [what: string, change: (model: Model) => void, reason: RegExp][] = [
  [
    'values before keys',
    (m) => {
      swapPast(m);
      swapPresent(m);
    },
    /^a cache that holds both must hold keys first, and values behind them$/,
  ],
  ['keys that go out as values', swapPresent, /is not a graph input/],
  ['keys that come in as values', swapPast, /is not a graph input/],
];

it.each(KEPT)('leaves alone %s', async (_, change, reason) => {
  const model = loadTransformers('gpt2_past.torchscript');
  change(model);
  const { sites } = await inspectModel(model);
  expect(sites.map((s) => s.reason)).toEqual([expect.stringMatching(reason), null]);
});
