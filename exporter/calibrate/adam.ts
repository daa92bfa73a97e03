/** Adam with bias correction, for one vector. */
export class Adam {
  private readonly m: Float32Array;
  private readonly v: Float32Array;

  constructor(size: number) {
    this.m = new Float32Array(size);
    this.v = new Float32Array(size);
  }

  /** One step, in place. @param t counts steps from 1 */
  step(values: Float32Array, gradient: Float32Array, rate: number, t: number): void {
    const { m, v } = this;
    const [b1, b2] = [0.9, 0.99];
    const [c1, c2] = [1 - b1 ** t, 1 - b2 ** t];
    for (let i = 0; i < values.length; i++) {
      const g = gradient[i]!;
      m[i] = b1 * m[i]! + (1 - b1) * g;
      v[i] = b2 * v[i]! + (1 - b2) * g * g;
      values[i] = values[i]! - (rate * (m[i]! / c1)) / (Math.sqrt(v[i]! / c2) + 1e-8);
    }
  }

  /** Both moments, to go on later. */
  save(): { m: Float32Array; v: Float32Array } {
    return { m: this.m.slice(), v: this.v.slice() };
  }
  load({ m, v }: { m: Float32Array; v: Float32Array }): void {
    this.m.set(m);
    this.v.set(v);
  }
}
