import { expect, it } from 'vitest';
import {
  eigen,
  inverseRoot,
  product,
  singular,
  solve,
  transposed,
} from '../../../exporter/calibrate/linear_algebra.js';
import { Random } from '../../../exporter/random.js';

const n = 9;
const random = new Random(1);
const matrix = Float64Array.from({ length: n * n }, () => random.normal());
const positive = product(transposed(matrix, n, n), matrix, n, n, n);
const worst = (a: Float64Array, b: Float64Array) =>
  a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);
const diagonal = (d: Float64Array) =>
  Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? d[i % n]! : 0));

it('eigenvalues and eigenvectors make up the matrix', () => {
  const { values, vectors } = eigen(positive, n);
  const scaled = product(vectors, diagonal(values), n, n, n);
  expect(worst(product(scaled, transposed(vectors, n, n), n, n, n), positive)).toBeLessThan(1e-9);
  expect([...values]).toEqual([...values].sort((a, b) => b - a));
});

it('singular values and vectors make up the matrix', () => {
  const { values, left, right } = singular(matrix, n);
  const scaled = product(left, diagonal(values), n, n, n);
  expect(worst(product(scaled, transposed(right, n, n), n, n, n), matrix)).toBeLessThan(1e-6);
});

it('the inverse root of a matrix whitens it', () => {
  const root = inverseRoot(positive, n, 0);
  const white = product(product(root, positive, n, n, n), root, n, n, n);
  expect(worst(white, diagonal(new Float64Array(n).fill(1)))).toBeLessThan(1e-6);
});

it('solves', () => {
  const b = Float64Array.from({ length: n * 2 }, () => random.normal());
  const x = solve(positive, b, n, 2, 0.5);
  const ridge = positive.map((e, i) => (i % (n + 1) === 0 ? e + 0.5 : e));
  expect(worst(product(ridge, x, n, n, 2), b)).toBeLessThan(1e-9);
});
