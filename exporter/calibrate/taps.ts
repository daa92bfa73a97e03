import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { analyse } from '../analysis.js';
import { SharedValues } from '../common_values.js';
import { type TensorInput, tensorInputs } from '../compare/feeds.js';
import { loadOnnxRuntime, sessionOptions } from '../compare/session.js';
import { type Model, makeValueInfo, modelBytes } from '../ir/index.js';
import { beforeRotation } from '../match/rotation.js';
import type { Runner } from '../match/runner.js';
import type { Sdpa } from '../match/sdpa.js';
import { SiteEmitter } from '../variants/emit.js';
import { batchFirst, layerInput } from '../variants/gates.js';
import { copyModel } from './copy.js';

/** One attention whose inputs are read off. */
export interface TappedLayer {
  readonly layer: number;
  readonly HQ: number;
  readonly HV: number;
  readonly K: number;
  readonly V: number;
  readonly scale: number;
  /** Features are made of queries and keys before their rotary embedding. */
  readonly unrotated: boolean;
  /** Elements of the layer's input; 0 where it is not tapped. */
  readonly hidden: number;
}

/** Heads of one layer in one run. */
export interface TappedHeads {
  readonly query: Ort.Tensor; // [B,HQ,T,K]
  readonly key: Ort.Tensor; // [B,HV,T,K]
  readonly value: Ort.Tensor; // [B,HV,T,V]
  /** What features are made of. */
  readonly queryFeatures: Ort.Tensor; // [B,HQ,T,D]
  readonly keyFeatures: Ort.Tensor; // [B,HV,T,D]
  /** 1 where there is no padding, of bidirectional attention: [B,T]. All is seen where it is absent. */
  readonly visible?: Ort.Tensor;
  /** The layer's input: [B,T,hidden]. */
  readonly hidden?: Ort.Tensor;
}

/** A model that yields queries, keys and values of its attention instead of its own outputs. */
export class Taps {
  private constructor(
    private readonly session: Ort.InferenceSession,
    readonly layers: readonly TappedLayer[],
  ) {}

  /**
   * @param layers which ones; each must be attention that can be rewritten
   * @param options `hidden`: also the layer's input, where there is one in sight
   */
  static async open(
    model: Model,
    layers: readonly number[],
    options: {
      runner?: Runner;
      threads?: number;
      signal?: AbortSignal;
      unrotated?: boolean;
      hidden?: boolean;
    } = {},
  ): Promise<Taps> {
    const copy = copyModel(model);
    const analysis = await analyse(copy, options);
    const tapped = layers.map((layer) => {
      const site = analysis.sites.find((s) => s.layer === layer);
      const sdpa = site?.sdpa;
      if (!sdpa) throw new FlaError('invalid_argument', `layer ${layer} is no known attention`);
      const q = options.unrotated ? beforeRotation(copy.graph, sdpa.q) : undefined;
      const k = options.unrotated ? beforeRotation(copy.graph, sdpa.k) : undefined;
      return { layer, site, sdpa, unrotated: q && k ? { q, k } : undefined };
    });
    const { graph } = copy;
    graph.proto.output = [];
    const shared = new SharedValues(graph, analysis, tapped[0]!.sdpa);
    const sizes = new Map<number, number>();
    for (const { layer, site, sdpa, unrotated } of tapped) {
      const e = new SiteEmitter(graph, analysis.facts, `tap.${layer}`);
      for (const [name, heads] of Object.entries({
        query: sdpa.q,
        key: sdpa.k,
        value: sdpa.v,
        ...unrotated,
      })) {
        e.op('Cast', [e.bhtd(heads)], { to: 1 }, { output: `tap.${layer}.${name}` });
        graph.addOutput(makeValueInfo(`tap.${layer}.${name}`, 1));
      }
      const input = options.hidden ? inputOf(e, sdpa, layer) : undefined;
      if (input) {
        sizes.set(layer, input.size);
        e.op('Cast', [input.value], { to: 1 }, { output: `tap.${layer}.hidden` });
        graph.addOutput(makeValueInfo(`tap.${layer}.hidden`, 1));
      }
      const seen = site.mask?.kind === 'bidirectional' ? shared.padding(site) : '';
      if (seen) {
        e.op('Cast', [seen], { to: 1 }, { output: `tap.${layer}.visible` });
        graph.addOutput(makeValueInfo(`tap.${layer}.visible`, 1));
      }
      graph.insert(e.nodes);
    }
    shared.insert();
    graph.removeDead();
    graph.sort();
    const ort = await loadOnnxRuntime();
    const session = await ort.InferenceSession.create(modelBytes(copy), sessionOptions(options));
    return new Taps(
      session,
      tapped.map(({ layer, sdpa, unrotated }) => ({
        layer,
        ...sizesOf(sdpa),
        unrotated: unrotated !== undefined,
        hidden: sizes.get(layer) ?? 0,
      })),
    );
  }

  /** Inputs that the model wants. Some of the original's may have become useless. */
  get inputs(): readonly TensorInput[] {
    return tensorInputs(this.session.inputMetadata);
  }

  async run(feeds: Readonly<Record<string, Ort.Tensor>>): Promise<Map<number, TappedHeads>> {
    const wanted = Object.fromEntries(this.session.inputNames.map((n) => [n, feeds[n]!]));
    const results = await this.session.run(wanted);
    return new Map(
      this.layers.map(({ layer, unrotated }) => {
        const of = (name: string) => results[`tap.${layer}.${name}`]!;
        const [query, key, value] = [of('query'), of('key'), of('value')];
        const [queryFeatures, keyFeatures] = unrotated ? [of('q'), of('k')] : [query, key];
        const visible = results[`tap.${layer}.visible`];
        const hidden = results[`tap.${layer}.hidden`];
        const heads = { query, key, value, queryFeatures, keyFeatures };
        return [layer, { ...heads, ...(visible && { visible }), ...(hidden && { hidden }) }];
      }),
    );
  }

  async release(): Promise<void> {
    await this.session.release();
  }
}

/** The layer's input [B,T,size], where there is one in sight. */
function inputOf(e: SiteEmitter, sdpa: Sdpa, layer: number) {
  try {
    const x = layerInput(e, sdpa, layer);
    const size = e.facts.dims(x)?.at(-1);
    return typeof size === 'number' ? { value: batchFirst(e, sdpa, x), size } : undefined;
  } catch (error) {
    if (error instanceof FlaError && error.code === 'unsupported') return undefined;
    throw error;
  }
}

function sizesOf(sdpa: Sdpa): Omit<TappedLayer, 'layer' | 'unrotated' | 'hidden'> {
  const { q, k, v, scale } = sdpa;
  return { HQ: q.heads, HV: v.heads, K: k.dim, V: v.dim, scale };
}
