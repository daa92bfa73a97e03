import fs from 'node:fs';
import path from 'node:path';
import { FlaError } from '../../ops/error.js';
import type { TokenRules } from './generate.js';
import { readJson } from './read_text.js';

/** What a model's configuration says of generation. */
export interface GenerationConfig {
  /** The token that a decoder with an encoder starts from. */
  decoderStart: number | undefined;
  endIds: readonly number[];
  rules: TokenRules;
}

type Json = Record<string, unknown>;

/**
 * What config.json and generation_config.json, which goes before it, say: decoder_start_token_id (bos_token_id where it is absent),
 * eos_token_id, forced_bos_token_id, forced_decoder_ids, suppress_tokens, begin_suppress_tokens. They lie beside the model, or a
 * folder above it where its folder is called onnx.
 *
 * @throws FlaError `invalid_argument` for values that are no tokens, naming the file
 */
export function readGenerationConfig(model: string): GenerationConfig {
  const folder = path.dirname(path.resolve(model));
  const folders = path.basename(folder) === 'onnx' ? [folder, path.dirname(folder)] : [folder];
  const found = (name: string) =>
    folders.map((f) => path.join(f, name)).find((file) => fs.existsSync(file));
  const value = (key: string) => {
    for (const name of ['generation_config.json', 'config.json']) {
      const file = found(name);
      const json = file && (readJson(file) as Json);
      if (json && json[key] !== undefined && json[key] !== null)
        return { file, key, is: json[key] };
    }
    return undefined;
  };
  const start = value('decoder_start_token_id') ?? value('bos_token_id');
  const [suppressed, suppressedFirst] = [value('suppress_tokens'), value('begin_suppress_tokens')];
  return {
    decoderStart: start && tokens(start)[0],
    endIds: tokens(value('eos_token_id')),
    rules: {
      forced: new Map([
        ...tokens(value('forced_bos_token_id')).map((id) => [0, id] as const),
        ...forcedIds(value('forced_decoder_ids')),
      ]),
      suppressed: tokens(suppressed),
      suppressedFirst: tokens(suppressedFirst),
    },
  };
}

interface Value {
  file: string | undefined;
  key: string;
  is: unknown;
}

/** One token, or a list. */
function tokens(value: Value | undefined): number[] {
  if (!value) return [];
  const list = Array.isArray(value.is) ? value.is : [value.is];
  if (list.every(isToken)) return list;
  throw wrong(value, 'a token or a list of tokens');
}

/** `[[place, token]]`, the first new token having place 1; null leaves the choice to the model. */
function forcedIds(value: Value | undefined): [number, number][] {
  if (!value) return [];
  const isPair = (pair: unknown): pair is [number, number | null] =>
    Array.isArray(pair) &&
    pair.length === 2 &&
    isToken(pair[0]) &&
    pair[0] > 0 &&
    (pair[1] === null || isToken(pair[1]));
  if (!Array.isArray(value.is) || !value.is.every(isPair)) {
    throw wrong(value, 'a list of [place from 1, token]');
  }
  return value.is.flatMap(([place, id]): [number, number][] =>
    id === null ? [] : [[place - 1, id]],
  );
}

function isToken(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function wrong({ file, key, is }: Value, expected: string): FlaError {
  const received = JSON.stringify(is).slice(0, 60);
  return new FlaError(
    'invalid_argument',
    `${file}: ${key} must be ${expected}, received ${received}`,
  );
}
