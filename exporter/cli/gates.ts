import { FlaError } from '../../ops/error.js';
import type { Gate, LayerGates, RewriteOptions } from '../index.js';
import { readText } from '../text/read_text.js';

type Json = Record<string, unknown>;

/**
 * Reads gates from JSON: by layer number, or `default` for all others, `{decay?, beta?, temperature?}`;
 * a gate is `{"constant": number | [per head]}` or `{"weight": [hidden][n], "bias"?: [n]}`.
 *
 * @throws FlaError `io` or `invalid_argument`, naming the file and the entry
 */
export function loadGates(file: string): NonNullable<RewriteOptions['gates']> {
  let json: unknown;
  try {
    json = JSON.parse(readText(file));
  } catch (error) {
    if (error instanceof FlaError) throw error;
    throw new FlaError('invalid_argument', `${file}: is no JSON: ${(error as Error).message}`);
  }
  const fail = (where: string, expected: string, received: unknown): never => {
    const got = JSON.stringify(received)?.slice(0, 60) ?? 'nothing';
    throw new FlaError(
      'invalid_argument',
      `${file}: ${where} must be ${expected}, received ${got}`,
    );
  };
  const isObject = (v: unknown): v is Json =>
    typeof v === 'object' && v !== null && !Array.isArray(v);
  const isNumbers = (v: unknown): v is number[] => Array.isArray(v) && v.every(Number.isFinite);

  const gate = (value: unknown, where: string): Gate => {
    if (!isObject(value)) return fail(where, 'an object', value);
    const { constant, weight, bias } = value;
    if (constant !== undefined) {
      if (typeof constant === 'number' || isNumbers(constant)) return { constant };
      return fail(`${where}.constant`, 'a number or a list of numbers', constant);
    }
    const flat = Array.isArray(weight) ? weight.flat() : weight;
    if (!isNumbers(flat)) return fail(`${where}.weight`, 'rows of numbers [hidden][n]', weight);
    if (bias !== undefined && !isNumbers(bias))
      return fail(`${where}.bias`, 'a list of numbers', bias);
    return { weight: Float32Array.from(flat), ...(bias && { bias: Float32Array.from(bias) }) };
  };
  const layer = (value: unknown, where: string): LayerGates => {
    if (!isObject(value)) return fail(where, 'an object', value);
    const { decay, beta, temperature, ...unknown } = value;
    const [extra] = Object.keys(unknown);
    if (extra) fail(where, "made of 'decay', 'beta' and 'temperature'", extra);
    if (temperature !== undefined && typeof temperature !== 'number') {
      fail(`${where}.temperature`, 'a number', temperature);
    }
    return {
      ...(decay !== undefined && { decay: gate(decay, `${where}.decay`) }),
      ...(beta !== undefined && { beta: gate(beta, `${where}.beta`) }),
      ...(temperature !== undefined && { temperature: temperature as number }),
    };
  };

  if (!isObject(json)) return fail('gates', 'an object', json);
  return Object.fromEntries(
    Object.entries(json).map(([key, value]) => {
      if (key !== 'default' && !/^\d+$/.test(key)) fail('keys', "layer numbers or 'default'", key);
      return [key, layer(value, `'${key}'`)];
    }),
  ) as NonNullable<RewriteOptions['gates']>;
}
