/**
 * What went wrong, for programs; the message is for people.
 *
 * - `invalid_attribute`, `invalid_type`, `invalid_shape`, `missing_input`, `unexpected_input`: a call that breaks an op's schema
 * - `invalid_argument`: an option of a function or of the command line
 * - `invalid_model`: a file that is no valid ONNX model
 * - `unsupported`: valid, but not something this version can do
 * - `not_found`: a file, library or name that is not there
 * - `io`: reading or writing failed
 * - `runtime`: ONNX Runtime or a kernel refused or failed
 * - `device_lost`: the GPU is gone; sessions on it are of no further use, new ones can be made
 * - `disposed`: a session or tensor was used after it was released
 * - `aborted`: the caller interrupted it
 */
export type FlaErrorCode =
  | 'invalid_attribute'
  | 'invalid_type'
  | 'invalid_shape'
  | 'missing_input'
  | 'unexpected_input'
  | 'invalid_argument'
  | 'invalid_model'
  | 'unsupported'
  | 'not_found'
  | 'io'
  | 'runtime'
  | 'device_lost'
  | 'disposed'
  | 'aborted';

/** Names in a model may hold anything; a message is one line that a terminal can show. */
function printable(message: string): string {
  return message.replace(
    /[\p{Cc}\u2028\u2029]/gu,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** The one error class of this package. Messages read `<op or file>: <what> must be <expected>, received <actual>`, in one line. */
export class FlaError extends Error {
  override readonly name = 'FlaError';

  constructor(
    readonly code: FlaErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(printable(message), options);
  }
}
