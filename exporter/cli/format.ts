/** Bytes for people, in powers of 1024. */
export function formatBytes(bytes: number | null): string {
  if (bytes === null) return '-';
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  const power = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), units.length - 1);
  const value = bytes / 1024 ** power;
  return `${power === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[power]}`;
}

/** A number with `digits` significant ones; very small and very large ones in powers of ten. */
export function formatNumber(value: number | null, digits = 4): string {
  if (value === null) return '-';
  return Number(value.toPrecision(digits)).toString();
}

/** Milliseconds for people. */
export function formatMs(ms: number | null): string {
  if (ms === null) return '-';
  return ms >= 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${formatNumber(ms, 3)} ms`;
}
