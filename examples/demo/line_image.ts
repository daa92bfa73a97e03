import fs from 'node:fs';
import path from 'node:path';
import { createCanvas, GlobalFonts } from '@napi-rs/canvas';
import { FONT } from './paths.js';

const HEIGHT = 48; // pixels, what the recogniser takes
const MARGIN = 16;

export interface DrawOptions {
  /** A TrueType file; default DejaVu Sans. */
  font?: string;
  /** Pixels; default 28. */
  size?: number;
  /** White is added on the right up to this width. */
  width?: number;
}

/** A line of text as a picture. */
export interface LineImage {
  width: number;
  height: number;
  /** [1, 3, height, width], blue, green, red, each (x/255 - 0.5) / 0.5, as PP-OCR takes it. */
  pixels: Float32Array;
  png: Buffer;
}

/** Draws a line of text, black on white. */
export function drawLine(
  text: string,
  { font = FONT, size = 28, width: least = 0 }: DrawOptions = {},
): LineImage {
  const family = path.basename(font, '.ttf');
  if (!GlobalFonts.has(family)) GlobalFonts.registerFromPath(font, family);
  const css = `${size}px "${family}"`;
  const ruler = createCanvas(1, 1).getContext('2d');
  ruler.font = css;
  const width = Math.max(Math.ceil(ruler.measureText(text).width) + 2 * MARGIN, least);
  const canvas = createCanvas(width, HEIGHT);
  const context = canvas.getContext('2d');
  context.fillStyle = 'white';
  context.fillRect(0, 0, width, HEIGHT);
  context.fillStyle = 'black';
  context.font = css;
  context.textBaseline = 'middle';
  context.fillText(text, MARGIN, HEIGHT / 2);
  const rgba = context.getImageData(0, 0, width, HEIGHT).data;
  return { width, height: HEIGHT, pixels: toPixels(rgba), png: canvas.toBuffer('image/png') };
}

function toPixels(rgba: Uint8ClampedArray): Float32Array {
  const area = rgba.length / 4;
  const pixels = new Float32Array(3 * area);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < area; i++) {
      pixels[channel * area + i] = (rgba[i * 4 + 2 - channel]! / 255 - 0.5) / 0.5;
    }
  }
  return pixels;
}

/** The recogniser's alphabet: a blank, the characters of its list, a space. */
export function loadAlphabet(file: string): string[] {
  const keys = fs.readFileSync(file, 'utf8').split(/\r?\n/);
  if (keys.at(-1) === '') keys.pop();
  return ['', ...keys, ' '];
}

/**
 * Reads the recogniser's answer the simple way (greedy CTC): the likeliest class at every step,
 * repetitions joined, blanks left out.
 *
 * @param probabilities [steps, classes], row-major
 */
export function decodeCtc(probabilities: Float32Array, alphabet: readonly string[]): string {
  const classes = alphabet.length;
  let text = '';
  let last = 0;
  for (let at = 0; at < probabilities.length; at += classes) {
    let best = 0;
    for (let c = 1; c < classes; c++) {
      if (probabilities[at + c]! > probabilities[at + best]!) best = c;
    }
    if (best !== last) text += alphabet[best];
    last = best;
  }
  return text.trim();
}
