/**
 * What quantisation does to a model, by llama.cpp's report of KL divergences: mean divergence in nats and share of tokens with the
 * same likeliest next token. The names are those of its formats.
 */
export const YARDSTICKS = [
  { name: 'Q8_0', kld: 0.0002, same_top: 0.992 },
  { name: 'Q5_K_M', kld: 0.0047, same_top: 0.965 },
  { name: 'Q3_K_M', kld: 0.051, same_top: 0.896 },
] as const;

/** The least quantisation that differs more from its original, by mean KL divergence; beyond the last, so many times that one. */
export function quantisationLike(kld: number | null): string {
  if (kld === null) return '-';
  const worse = YARDSTICKS.find((y) => kld <= y.kld);
  if (worse) return `< ${worse.name}`;
  const last = YARDSTICKS.at(-1)!;
  return `${Number((kld / last.kld).toPrecision(2))} x ${last.name}`;
}
