import fs from 'node:fs';
import { expect, test } from 'vitest';
import { statePairs } from '../../../exporter/text/state_pairs.js';
import { loadTokenizer, TextStream } from '../../../exporter/text/tokenizer.js';
import { TINYLM } from '../../support/models.js';

test('text survives encoding and decoding', () => {
  const tokenizer = loadTokenizer(TINYLM.tokenizer);
  const text = fs.readFileSync(TINYLM.text, 'utf8').slice(0, 20_000);
  const ids = tokenizer.encode(text);
  expect(ids.length).toBeLessThan(text.length / 2);
  expect(tokenizer.decode(ids)).toBe(text);
  expect([...tokenizer.endIds]).toEqual([0]);
});

test('a stream shows whole characters only, and all of them', () => {
  const tokenizer = loadTokenizer(TINYLM.tokenizer);
  const text = `Fee: 12 €, 漢字, ${'a long tail of words '.repeat(10)}end é`;
  const stream = new TextStream(tokenizer);
  const parts = tokenizer.encode(text).map((id) => stream.push(id));
  expect(parts.join('') + stream.end()).toBe(text);
  expect(parts.join('')).not.toContain('\ufffd');
});

test('a text that ends before it begins is empty', () => {
  const tokenizer = loadTokenizer(TINYLM.tokenizer);
  expect(tokenizer.decode([])).toBe('');
  expect(new TextStream(tokenizer).end()).toBe('');
});

test('pasts are paired with presents by name', () => {
  expect(
    statePairs(
      ['input_ids', 'past_key_values.0.key', 'past_state_1', 'past_lonely'],
      ['logits', 'present.0.key', 'present_state_1'],
    ),
  ).toEqual([
    { past: 'past_key_values.0.key', present: 'present.0.key' },
    { past: 'past_state_1', present: 'present_state_1' },
  ]);
});
