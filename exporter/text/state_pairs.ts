/** An input that carries state and the output that becomes its next value. */
export interface StateNames {
  past: string;
  present: string;
}

/** Is it, by its name, a cache of an encoder's keys or values? */
export function isCrossCache(past: string): boolean {
  return /past|cache/i.test(past) && /encoder|cross/i.test(past);
}

/** The output that becomes the next value of an input. */
export function presentOf(past: string, outputs: ReadonlySet<string>): string | undefined {
  return [past.replace('past_key_values', 'present'), past.replace('past', 'present')].find(
    (name) => name !== past && outputs.has(name),
  );
}

/**
 * Pairs `past...` inputs with `present...` outputs by name: `past_key_values.0.key` with
 * `present.0.key` or `present_key_values.0.key`, `past_state_0` with `present_state_0`.
 */
export function statePairs(inputs: readonly string[], outputs: readonly string[]): StateNames[] {
  const known = new Set(outputs);
  return inputs.flatMap((past) => {
    const present = presentOf(past, known);
    return present ? [{ past, present }] : [];
  });
}
