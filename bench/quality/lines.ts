/** Rendered lines of text for the recogniser: those that a calibration sees, and others that are measured. */
import fs from 'node:fs';
import path from 'node:path';
import { drawLine, type LineImage } from '../../examples/demo/line_image.js';
import { FONT } from '../../examples/demo/paths.js';
import { arrayData, type CalibrationData, mixedData } from '../../exporter/index.js';
import { Random } from '../../exporter/random.js';
import { TINYLM } from '../../test/support/models.js';

const FONTS = [
  'DejaVuSans',
  'DejaVuSerif',
  'DejaVuSansMono',
  'DejaVuSans-Bold',
  'DejaVuSansCondensed',
  'DejaVuSerif-Italic',
];
const WIDTHS = [320, 480, 640, 800];

type Part = 'fit' | 'measured';

/** Texts of 10 to 44 characters: prose (from either half of a book), and every third made of words, numbers and signs. */
export function lineTexts(part: Part, count: number): string[] {
  const random = new Random(part === 'fit' ? 21 : 22);
  const book = fs.readFileSync(TINYLM.text, 'utf8').replace(/\s+/g, ' ');
  const half = Math.floor(book.length / 2);
  const text = part === 'fit' ? book.slice(0, half) : book.slice(half);
  const prose = () => {
    const start = text.indexOf(' ', random.below(text.length - 100)) + 1;
    return text.slice(start, start + 10 + random.below(34)).trim();
  };
  const number = () => {
    const digits = String(random.below(10 ** (1 + random.below(6))));
    const forms = [
      digits,
      `${digits}.${10 + random.below(90)}`,
      `No. ${digits}`,
      `#${digits}`,
      `(${digits})`,
      `${digits}%`,
      `${1 + random.below(12)}:${10 + random.below(50)}`,
      `+${digits} ${100 + random.below(900)}`,
      `${digits}-${random.below(1000)}`,
      `https://${prose().slice(0, 6).replace(/\W/g, '')}.org/${digits}`,
    ];
    return forms[random.below(forms.length)]!;
  };
  const mixed = () => [prose().slice(0, 12), number(), number(), number()].join(' ').slice(0, 44);
  return Array.from({ length: count }, (_, i) => (i % 3 === 2 ? mixed() : prose()));
}

/** The same as pictures, in several fonts and sizes. */
export function drawnLines(part: Part, count: number, wide: (n: number) => number = (n) => n) {
  const random = new Random(part === 'fit' ? 23 : 24);
  return lineTexts(part, count).map((text): LineImage => {
    const name = FONTS[random.below(FONTS.length)]!;
    const font = path.join(path.dirname(FONT), `${name}.ttf`);
    const options = { font, size: 24 + random.below(8) };
    const image = drawLine(text, options);
    const width = wide(image.width);
    return width > image.width ? drawLine(text, { ...options, width }) : image;
  });
}

/** Lines to calibrate on, filled up to one of a few widths. */
export function lineData(count: number, batch: number): CalibrationData {
  const fill = (n: number) => WIDTHS.find((w) => w >= n) ?? n;
  const lines = drawnLines('fit', count, fill);
  const sources = WIDTHS.map((width) => {
    const these = lines.filter((l) => l.width === width);
    const size = 3 * 48 * width;
    const data = new Float32Array(these.length * size);
    for (const [i, { pixels }] of these.entries()) data.set(pixels, i * size);
    const x = { dims: [these.length, 3, 48, width], data };
    return { x, examples: these.length };
  });
  return mixedData(
    sources
      .filter((s) => s.examples >= 2 * batch)
      .map(({ x, examples }) => ({ data: arrayData(new Map([['x', x]]), { batch }), examples })),
  );
}
