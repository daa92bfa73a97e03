// Runs LinearAttention in a worker thread: { cycles } of create, run twice at once, dispose; then answers with its errors.
import { parentPort, workerData } from 'node:worker_threads';
import { errorsOf } from './attention.js';

const { cycles, seed } = workerData as { cycles: number; seed: number };
const errors: number[] = [];
for (let i = 0; i < cycles; i++) errors.push(...(await errorsOf(seed + i)));
parentPort!.postMessage({ errors });
