// Formats (or, with --check, checks) every C++ and CUDA file that git knows or would add.
import { execFileSync, spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';

const files = execFileSync(
  'git',
  ['ls-files', '-co', '--exclude-standard', '*.cc', '*.h', '*.cu', '*.cuh'],
  {
    encoding: 'utf8',
  },
)
  .split('\n')
  .filter((f) => f && !f.startsWith('third_party/'));
if (files.length > 0) {
  const tool = createRequire(import.meta.url).resolve('clang-format/index.js');
  const mode = process.argv.includes('--check') ? ['--dry-run', '--Werror'] : ['-i'];
  const { status } = spawnSync(process.execPath, [tool, ...mode, ...files], { stdio: 'inherit' });
  process.exit(status ?? 1);
}
