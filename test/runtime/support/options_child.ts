// Creates a session with the options of its first argument, then runs it with those of its second, once well and once with
// shapes that fail: ONNX Runtime's log goes to stderr.
import { binaryModel } from './models.js';
import { createSession, failureOf, floats } from './session.js';

const [options, runOptions] = process.argv.slice(2).map((text) => JSON.parse(text));
const session = await createSession(binaryModel('Add', 'float32'), options);
const rows = (count: number) => floats(new Array(4 * count).fill(1), [count, 4]);
await session.run({ x: rows(2), y: rows(2) }, runOptions);
await failureOf(session.run({ x: rows(2), y: rows(3) }, runOptions));
await session.release();
