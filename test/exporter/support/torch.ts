import path from 'node:path';
import { loadModel, type Model } from '../../../exporter/index.js';
import { ROOT } from '../../support/models.js';

// Made by test/fixtures/torch/export.py with PyTorch's exporter.
export const TORCH_EXPORTS = [
  { name: 'bert', mask: 'padding' },
  { name: 'distilbert', mask: 'padding' },
  { name: 'bart', mask: 'padding' },
  { name: 'gpt2', mask: 'causal' },
  { name: 'gpt2_cache', mask: 'causal', cache: true },
  { name: 'vit', mask: 'bidirectional' },
  { name: 'timm', mask: 'bidirectional' },
  { name: 'multihead', mask: 'bidirectional' },
  { name: 't5', mask: 'bidirectional+bias' },
];

export function loadTorch(name: string): Model {
  return loadModel(path.join(ROOT, 'test/fixtures/torch', `${name}.onnx`));
}
