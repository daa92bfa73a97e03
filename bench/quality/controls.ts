import {
  assemble,
  type CalibrateOptions,
  type CalibrationData,
  calibrate,
  type FeatureMapName,
  type Model,
  rewriteControl,
  rewriteModel,
} from '../../exporter/index.js';

/** One line of a table: how the original becomes it. */
export interface Way {
  name: string;
  role: 'original' | 'control' | 'model';
  /** Changes the model in place, or makes another one. */
  make(model: Model): Promise<Model | undefined>;
}

/** A way that changes the model in place. */
export function inPlace(change: (model: Model) => Promise<unknown>): Way['make'] {
  return async (model) => {
    await change(model);
    return undefined;
  };
}

/** Linear attention with fitted feature maps. */
export function calibratedWay(
  name: string,
  data: () => CalibrationData,
  options: CalibrateOptions,
): Way {
  return {
    name,
    role: 'model',
    async make(model) {
      const calibration = await calibrate(model, data(), options);
      return (await assemble(model, calibration)).model;
    },
  };
}

const linear = (name: string, featureMap: FeatureMapName): Way => ({
  name,
  role: 'model',
  make: inPlace((model) => rewriteModel(model, { variant: 'linear', featureMap })),
});

/** For encoders: the original, its controls, and linear attention with several feature maps. */
export const ENCODER_WAYS: Way[] = [
  { name: 'original', role: 'original', make: inPlace(async () => {}) },
  {
    name: 'rewritten, but softmax',
    role: 'control',
    make: inPlace((model) => rewriteModel(model, { variant: 'none' })),
  },
  {
    name: 'attention zeroed',
    role: 'control',
    make: inPlace((model) => rewriteControl(model, { control: 'zeroed' })),
  },
  {
    name: 'window 8 only',
    role: 'control',
    make: inPlace((model) => rewriteControl(model, { control: 'window', window: 8, sinks: 0 })),
  },
  linear('elu + 1', 'elu1'),
  linear('relu', 'relu'),
  linear('exp', 'exp'),
  linear('softmax over features', 'softmax'),
  linear('no feature map', 'identity'),
];
