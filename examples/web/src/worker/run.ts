/** Models of any kind, on random input. */
import type { Tensor } from 'onnxruntime-web';
import { seededRandom } from '../../../../exporter/random.js';
import { FlaError } from '../../../../ops/error.js';
import type { FlaSession } from '../../../../runtime/web/exports.js';
import type { Progress, RunFacts, RunRequest } from '../protocol.js';
import { SIDES } from '../protocol.js';
import { modelOf } from './desk.js';
import { openSession } from './readers.js';
import { runtime } from './runtime.js';

/** Timed so often, after one run that compiles. */
const RUNS = 3;

/** Small whole numbers, ones and noise, as the type wants it. */
async function feedsOf(
  session: FlaSession,
  dims: Readonly<Record<string, number>>,
): Promise<Record<string, Tensor>> {
  const { ort } = await runtime();
  const random = seededRandom(1);
  const feeds: Record<string, Tensor> = {};
  for (const { name, type = 'float32', shape = [] } of session.inputs) {
    const sizes = shape.map((size, axis) => {
      if (typeof size === 'number') return size;
      return axis === 0 ? 1 : (dims[size || `axis ${axis} of ${name}`] ?? 1);
    });
    const count = sizes.reduce((a, b) => a * b, 1);
    if (type === 'float32')
      feeds[name] = new ort.Tensor(
        type,
        Float32Array.from({ length: count }, () => random() * 2 - 1),
        sizes,
      );
    else if (type === 'int64')
      feeds[name] = new ort.Tensor(
        type,
        BigInt64Array.from({ length: count }, () =>
          BigInt(/mask/.test(name) ? 1 : Math.floor(random() * 100)),
        ),
        sizes,
      );
    else if (type === 'int32')
      feeds[name] = new ort.Tensor(
        type,
        Int32Array.from({ length: count }, () =>
          /mask/.test(name) ? 1 : Math.floor(random() * 100),
        ),
        sizes,
      );
    else if (type === 'bool')
      feeds[name] = new ort.Tensor(type, new Array(count).fill(true), sizes);
    else
      throw new FlaError(
        'unsupported',
        `Input ${name} holds ${type}, which this page has no random values for.`,
      );
  }
  return feeds;
}

/** ||a - b|| / ||a|| */
function difference(a: Tensor, b: Tensor): number {
  const [x, y] = [a.data, b.data] as unknown as ArrayLike<number>[];
  let [apart, size] = [0, 0];
  for (let i = 0; i < x.length; i++) {
    apart += (Number(x[i]) - Number(y[i])) ** 2;
    size += Number(x[i]) ** 2;
  }
  return Math.sqrt(apart / (size || 1));
}

export async function runBoth(
  { dims }: RunRequest,
  tell: (progress: Progress) => void,
  signal: AbortSignal,
): Promise<RunFacts> {
  const sides: RunFacts['sides'][number][] = [];
  const results: Record<string, Tensor>[] = [];
  for (const side of SIDES) {
    tell({ label: `Running the ${side} model` });
    const model = modelOf(side);
    const { fla, device, memory, options } = await openSession(model);
    const session = await fla.FlaSession.create(model.bytes, options);
    try {
      const feeds = await feedsOf(session, dims);
      const fetches = Object.fromEntries(session.outputNames.map((name) => [name, null]));
      const times: number[] = [];
      let outputs: Record<string, Tensor> = {};
      for (let i = 0; i <= RUNS; i++) {
        signal.throwIfAborted();
        const start = performance.now();
        outputs = await session.run(feeds, fetches);
        if (i > 0) times.push(performance.now() - start);
      }
      times.sort((a, b) => a - b);
      sides.push({ side, ms: times[RUNS >> 1], gpuBytes: memory?.peak });
      results.push(outputs);
    } finally {
      await session.dispose();
      device?.destroy();
    }
  }
  const [original, rewritten] = results;
  const outputs = Object.keys(original)
    .filter((name) => rewritten[name] && original[name].type !== 'string')
    .map((name) => ({
      name,
      shape: original[name].dims.join(' × '),
      difference: difference(original[name], rewritten[name]),
    }));
  return { sides, outputs };
}
