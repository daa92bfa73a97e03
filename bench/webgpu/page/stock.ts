/** A language model on onnxruntime-web alone, as its documentation has it: state in GPU buffers from run to run. */
import * as ort from 'onnxruntime-web/webgpu';

/** Names and shapes of the state of the small language model, original and rewritten. */
interface Pair {
  readonly past: string;
  readonly present: string;
  readonly type: 'float32' | 'int64';
  readonly dims: readonly number[];
}

function pairsOf(session: ort.InferenceSession): Pair[] {
  return session.inputMetadata.flatMap((input) => {
    if (!input.isTensor || !input.name.startsWith('past')) return [];
    const present = input.name.replace('past_key_values', 'present');
    const dims = input.shape.map((size, axis) =>
      typeof size === 'number' && size < 2 ** 31 ? size : axis === 0 ? 1 : 0,
    );
    return [{ past: input.name, present, type: input.type as 'float32', dims }];
  });
}

export class StockSession {
  #state: Record<string, ort.Tensor> = {};
  #position = 0;

  private constructor(
    readonly session: ort.InferenceSession,
    readonly pairs: readonly Pair[],
    readonly maskIsCurrent: boolean,
  ) {}

  static async create(url: string, device: GPUDevice): Promise<StockSession> {
    const base = url.slice(0, url.lastIndexOf('/') + 1);
    const bytes = new Uint8Array(await (await fetch(url)).arrayBuffer());
    const data = ['weights.fp16.bin', `${url.slice(base.length)}.data`].map(async (path) => {
      const response = await fetch(base + path);
      return response.ok ? [{ path, data: new Uint8Array(await response.arrayBuffer()) }] : [];
    });
    const options: ort.InferenceSession.SessionOptions = {
      executionProviders: [
        { name: 'webgpu', device } as ort.InferenceSession.WebGpuExecutionProviderOption,
      ],
      externalData: (await Promise.all(data)).flat(),
      logSeverityLevel: 3,
    };
    // What the outputs are called is known when they are: the session is made twice.
    const probe = await ort.InferenceSession.create(bytes, {
      ...options,
      executionProviders: ['wasm'],
    });
    const pairs = pairsOf(probe);
    await probe.release();
    const onGpu = pairs.filter(({ type }) => type === 'float32').map(({ present }) => present);
    const session = await ort.InferenceSession.create(bytes, {
      ...options,
      preferredOutputLocation: Object.fromEntries(
        onGpu.map((name) => [name, 'gpu-buffer' as const]),
      ),
    });
    return new StockSession(
      session,
      pairs,
      onGpu.some((name) => name.endsWith('.state')),
    );
  }

  async reset(): Promise<void> {
    for (const tensor of Object.values(this.#state)) tensor.dispose();
    this.#state = {};
    this.#position = 0;
    for (const { past, type, dims } of this.pairs) {
      const size = dims.reduce((a, b) => a * b, 1);
      this.#state[past] =
        type === 'int64'
          ? new ort.Tensor('int64', new BigInt64Array(size), dims)
          : new ort.Tensor('float32', new Float32Array(size), dims);
    }
  }

  async prefill(ids: readonly number[], { chunk }: { chunk: number }): Promise<void> {
    for (let at = 0; at < ids.length; at += chunk)
      await this.step(ids.slice(at, at + chunk), at + chunk < ids.length);
  }

  /** @param quiet without the logits, which then are left out of the run as far as onnxruntime-web does so */
  async step(ids: readonly number[], quiet = false): Promise<void> {
    this.#position += ids.length;
    const length = this.maskIsCurrent ? ids.length : this.#position;
    const outputs = this.pairs.map(({ present }) => present);
    const results = await this.session.run(
      {
        input_ids: new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]),
        attention_mask: new ort.Tensor('int64', new BigInt64Array(length).fill(1n), [1, length]),
        ...this.#state,
      },
      quiet ? outputs : [...outputs, 'logits'],
    );
    for (const { past, present } of this.pairs) {
      this.#state[past].dispose();
      this.#state[past] = results[present];
    }
  }

  async dispose(): Promise<void> {
    await this.reset();
    await this.session.release();
  }
}
