import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { describe, expect, it } from 'vitest';

const CHILD = new URL('function_memory_child.ts', import.meta.url).pathname;

interface Measurement {
  inputs: number;
  peak: number;
  ms: number;
}

function measure(T: number, ...args: string[]): Measurement {
  const output = execFileSync(process.execPath, ['--import', 'tsx', CHILD, `${T}`, ...args]);
  return JSON.parse(output.toString()) as Measurement;
}

// The peak is read from Linux's /proc.
describe.skipIf(!existsSync('/proc/self/status'))('memory of a standard body', () => {
  it.each([
    ['linear', 'head'],
    ['gated', 'key'],
    ['gated_delta', 'head'],
    ['gated_delta', 'key'],
  ])('%s, decay per %s: linear in T, a few copies of the inputs', (rule, decayKind) => {
    const [short, long] = [8192, 16384].map((T) => measure(T, rule, decayKind, 'standard'));
    // Squared memory would quadruple: the scores of 8 heads alone are 8.6 GB at 16384 tokens.
    expect(long.peak / short.peak).toBeLessThan(2.6);
    expect(long.peak).toBeLessThan(3 * long.inputs);
    console.log(
      `${rule}, decay per ${decayKind}, T=16384 H=8 d=64: ${long.peak >> 20} MB over inputs of ${long.inputs >> 20} MB, ${long.ms} ms`,
    );
  });
});
