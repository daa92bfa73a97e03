// Runs sessions of the fla backend in a worker thread: { cycles } of create, run, release; then answers with what it saw.
import { parentPort, workerData } from 'node:worker_threads';
import { slowModel } from './models.js';
import { createSession, floats } from './session.js';

const { cycles, size, depth } = workerData as { cycles: number; size: number; depth: number };
const x = floats(new Array(size * size).fill(1), [size, size]);
const results: number[] = [];
for (let i = 0; i < cycles; i++) {
  const session = await createSession(slowModel(size, depth), { intraOpNumThreads: 1 });
  parentPort!.postMessage({ running: i });
  const { y } = await session.run({ x });
  results.push((y.data as Float32Array)[0]);
  if (i % 2 === 0) await session.release();
}
parentPort!.postMessage({ results });
