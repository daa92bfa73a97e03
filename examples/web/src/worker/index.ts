/** The worker: everything that takes long, one thing at a time. */
import type { Failure, FromWorker, Method, Methods, ToWorker } from '../protocol.js';
import { forgetReaders, open, rewrite } from './desk.js';
import { fetchSample } from './files.js';
import { generate } from './generate.js';
import { measure } from './length.js';
import { runBoth } from './run.js';
import { deviceFacts } from './runtime.js';

type Handlers = {
  [M in Method]: (
    args: Methods[M]['args'],
    tell: (event: Methods[M]['event']) => void,
    signal: AbortSignal,
  ) => Promise<Methods[M]['result']>;
};

const handlers: Handlers = {
  device: deviceFacts,
  open,
  sample: async (_, tell, signal) => open(await fetchSample(tell), tell, signal),
  rewrite,
  generate,
  length: measure,
  run: runBoth,
};

/** Calls that are under way or wait for their turn. */
const pending = new Map<number, AbortController>();
let last: Promise<unknown> = Promise.resolve();

function send(message: FromWorker): void {
  postMessage(message);
}

async function failureOf(error: unknown, signal: AbortSignal): Promise<Failure> {
  if (signal.aborted) return { code: 'aborted', message: 'Stopped.' };
  const { code = 'runtime', message } = error as Partial<Failure> & Error;
  // Sessions on a GPU that is gone are made again the next time.
  if (code === 'device_lost') await forgetReaders().catch(() => {});
  return { code: String(code), message: message ?? String(error) };
}

async function carryOut(id: number, method: Method, args: unknown): Promise<void> {
  const controller = pending.get(id)!;
  try {
    controller.signal.throwIfAborted();
    const handler = handlers[method] as (
      args: unknown,
      tell: (event: unknown) => void,
      signal: AbortSignal,
    ) => Promise<unknown>;
    const result = await handler(args, (event) => send({ id, event }), controller.signal);
    send({ id, result });
  } catch (error) {
    send({ id, failure: await failureOf(error, controller.signal) });
  } finally {
    pending.delete(id);
  }
}

globalThis.onmessage = ({ data }: MessageEvent<ToWorker>) => {
  if ('stop' in data) {
    pending.get(data.id)?.abort();
    return;
  }
  pending.set(data.id, new AbortController());
  last = last.then(() => carryOut(data.id, data.method, data.args));
};
