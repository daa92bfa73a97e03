import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Files of a minute and more: begun last, one of them would keep one worker busy while the other is done. */
const SLOW = [
  'wgsl/linear_attention.test.ts',
  'exporter/fuzz.test.ts',
  'web/page.test.ts',
  'runtime/kernels_cpu.test.ts',
  'runtime/kernels_cpu_avx2.test.ts',
  'runtime/kernels_cpu_portable.test.ts',
  'ops/function_window.test.ts',
  'exporter/cli/commands.test.ts',
];

/** Starts the slow files first; what vitest remembers of earlier runs says the rest, or, in a fresh clone, their size. */
export default class SlowFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification) => {
      const at = SLOW.findIndex((name) => moduleId.endsWith(`/test/${name}`));
      return at < 0 ? SLOW.length : at;
    };
    return (await super.sort(files)).sort((a, b) => rank(a) - rank(b));
  }
}
