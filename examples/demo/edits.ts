/** Two texts brought side by side: `same` where both have the same character. */
export interface Alignment {
  /** Insertions, deletions and replacements that turn one into the other (Levenshtein distance). */
  distance: number;
  /** Both texts with '·' where the other has more, and '^' under every difference. */
  a: string;
  b: string;
  marks: string;
}

const GAP = '·';

/** Aligns two texts with as few edits as possible. */
export function align(first: string, second: string): Alignment {
  const [x, y] = [[...first], [...second]];
  const cost = editTable(x, y);
  const out: Alignment = { distance: cost[x.length]![y.length]!, a: '', b: '', marks: '' };
  let [i, j] = [x.length, y.length];
  const put = (a: string, b: string) => {
    out.a = a + out.a;
    out.b = b + out.b;
    out.marks = (a === b ? ' ' : '^') + out.marks;
  };
  while (i > 0 || j > 0) {
    const here = cost[i]![j]!;
    const differs = i > 0 && j > 0 && x[i - 1] !== y[j - 1] ? 1 : 0;
    if (i > 0 && j > 0 && here === cost[i - 1]![j - 1]! + differs) put(x[--i]!, y[--j]!);
    else if (i > 0 && here === cost[i - 1]![j]! + 1) put(x[--i]!, GAP);
    else put(GAP, y[--j]!);
  }
  return out;
}

/** cost[i][j] = edits between the first i characters of x and the first j of y. */
function editTable(x: readonly string[], y: readonly string[]): number[][] {
  const cost = [Array.from({ length: y.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= x.length; i++) {
    const row = [i];
    for (let j = 1; j <= y.length; j++) {
      const replaced = cost[i - 1]![j - 1]! + (x[i - 1] === y[j - 1] ? 0 : 1);
      row.push(Math.min(replaced, cost[i - 1]![j]! + 1, row[j - 1]! + 1));
    }
    cost.push(row);
  }
  return cost;
}
