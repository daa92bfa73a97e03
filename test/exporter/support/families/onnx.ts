import { DATA_TYPE } from '../../../../exporter/index.js';
import { makeLayer } from '../layer.js';
import { ALIBI_NOTES, alibi, causalPadding, type Family, qkv, SLOPES } from './writer.js';

/** ai.onnx Attention. */
export const ONNX: readonly Family[] = [
  ...[23, 24].map(
    (opset): Family => ({
      name: `ai.onnx Attention of opset ${opset}, packed rank 3, grouped heads, causal`,
      layer: () => makeLayer(12, 6, 2, 4),
      pattern: 'ai.onnx.Attention',
      visible: 'causal',
      padding: false,
      mask: 'causal',
      build(w) {
        const { heads, kvHeads } = w.layer;
        const inputs = [w.linear('q'), w.linear('k'), w.linear('v')];
        const attrs = { q_num_heads: heads, kv_num_heads: kvHeads, is_causal: 1 };
        w.project(w.op('Attention', inputs, attrs));
        return w.build(opset);
      },
    }),
  ),
  {
    name: 'ai.onnx Attention, rank 4, boolean mask',
    pattern: 'ai.onnx.Attention',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const seen = w.op('Cast', [w.maskInput()], { to: DATA_TYPE.bool });
      const wide = w.op('Unsqueeze', [w.op('Unsqueeze', [seen, w.ints(1)]), w.ints(2)]);
      // ONNX Runtime wants the mask's token dimensions in full.
      const shape = w.op('Concat', [w.ints(1), w.ints(1), w.dim(q, 2), w.ints(1)], { axis: 0 });
      w.finish(w.op('Attention', [q, k, v, w.op('Expand', [wide, shape])]));
      return w.build(23);
    },
  },
  {
    name: 'ai.onnx Attention, softcap, causal',
    layer: () => ({ ...makeLayer(12, 6, 2, 4), softcap: 1.5 }),
    pattern: 'ai.onnx.Attention',
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    notes: ['the softcap of 1.5 is left out'],
    build(w) {
      const inputs = [w.linear('q'), w.linear('k'), w.linear('v'), causalPadding(w)];
      const attrs = { q_num_heads: 6, kv_num_heads: 2, softcap: { float: 1.5 } };
      w.project(w.op('Attention', inputs, attrs));
      return w.build(23);
    },
  },
  {
    name: 'ai.onnx Attention, ALiBi in attn_mask, is_causal',
    layer: () => ({ ...makeLayer(12, 4, 4, 3), slopes: SLOPES }),
    pattern: 'ai.onnx.Attention',
    visible: 'causal',
    padding: false,
    mask: 'causal+ALiBi',
    notes: ALIBI_NOTES,
    build(w) {
      const inputs = [w.linear('q'), w.linear('k'), w.linear('v'), alibi(w)];
      const attrs = { q_num_heads: 4, kv_num_heads: 4, is_causal: 1 };
      w.project(w.op('Attention', inputs, attrs));
      return w.build(23);
    },
  },
];
