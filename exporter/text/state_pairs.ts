/** An input that carries state and the output that becomes its next value. */
export interface StateNames {
  past: string;
  present: string;
}

/**
 * Pairs `past...` inputs with `present...` outputs by name: `past_key_values.0.key` with
 * `present.0.key` or `present_key_values.0.key`, `past_state_0` with `present_state_0`.
 */
export function statePairs(inputs: readonly string[], outputs: readonly string[]): StateNames[] {
  const known = new Set(outputs);
  return inputs.flatMap((past) => {
    const present = [
      past.replace('past_key_values', 'present'),
      past.replace('past', 'present'),
    ].find((name) => name !== past && known.has(name));
    return present ? [{ past, present }] : [];
  });
}
