/** A row-major float64 tensor: what the reference implementations take and return. */
export interface Tensor64 {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

export const sizeOf = (shape: readonly number[]): number =>
  shape.reduce((size, dim) => size * dim, 1);

export function zeros(shape: readonly number[]): Tensor64 {
  return { shape, data: new Float64Array(sizeOf(shape)) };
}
