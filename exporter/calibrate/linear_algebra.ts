/** Square matrices, row by row. */
export type Matrix = Float64Array;

/** Eigenvalues (largest first) and eigenvectors (columns) of a symmetric matrix, by Jacobi rotations. */
export function eigen(symmetric: Matrix, n: number): { values: Float64Array; vectors: Matrix } {
  const a = symmetric.slice();
  const v = new Float64Array(n * n);
  for (let i = 0; i < n; i++) v[i * n + i] = 1;
  for (let sweep = 0; sweep < 60; sweep++) {
    let off = 0;
    let all = 0;
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        all += a[i * n + j]! ** 2;
        if (i !== j) off += a[i * n + j]! ** 2;
      }
    }
    if (off <= 1e-22 * all) break;
    for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) rotate(a, v, n, p, q);
  }
  const order = Array.from({ length: n }, (_, i) => i).sort(
    (i, j) => a[j * n + j]! - a[i * n + i]!,
  );
  const vectors = new Float64Array(n * n);
  for (let c = 0; c < n; c++)
    for (let r = 0; r < n; r++) vectors[r * n + c] = v[r * n + order[c]!]!;
  return { values: Float64Array.from(order, (i) => a[i * n + i]!), vectors };
}

function rotate(a: Matrix, v: Matrix, n: number, p: number, q: number): void {
  const apq = a[p * n + q]!;
  if (apq === 0) return;
  const theta = (a[q * n + q]! - a[p * n + p]!) / (2 * apq);
  const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const c = 1 / Math.sqrt(t * t + 1);
  const s = t * c;
  for (let i = 0; i < n; i++) {
    const [x, y] = [a[i * n + p]!, a[i * n + q]!];
    a[i * n + p] = c * x - s * y;
    a[i * n + q] = s * x + c * y;
  }
  for (let i = 0; i < n; i++) {
    const [x, y] = [a[p * n + i]!, a[q * n + i]!];
    a[p * n + i] = c * x - s * y;
    a[q * n + i] = s * x + c * y;
  }
  for (let i = 0; i < n; i++) {
    const [x, y] = [v[i * n + p]!, v[i * n + q]!];
    v[i * n + p] = c * x - s * y;
    v[i * n + q] = s * x + c * y;
  }
}

/** a [n,m] times b [m,k]. */
export function product(a: Matrix, b: Matrix, n: number, m: number, k: number): Matrix {
  const out = new Float64Array(n * k);
  for (let i = 0; i < n; i++) {
    for (let l = 0; l < m; l++) {
      const x = a[i * m + l]!;
      if (x === 0) continue;
      for (let j = 0; j < k; j++) out[i * k + j] = out[i * k + j]! + x * b[l * k + j]!;
    }
  }
  return out;
}

/** The transpose of a [n,m]. */
export function transposed(a: Matrix, n: number, m: number): Matrix {
  const out = new Float64Array(n * m);
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) out[j * n + i] = a[i * m + j]!;
  return out;
}

/** The inverse square root of a positive matrix, its eigenvalues raised by a share of their mean. */
export function inverseRoot(symmetric: Matrix, n: number, ridge: number): Matrix {
  const { values, vectors } = eigen(symmetric, n);
  const floor = (ridge * values.reduce((a, b) => a + Math.max(b, 0), 0)) / n + 1e-12;
  const scaled = vectors.slice();
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < n; c++) {
      scaled[r * n + c] = scaled[r * n + c]! / Math.sqrt(Math.max(values[c]!, 0) + floor);
    }
  }
  return product(scaled, transposed(vectors, n, n), n, n, n);
}

/** Singular values (largest first) and vectors of a square matrix: m = left diag(values) right'. */
export function singular(m: Matrix, n: number) {
  const { values, vectors: right } = eigen(product(transposed(m, n, n), m, n, n, n), n);
  const roots = values.map((x) => Math.sqrt(Math.max(x, 0)));
  const left = product(m, right, n, n, n);
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < n; c++) left[r * n + c] = left[r * n + c]! / Math.max(roots[c]!, 1e-9);
  }
  return { values: roots, left, right };
}

/** Solves (a + ridge I) x = b for x [n,k], a symmetric and positive, by Cholesky. */
export function solve(a: Matrix, b: Matrix, n: number, k: number, ridge: number): Matrix {
  const l = a.slice();
  for (let i = 0; i < n; i++) l[i * n + i] = l[i * n + i]! + ridge;
  for (let j = 0; j < n; j++) {
    for (let p = 0; p < j; p++) {
      const f = l[j * n + p]!;
      if (f === 0) continue;
      for (let i = j; i < n; i++) l[i * n + j] = l[i * n + j]! - l[i * n + p]! * f;
    }
    const root = Math.sqrt(Math.max(l[j * n + j]!, 1e-300));
    for (let i = j; i < n; i++) l[i * n + j] = l[i * n + j]! / root;
  }
  const x = b.slice();
  for (let i = 0; i < n; i++) {
    for (let p = 0; p < i; p++) {
      const f = l[i * n + p]!;
      for (let c = 0; c < k; c++) x[i * k + c] = x[i * k + c]! - f * x[p * k + c]!;
    }
    for (let c = 0; c < k; c++) x[i * k + c] = x[i * k + c]! / l[i * n + i]!;
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let p = i + 1; p < n; p++) {
      const f = l[p * n + i]!;
      for (let c = 0; c < k; c++) x[i * k + c] = x[i * k + c]! - f * x[p * k + c]!;
    }
    for (let c = 0; c < k; c++) x[i * k + c] = x[i * k + c]! / l[i * n + i]!;
  }
  return x;
}
