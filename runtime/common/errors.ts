import { FlaError, type FlaErrorCode } from '../../ops/error.js';

/** OrtErrorCode -> FlaErrorCode; whatever is not here is `runtime`. */
const CODES: Record<number, FlaErrorCode> = {
  2: 'invalid_argument', // INVALID_ARGUMENT
  3: 'not_found', // NO_SUCHFILE
  4: 'invalid_model', // NO_MODEL
  7: 'invalid_model', // INVALID_PROTOBUF
  9: 'unsupported', // NOT_IMPLEMENTED
  10: 'invalid_model', // INVALID_GRAPH
};

/** `Non-zero status code returned while running X node. Name:'n' Status Message: text` -> `text (node n)`. */
const NODE_FAILURE = /^.*?while running \S+ node\. Name:'([^']*)' Status Message: /s;

/** What ONNX Runtime puts before its text: a place in its own sources, the status again. */
const NOISE = [
  /^.*? ERROR_CODE: \d+, ERROR_MESSAGE: /s,
  /\/\S*onnxruntime\/\S+\.(?:cc|h):\d+ .*?\)(?: const)? /gs,
  /\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : /g,
];

/** Both wordings of a preallocated output that does not fit, older and newer. */
const OUTPUT_SHAPE =
  /output '(?<name>[^']*)' of node .* has shape \{(?<received>[\d,]*)\} but the computed output shape for this run is \{(?<expected>[\d,]*)\}|OrtValue shape verification failed. Current shape:\{(?<received2>[\d,]*)\} Requested shape:\{(?<expected2>[\d,]*)\}/;

/** ONNX Runtime's message without its wrapping, so that `op: argument must be expected, received actual` comes first. */
export function cleanMessage(message: string): string {
  const node = NODE_FAILURE.exec(message)?.[1];
  const text = NOISE.reduce(
    (rest, noise) => rest.replace(noise, ''),
    message.replace(NODE_FAILURE, ''),
  ).replace(/^[\s:]+|\s+$/g, '');
  return node ? `${text} (node ${node})` : text;
}

function outputShapeError(message: string, cause: unknown): FlaError | undefined {
  const match = OUTPUT_SHAPE.exec(message)?.groups;
  if (!match) return undefined;
  const output = match.name ? `output '${match.name}'` : 'a preallocated output';
  return new FlaError(
    'invalid_shape',
    `Session: ${output} must be [${match.expected ?? match.expected2}], received [${match.received ?? match.received2}]`,
    { cause },
  );
}

/** The addon says the code beside the message, onnxruntime-web in it. */
function ortCode({ ortCode, message }: Error & { ortCode?: number }): number {
  return ortCode ?? Number(/ERROR_CODE: (\d+)/.exec(message)?.[1] ?? 0);
}

/** What ONNX Runtime threw, as a FlaError; the original stays as its `cause`. */
export function toFlaError(thrown: unknown): FlaError {
  if (thrown instanceof FlaError) return thrown;
  const error = thrown instanceof Error ? thrown : new Error(String(thrown));
  const shape = outputShapeError(error.message, error);
  if (shape) return shape;
  return new FlaError(CODES[ortCode(error)] ?? 'runtime', cleanMessage(error.message), {
    cause: thrown,
  });
}
