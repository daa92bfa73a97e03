/** What the benches on the CPU share. */
import { median } from '../results.js';

let seed = 1;
/** Uniform numbers in [low, high), fresh for each tensor; past a million of them they repeat. */
export function random(n: number, low: number, high: number): Float32Array {
  const out = new Float32Array(n);
  const block = Math.min(n, 1 << 20);
  seed += 0x9e3779b9;
  let s = seed >>> 0;
  for (let i = 0; i < block; i++) {
    s = (Math.imul(s, 1664525) + 1013904223) >>> 0;
    out[i] = low + ((high - low) * s) / 2 ** 32;
  }
  for (let done = block; done < n; done *= 2) out.copyWithin(done, 0, Math.min(done, n - done));
  return out;
}

/** Bytes per second of a plain copy (read + written), median of several, arrays far above any cache. */
export function copyBandwidth(): number {
  const n = 1 << 27;
  const from = new Uint8Array(n).fill(1);
  const to = new Uint8Array(n).fill(2);
  const rates: number[] = [];
  for (let i = 0; i < 7; i++) {
    const t0 = performance.now();
    to.set(from);
    rates.push((2 * n) / ((performance.now() - t0) / 1000));
  }
  return median(rates);
}
