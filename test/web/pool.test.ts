/** Buffers that go from run to run, without a GPU. */
import { expect, it } from 'vitest';
import { BufferPool, bucketOf } from '../../runtime/web/pool.js';

function makePool() {
  let alive = 0;
  let made = 0;
  const pool = new BufferPool((size) => {
    alive += 1;
    made += 1;
    return { size, destroy: () => (alive -= 1) } as unknown as GPUBuffer;
  });
  return { pool, alive: () => alive, made: () => made };
}

it('sizes waste at most an eighth, and fit bindings', () => {
  for (const bytes of [0, 1, 255, 257, 1000, 4096, 5000, 12_345_678, 2 ** 31 + 1]) {
    const size = bucketOf(bytes);
    expect(size).toBeGreaterThanOrEqual(Math.max(bytes, 256));
    expect(size % 16).toBe(0);
    if (bytes > 256) expect(size).toBeLessThan(bytes * 1.125 + 16);
    expect(bucketOf(size)).toBe(size);
  }
});

it('what comes back is used again', () => {
  const { pool, made } = makePool();
  const first = pool.acquire(1000);
  const second = pool.acquire(1000);
  expect(second).not.toBe(first);
  pool.release(first);
  expect(pool.acquire(990)).toBe(first);
  expect(pool.acquire(5000)).not.toBe(first);
  expect(made()).toBe(3);
  expect(pool.bytes).toBe(bucketOf(1000) * 2 + bucketOf(5000));
});

it('a buffer that comes back twice is lent once', () => {
  const { pool } = makePool();
  const buffer = pool.acquire(1000);
  pool.release(buffer);
  pool.release(buffer);
  expect(pool.acquire(1000)).toBe(buffer);
  expect(pool.acquire(1000)).not.toBe(buffer);
});

it('what is idle for long is destroyed, what is in use stays', () => {
  const { pool, alive } = makePool();
  const used = pool.acquire(100_000);
  pool.release(pool.acquire(200_000));
  for (let run = 0; run < 40; run++) {
    const step = pool.acquire(1000);
    pool.release(step);
    pool.tick();
  }
  expect(alive()).toBe(2);
  pool.release(used);
  expect(pool.acquire(100_000)).toBe(used);
});

it('once closed, everything goes as it comes back', () => {
  const { pool, alive } = makePool();
  const lent = pool.acquire(1);
  pool.release(pool.acquire(5000));
  pool.close();
  expect(alive()).toBe(1);
  pool.release(lent);
  expect(alive()).toBe(0);
});
