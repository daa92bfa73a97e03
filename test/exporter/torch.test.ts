import { describe, expect, it } from 'vitest';
import {
  inspectModel,
  modelBytes,
  parseModel,
  type RewriteOptions,
  rewriteModel,
} from '../../exporter/index.js';
import { distance, type Feeds, floats, ints, random, run, zeros } from './support/run.js';
import { loadTorch as load, TORCH_EXPORTS } from './support/torch.js';

const BATCH = 2;
const TOKENS = 8;
const HIDDEN = 16;

function feedsOf(name: string, tokens = TOKENS): Feeds {
  const next = random(name.length);
  const feeds: Feeds = { x: floats([BATCH, tokens, HIDDEN], () => next()) };
  const names = load(name).graph.inputs.map((i) => i.name);
  if (names.includes('attention_mask')) {
    const row = (b: number) => Array.from({ length: tokens }, (_, t) => (b === 1 && t < 3 ? 0 : 1));
    feeds.attention_mask = ints([BATCH, tokens], [0, 1].flatMap(row));
  }
  for (const past of names.filter((n) => n.startsWith('past'))) {
    feeds[past] = floats([BATCH, 4, 5, 4], () => next());
  }
  return feeds;
}

async function rewritten(name: string, options: RewriteOptions) {
  const model = load(name);
  const report = await rewriteModel(model, options);
  return { model: parseModel(modelBytes(model)), report };
}

describe.each(TORCH_EXPORTS)('$name', ({ name, mask, cache = false }) => {
  it('is understood', async () => {
    const { sites } = await inspectModel(load(name));
    expect(sites).toMatchObject([
      {
        layer: 0,
        q_num_heads: 4,
        kv_num_heads: 4,
        head_dim: 4,
        mask,
        cache,
        rewritable: !mask.endsWith('bias'),
      },
    ]);
  });

  it('is the same after a round trip', async () => {
    const { model, report } = await rewritten(name, { variant: 'none' });
    expect(report.sites).toMatchObject([{ rewritten: true }]);
    const feeds = feedsOf(name);
    const [before, after] = [await run(load(name), feeds), await run(model, feeds)];
    for (const output of Object.keys(before)) {
      const [a, b] = [before[output]!.data as Float32Array, after[output]!.data as Float32Array];
      expect(distance(a, b), output).toBeLessThan(1e-5);
    }
  });

  it('runs as linear attention, any length, if need be when its bias is dropped', async () => {
    const biased = mask.endsWith('bias');
    if (biased) {
      const refused = rewritten(name, { variant: 'linear', layers: [0] });
      await expect(refused).rejects.toThrow(/layer 0 cannot be rewritten: mask: .*bias 'drop'/);
    }
    const options: RewriteOptions = { variant: 'linear', ...(biased && { bias: 'drop' }) };
    const { model, report } = await rewritten(name, options);
    const notes = biased ? ['the bias by position is left out'] : [];
    expect(report.sites).toMatchObject([{ rewritten: true, reason: null, notes }]);
    for (const tokens of [1, TOKENS, 30]) {
      const { x, attention_mask } = feedsOf(name, tokens);
      const states = report.state.map((s) => [s.past, zeros(s.dtype, s.shape, BATCH)]);
      const feeds = {
        x: x!,
        ...(attention_mask && { attention_mask }),
        ...Object.fromEntries(states),
      };
      const { y } = await run(model, feeds);
      expect(y!.dims).toEqual([BATCH, tokens, HIDDEN]);
      expect((y!.data as Float32Array).every(Number.isFinite)).toBe(true);
    }
  });
});
