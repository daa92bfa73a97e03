import Table from 'cli-table3';

const GAP = 2; // blanks between columns
const NARROWEST = 5;
const BREAKS = /(?<=[ /_,+-]|\.(?!\d))/; // a line may end behind these, but not inside a decimal number

/** A table of at most `width` characters a line, as far as that is possible; long cells are wrapped. */
export function formatTable(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  width: number,
): string {
  const named = head.some((name) => name !== '');
  const cells = named ? [head, ...rows] : rows;
  const columns = head.map((_, i) => cells.map((row) => row[i]!));
  const widths = shrink(
    columns.map((column) => longest(column)),
    columns.map((column) => longest(column.flatMap((c) => c.split(BREAKS)))),
    width - GAP * (head.length - 1),
  );
  const wrapped = cells.map((row) => row.map((cell, i) => wrap(cell, widths[i]!)));
  const table = new Table({
    head: named ? wrapped.shift()! : [],
    chars: FRAME,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0, compact: true },
  });
  table.push(...wrapped);
  return table.toString().replace(/ +$/gm, '');
}

const FRAME = {
  ...{ top: '─', 'top-mid': '──', 'top-left': '', 'top-right': '' },
  ...{ bottom: '─', 'bottom-mid': '──', 'bottom-left': '', 'bottom-right': '' },
  ...{ mid: '─', 'mid-mid': '──', 'left-mid': '', 'right-mid': '' },
  ...{ left: '', middle: ' '.repeat(GAP), right: '' },
};

function longest(texts: readonly string[]): number {
  return Math.max(1, ...texts.map((t) => t.trimEnd().length));
}

/** Takes from the widest columns until all of them fit into `room`; words stay whole as long as that is enough. */
function shrink(natural: readonly number[], words: readonly number[], room: number): number[] {
  const widths = [...natural];
  const take = (floors: readonly number[]) => {
    for (let excess = widths.reduce((a, b) => a + b, 0) - room; excess > 0; excess--) {
      const free = widths.map((w, i) => (w > floors[i]! ? w : 0));
      const widest = free.indexOf(Math.max(...free));
      if (free[widest] === 0) return;
      widths[widest]!--;
    }
  };
  take(words);
  take(words.map(() => NARROWEST));
  return widths;
}

/** Breaks text into lines of at most `width` characters: at blanks, else behind punctuation of paths, else anywhere. */
export function wrap(text: string, width: number): string {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(BREAKS)) {
    if (line && (line + word).trimEnd().length > width) {
      lines.push(line.trimEnd());
      line = '';
    }
    let rest = word;
    for (; rest.trimEnd().length > width; rest = rest.slice(width))
      lines.push(rest.slice(0, width));
    line += rest;
  }
  return [...lines, line.trimEnd()].join('\n');
}
