import { processIo } from '../../exporter/cli/io.js';

/** Where the demo prints. */
export const io = processIo(new AbortController().signal);

export function title(text: string): void {
  io.out(`\n== ${text}\n`);
}

export function say(text: string): void {
  io.out(`${text}\n`);
}
