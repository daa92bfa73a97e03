// In Node 20 a worker thread's entry cannot be TypeScript, whatever its execArgv.
import { register } from 'tsx/esm/api';

register();
await import('./worker.ts');
