/** One byte or bit changed; at times a stretch is cut out, or the end is missing. */
export function mutate(bytes: Uint8Array, below: (n: number) => number): Uint8Array {
  const copy = Uint8Array.from(bytes);
  const at = below(copy.length);
  copy[at] = below(2) ? below(256) : copy[at]! ^ (1 << below(8));
  const cut = below(10);
  if (cut === 0) return copy.subarray(0, below(copy.length));
  if (cut > 1) return copy;
  const from = below(copy.length);
  return Uint8Array.from([...copy.subarray(0, from), ...copy.subarray(from + below(40))]);
}
