import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { loadModel, type Model, rewriteControl, rewriteModel, saveModelAsync } from '../index.js';

/** A model that is made from the original, to compare others with. */
export interface Control {
  id: 'parity' | 'zeroed' | 'window' | 'elu1';
  name: string;
  about: string;
  /** Changes the original, in place; returns how many attentions are no longer what they were. */
  make(model: Model, signal?: AbortSignal): Promise<number>;
}

export interface ControlSettings {
  window: number;
  sinks: number;
}

/** The controls of a report, from the one that must not differ to those that should. */
export function controls({ window, sinks }: ControlSettings): Control[] {
  return [
    {
      id: 'parity',
      name: 'rewritten, but softmax',
      about:
        'the same attention written again: a difference means that the model was misunderstood',
      make: async (model, signal) => {
        const { sites } = await rewriteModel(model, { variant: 'none', signal });
        return sites.filter((s) => s.rewritten).length;
      },
    },
    {
      id: 'zeroed',
      name: 'attention zeroed',
      about: 'attention yields zeros: who is no better has lost its attention',
      make: (model, signal) => rewriteControl(model, { control: 'zeroed', signal }),
    },
    {
      id: 'window',
      name: `window ${window} + ${sinks} sinks only`,
      about:
        'exact softmax over the nearest and the first tokens and nothing else: what a linear branch adds is measured from here',
      make: (model, signal) => rewriteControl(model, { control: 'window', window, sinks, signal }),
    },
    {
      id: 'elu1',
      name: 'naive elu + 1',
      about: 'every layer rewritten to linear attention without calibration',
      make: async (model, signal) => {
        const { sites } = await rewriteModel(model, { variant: 'linear', signal });
        return sites.filter((s) => s.rewritten).length;
      },
    },
  ];
}

/** Does work with a control's file, which is gone afterwards. */
export async function withControl<T>(
  original: string,
  control: Control,
  work: (file: string, changed: number) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'onnx-fla-'));
  const clean = () => fs.rmSync(folder, { recursive: true, force: true });
  process.once('exit', clean);
  try {
    const model = loadModel(original);
    const changed = await control.make(model, signal);
    const file = path.join(folder, `${control.id}.onnx`);
    await saveModelAsync(model, file, { signal });
    return await work(file, changed);
  } finally {
    process.off('exit', clean);
    clean();
  }
}
