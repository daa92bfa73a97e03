/** A command did its work, and what it found is to be a failure by the caller's own conditions. */
export class ConditionsMet extends Error {
  static readonly exitCode = 2;
}
