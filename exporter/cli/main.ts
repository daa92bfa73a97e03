#!/usr/bin/env node
import { CommanderError } from 'commander';
import { FlaError } from '../../ops/error.js';
import { ConditionsMet } from './exit.js';
import { processIo } from './io.js';
import { buildProgram } from './program.js';

const EXIT_INTERRUPTED = 130; // 128 + SIGINT, as shells have it

const interrupt = new AbortController();
process.on('SIGINT', () => interrupt.abort(new FlaError('aborted', 'interrupted')));
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  process.exit(error.code === 'EPIPE' ? 0 : 1); // the reader has had enough
});

const io = processIo(interrupt.signal);

const GRACE_MS = 500; // for work that listens to take its unfinished files away

/** Rejects a moment after the user interrupts, so that nobody waits for work that does not listen. */
const interrupted = new Promise<never>((_, reject) => {
  io.signal.addEventListener('abort', () => {
    setTimeout(() => reject(io.signal.reason), GRACE_MS);
  });
});

function isVerbose(): boolean {
  return process.argv.includes('--verbose') || Boolean(process.env.DEBUG);
}

function fail(error: unknown): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return 0; // --help, --version
    if (error.code === 'commander.help') return 1; // no command: the help is already there
  }
  const message = error instanceof Error ? error.message : String(error);
  const line = message
    .replace(/^error: /, '')
    .replace(/\s+/g, ' ')
    .trim();
  io.err(`onnx-fla: ${line}\n`);
  if (error instanceof ConditionsMet) return ConditionsMet.exitCode;
  if (isVerbose() && error instanceof Error) io.err(`${error.stack}\n`);
  return io.signal.aborted ? EXIT_INTERRUPTED : 1;
}

const code = await Promise.race([buildProgram(io).parseAsync(process.argv), interrupted]).then(
  () => 0,
  fail,
);
// Output may still be on its way to a pipe; the native side may hold threads that keep us alive.
process.stdout.write('', () => process.exit(code));
