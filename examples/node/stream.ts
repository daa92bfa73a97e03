// Reads a text of any length with constant memory, then goes on token by token:
//   node stream.js linear.onnx tokenizer.json book.txt
import fs from 'node:fs';
import { Tokenizer } from '@huggingface/tokenizers';
import { StatefulSession } from 'onnx-fla/node';

const [model, tokenizerFile, textFile] = process.argv.slice(2) as [string, string, string];
const tokenizer = new Tokenizer(JSON.parse(fs.readFileSync(tokenizerFile, 'utf8')), {});
const session = await StatefulSession.create(model);

const { ids } = tokenizer.encode(fs.readFileSync(textFile, 'utf8'));
let { logits } = await session.prefill(ids, { chunk: 512 });
console.log(`${session.position} tokens read, ${session.stateBytes} bytes of state`);

const next: number[] = [];
while (next.length < 20) {
  const scores = logits!.data as Float32Array; // of the last position
  next.push(scores.indexOf(scores.reduce((a, b) => Math.max(a, b))));
  ({ logits } = await session.step(next.at(-1)!));
}
console.log(tokenizer.decode(next));
await session.dispose();
