// In Node 20 a worker thread's entry cannot be TypeScript, whatever its execArgv: workerData.script names the real one.
import { workerData } from 'node:worker_threads';
import { register } from 'tsx/esm/api';

register();
await import(workerData.script);
