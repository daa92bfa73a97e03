import { FlaError } from '../../../ops/error.js';
import { namingFile } from '../../compare/session.js';
import { addMemoryTokens, type Model } from '../../index.js';
import { type Io, printJson } from '../io.js';
import { optionOf } from '../options.js';
import { loadMatrix } from '../safetensors.js';

/** Options of `rewrite --variant rmt`. */
export interface MemoryFlags {
  memoryTokens?: number;
  segment?: number;
  memory?: string;
}

/** `rewrite --variant rmt`, up to the report: the attention stays, memory tokens come in. */
export async function rewriteMemory(
  model: Model,
  file: string,
  flags: MemoryFlags & Readonly<Record<string, unknown>>,
) {
  const { memoryTokens: tokens, segment, memory, ...others } = flags;
  const [other] = Object.entries(others).filter(([, value]) => value !== undefined);
  if (other) throw new FlaError('invalid_argument', `${optionOf(other[0])} is not for variant rmt`);
  if (tokens === undefined || segment === undefined) {
    throw new FlaError(
      'invalid_argument',
      'variant rmt: give the number of memory vectors with --memory-tokens, and the length of segments with --segment',
    );
  }
  const vectors = memory === undefined ? undefined : loadMatrix(memory, 'memory');
  return namingFile(file, async () => addMemoryTokens(model, { tokens, segment, vectors }));
}

/** Options of rmt that another variant was given. */
export function refuseMemory(flags: MemoryFlags, variant: string): void {
  const [given] = Object.entries(flags).filter(([, value]) => value !== undefined);
  if (given)
    throw new FlaError(
      'invalid_argument',
      `${optionOf(given[0])} is for variant rmt, received ${variant}`,
    );
}

export function printMemory(
  io: Io,
  report: Awaited<ReturnType<typeof rewriteMemory>>,
  output: string | undefined,
  json: boolean | undefined,
): void {
  const { tokens, segment, hidden, state } = report;
  if (json) {
    printJson(io, { variant: 'rmt', ...report });
    return;
  }
  io.out(
    `${tokens} memory vectors of ${hidden}, segments of ${segment} tokens; carried as ${state.past}\n`,
  );
  io.out(output ? `written to ${output}\n` : 'nothing written (dry run)\n');
}
