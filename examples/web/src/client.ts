import type { FromWorker, Method, Methods, ToWorker } from './protocol.js';

/** What went wrong in the worker, in words. */
export class WorkerError extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

interface Waiting {
  event(event: unknown): void;
  resolve(result: unknown): void;
  reject(error: Error): void;
}

const worker = new Worker(new URL('./worker/index.ts', import.meta.url), { type: 'module' });
const waiting = new Map<number, Waiting>();
let last = 0;

worker.onmessage = ({ data }: MessageEvent<FromWorker>) => {
  const call = waiting.get(data.id);
  if (!call) return;
  if ('event' in data) {
    call.event(data.event);
    return;
  }
  waiting.delete(data.id);
  if ('failure' in data) call.reject(new WorkerError(data.failure.code, data.failure.message));
  else call.resolve(data.result);
};

worker.onerror = (event) => {
  const error = new WorkerError('runtime', event.message || 'The worker could not be started');
  for (const call of waiting.values()) call.reject(error);
  waiting.clear();
};

/** Calls a method of the worker. An aborted signal makes it stop, and the call fail with code `aborted`. */
export function call<M extends Method>(
  method: M,
  args: Methods[M]['args'],
  {
    onEvent,
    signal,
    transfer = [],
  }: {
    onEvent?: (event: Methods[M]['event']) => void;
    signal?: AbortSignal;
    transfer?: Transferable[];
  } = {},
): Promise<Methods[M]['result']> {
  const id = ++last;
  const send = (message: ToWorker, list: Transferable[] = []) => worker.postMessage(message, list);
  signal?.addEventListener('abort', () => send({ id, stop: true }), { once: true });
  return new Promise<unknown>((resolve, reject) => {
    waiting.set(id, { event: (event) => onEvent?.(event as never), resolve, reject });
    send({ id, method, args }, transfer);
  }) as Promise<Methods[M]['result']>;
}
