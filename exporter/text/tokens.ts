import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { FlaError } from '../../ops/error.js';

/** Text to token ids and back. */
export interface Tokenizer {
  encode(text: string): number[];
  /** The same without the special tokens that stand around a text. */
  encodePiece(text: string): number[];
  decode(ids: readonly number[]): string;
  /** The ids at which generation ends: special tokens named like an end of text. */
  readonly endIds: ReadonlySet<number>;
}

/**
 * A tokenizer out of the contents of tokenizer.json and tokenizer_config.json.
 *
 * @param what how errors name it
 * @throws FlaError `invalid_argument` when it is no tokenizer
 */
export function makeTokenizer(json: object, config: object, what: string): Tokenizer {
  let inner: HuggingFaceTokenizer;
  try {
    inner = new HuggingFaceTokenizer(json, config);
  } catch (error) {
    throw new FlaError(
      'invalid_argument',
      `${what}: is no tokenizer.json: ${(error as Error).message}`,
      { cause: error },
    );
  }
  const ends = [...inner.get_added_tokens_decoder()]
    .filter(([, token]) => token.special && /end|eos|eot|^<\/s>$/i.test(token.content))
    .map(([id]) => id);
  return {
    encode: (text) => inner.encode(text).ids,
    encodePiece: (text) => inner.encode(text, { add_special_tokens: false }).ids,
    decode: (ids) =>
      ids.length === 0
        ? ''
        : inner.decode([...ids], {
            skip_special_tokens: true,
            clean_up_tokenization_spaces: false,
          }),
    endIds: new Set(ends),
  };
}

/** The object in a JSON text. @throws FlaError `invalid_argument` naming the file */
export function parseJson(text: string, what: string): object {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new FlaError('invalid_argument', `${what}: is no JSON: ${(error as Error).message}`, {
      cause: error,
    });
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value;
  throw new FlaError(
    'invalid_argument',
    `${what}: must hold a JSON object, received ${text.trim().slice(0, 60)}`,
  );
}

/** Turns a stream of ids into text as soon as whole characters are known. */
export class TextStream {
  private readonly pending: number[] = [];
  private shown = '';

  constructor(private readonly tokenizer: Tokenizer) {}

  /** Adds one id and returns the text that became final. */
  push(id: number): string {
    this.pending.push(id);
    const text = this.tokenizer.decode(this.pending);
    if (text.endsWith('\ufffd')) return ''; // the bytes of a character are still coming
    const fresh = text.slice(this.shown.length);
    this.shown = text;
    // Decoders look at neighbours at most; a few ids of context are kept, the rest is let go.
    if (this.pending.length > 32) {
      this.pending.splice(0, this.pending.length - 4);
      this.shown = this.tokenizer.decode(this.pending);
    }
    return fresh;
  }

  /** What is left when the stream ends. */
  end(): string {
    return this.tokenizer.decode(this.pending).slice(this.shown.length);
  }
}
