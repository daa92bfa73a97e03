import type { TaskScore } from './schema.js';

/** 4096 as 4K. */
export function formatLength(tokens: number): string {
  return tokens >= 1024 && tokens % 1024 === 0 ? `${tokens / 1024}K` : String(tokens);
}

/** Recall of one task by length: the mean over depths. */
export function recallByLength(tasks: readonly TaskScore[], task: string): Map<number, number> {
  const found = new Map<number, number[]>();
  for (const { task: name, length, recall } of tasks) {
    if (name === task && recall.value !== null) {
      found.set(length, [...(found.get(length) ?? []), recall.value]);
    }
  }
  const mean = (x: readonly number[]) => x.reduce((a, b) => a + b, 0) / x.length;
  return new Map([...found].sort(([a], [b]) => a - b).map(([k, values]) => [k, mean(values)]));
}
