import * as v from 'valibot';
import { FlaError, type FlaErrorCode } from '../ops/error.js';

/**
 * A value that must have the shape of a schema.
 *
 * @throws FlaError of that code naming the first entry that has not, `what` before it
 */
export function checkShape<T extends v.GenericSchema>(
  schema: T,
  value: unknown,
  what: string,
  code: FlaErrorCode = 'invalid_argument',
): v.InferOutput<T> {
  const result = v.safeParse(schema, value, { abortEarly: true });
  if (result.success) return result.output;
  const [issue] = result.issues;
  const where = v.getDotPath(issue) ?? '';
  throw new FlaError(
    code,
    `${what}${where && `: ${where}`} must be ${issue.expected ?? issue.message}, received ${issue.received}`,
  );
}
