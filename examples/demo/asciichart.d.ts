declare module 'asciichart' {
  export const blue: string;
  export const red: string;
  export interface Config {
    height?: number;
    min?: number;
    max?: number;
    colors?: readonly string[];
    format?: (value: number) => string;
  }
  /** Draws series of equally spaced values with box characters. */
  export function plot(series: readonly (readonly number[])[], config?: Config): string;
}
