import type { Io } from '../../exporter/cli/io.js';

/** Where the demo prints. */
export const io: Io = {
  out: (text) => process.stdout.write(text),
  err: (text) => process.stderr.write(text),
  signal: new AbortController().signal,
  interactive: process.stderr.isTTY === true,
};

export function title(text: string): void {
  io.out(`\n== ${text}\n`);
}

export function say(text: string): void {
  io.out(`${text}\n`);
}
