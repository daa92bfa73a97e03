import { describe, expect, it } from 'vitest';
import { inspectModel, rewriteModel, type SiteReport } from '../../exporter/index.js';
import { Writer } from './support/families.js';
import { makeLayer } from './support/layer.js';
import { NEAR_MISSES } from './support/near_misses.js';

describe.each(NEAR_MISSES)('$name', (miss) => {
  const model = () => miss.build(new Writer(makeLayer(12, 4, miss.grouped ? 2 : 4, miss.dim ?? 3)));

  it('is refused with its reason', async () => {
    const [site, ...others] = (await inspectModel(model())).sites as [SiteReport];
    expect(others).toEqual([]);
    expect(site).toMatchObject({ rewritable: false, layer: miss.nothing ? null : 0 });
    expect(site.reason).toMatch(miss.reason);
  });

  it('is left alone by rewrite', async () => {
    const subject = model();
    const before = subject.graph.nodes.map((n) => n.opType);
    const report = await rewriteModel(subject, { variant: 'linear' });
    expect(report.sites[0]).toMatchObject({ rewritten: false });
    expect(subject.graph.nodes.map((n) => n.opType)).toEqual(before);
    if (!miss.nothing) {
      await expect(rewriteModel(model(), { variant: 'linear', layers: [0] })).rejects.toMatchObject(
        {
          code: 'unsupported',
          message: expect.stringMatching(miss.reason),
        },
      );
    }
  });
});
