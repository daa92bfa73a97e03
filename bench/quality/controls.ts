import {
  type FeatureMapName,
  type Model,
  rewriteControl,
  rewriteModel,
} from '../../exporter/index.js';

/** One line of a table: how the original becomes it. */
export interface Way {
  name: string;
  role: 'original' | 'control' | 'model';
  make(model: Model): Promise<unknown>;
}

const linear = (name: string, featureMap: FeatureMapName): Way => ({
  name,
  role: 'model',
  make: (model) => rewriteModel(model, { variant: 'linear', featureMap }),
});

/** For encoders: the original, its controls, and linear attention with several feature maps. */
export const ENCODER_WAYS: Way[] = [
  { name: 'original', role: 'original', make: async () => {} },
  {
    name: 'rewritten, but softmax',
    role: 'control',
    make: (model) => rewriteModel(model, { variant: 'none' }),
  },
  {
    name: 'attention zeroed',
    role: 'control',
    make: (model) => rewriteControl(model, { control: 'zeroed' }),
  },
  {
    name: 'window 8 only',
    role: 'control',
    make: (model) => rewriteControl(model, { control: 'window', window: 8, sinks: 0 }),
  },
  linear('elu + 1', 'elu1'),
  linear('relu', 'relu'),
  linear('exp', 'exp'),
  linear('softmax over features', 'softmax'),
  linear('no feature map', 'identity'),
];
