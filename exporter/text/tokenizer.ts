import fs from 'node:fs';
import { readText } from './read_text.js';
import { makeTokenizer, parseJson, type Tokenizer } from './tokens.js';

export { TextStream, type Tokenizer } from './tokens.js';

/**
 * Reads a tokenizer.json (and tokenizer_config.json beside it, when there is one).
 *
 * @throws FlaError `io` when it cannot be read, `invalid_argument` when it is no tokenizer
 */
export function loadTokenizer(file: string): Tokenizer {
  const read = (name: string) => parseJson(readText(name), name);
  const json = read(file);
  const configFile = file.replace(/tokenizer\.json$/, 'tokenizer_config.json');
  const config = configFile !== file && fs.existsSync(configFile) ? read(configFile) : {};
  return makeTokenizer(json, config, file);
}
